"""The queue of a link: nothing lost or doubled, order within a source, control first, and everybody gets on."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from astranet_gevent.transport.send_queue import SMALL_FRAME, SendQueue, TurnSource

from .tools import STATEFUL

LIMIT = 100_000
TURN = 128 * 1024
BATCH = 256 * 1024
FILLING = memoryview(bytes(70_000))
SOURCES = 5


class Source(TurnSource):
    """One that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    def on_sent(self, size: int) -> None:
        self.told.append(size)


class Frame(bytes):
    """The head of a frame, which a test can tell from its filling."""

    source: int
    number: int


def frame(source: int, number: int) -> Frame:
    """The head of the frame ``number`` of a source; -1 is the control lane."""
    head = Frame(f"{source:4}:{number:8}", "ascii")
    head.source, head.number = source, number
    return head


class Queue(RuleBasedStateMachine):
    """Sources put frames in as the transport does; batches are taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = SendQueue(LIMIT)
        self.sources = [Source() for _ in range(SOURCES)]
        self.numbers = [0] * (SOURCES + 1)
        self.taken = [0] * (SOURCES + 1)
        self.removed: set[tuple[int, int]] = set()
        # The model: what waits in each lane, (head, size), and the sources in the order of their turns.
        self.control: list[Frame] = []
        self.small: list[Frame] = []
        self.waiting: list[deque[tuple[Frame, int]]] = [deque() for _ in range(SOURCES)]
        self.turns: deque[int] = deque()

    def next_frame(self, source: int) -> Frame:
        self.numbers[source] += 1
        return frame(source, self.numbers[source])

    @rule(count=st.integers(1, 5))
    def push_control(self, count: int) -> None:
        for _ in range(count):
            self.control.append(self.next_frame(-1))
            self.queue.push_control(self.control[-1])

    @rule(
        which=st.integers(0, SOURCES - 1),
        filling=st.one_of(st.integers(0, 100), st.integers(0, 65536), st.just(65536)),
        count=st.integers(1, 6),
    )
    def send(self, which: int, filling: int, count: int) -> None:
        """A small frame goes to the shared lane, unless its source has something waiting."""
        source, waiting = self.sources[which], self.waiting[which]
        for _ in range(count):
            head = self.next_frame(which)
            if filling > SMALL_FRAME or waiting:
                if not waiting:
                    self.turns.append(which)
                waiting.append((head, len(head) + filling))
                self.queue.push_turn(source, (head, FILLING[:filling]))
            else:
                self.small.append(head)
                self.queue.push_small(head)

    @rule(which=st.integers(0, SOURCES - 1))
    def remove(self, which: int) -> None:
        self.queue.remove(self.sources[which])
        if self.waiting[which]:
            self.turns.remove(which)
            # Not what it has queued in the lane of small frames before.
            self.removed |= {(which, head.number) for head, _ in self.waiting[which]}
            self.waiting[which].clear()

    @rule(limit=st.sampled_from([BATCH, BATCH // 2, BATCH // 4]))
    def take(self, limit: int = BATCH) -> None:
        told = [list(source.told) for source in self.sources]
        batch = self.queue.take(limit)
        heads = [part for part in batch if isinstance(part, Frame)]
        fillings = [part for part in batch if not isinstance(part, Frame)]
        assert all(isinstance(part, memoryview) and part.obj is FILLING.obj for part in fillings if part), "payloads are not copied"
        expected = self.control + self.small
        self.control, self.small = [], []
        before = bool(self.turns)
        turns, sizes = self.expected_turns(limit)
        assert heads == expected + [head for head, _ in turns]
        assert sum(map(len, batch[len(expected) :])) == sum(size for _, size in turns)
        assert bool(turns) is before, "each batch has a turn if anybody waits for one"
        assert [source.told[len(old) :] for source, old in zip(self.sources, told)] == sizes
        for head in heads:
            assert head.number > self.taken[head.source], "out of order"
            assert (head.source, head.number) not in self.removed
            self.taken[head.source] = head.number

    def expected_turns(self, limit: int) -> tuple[list[tuple[Frame, int]], list[list[int]]]:
        """What the turns of a batch are, and the sizes that each source is told."""
        taken: list[tuple[Frame, int]] = []
        sizes: list[list[int]] = [[] for _ in range(SOURCES)]
        while self.turns and (left := limit - sum(size for _, size in taken)) > 0:
            which = self.turns.popleft()
            waiting, turn = self.waiting[which], 0
            while waiting and turn < min(left, TURN):
                taken.append(waiting.popleft())
                turn += taken[-1][1]
            sizes[which].append(turn)
            if waiting:
                self.turns.append(which)
        return taken, sizes

    @rule()
    def take_everything(self) -> None:
        batches = 0
        while self.queue:
            self.take()
            batches += 1
        assert batches <= 1 + sum(self.numbers)

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.control, self.small = [], []
        self.turns.clear()
        for which, waiting in enumerate(self.waiting):
            waiting.clear()
            self.taken[which] = self.numbers[which]

    @invariant()
    def the_sums_are_right(self) -> None:
        queue = self.queue
        small = sum(map(len, self.small))
        large = [sum(size for _, size in waiting) for waiting in self.waiting]
        assert [source.size for source in self.sources] == large
        assert (queue.small_bytes, queue.turn_bytes, queue.size) == (small, sum(large), small + sum(large))
        assert queue.control_count == len(self.control)
        assert queue.small_room is (small < LIMIT)
        assert queue.turn_room is (sum(large) < LIMIT)
        assert bool(queue) is bool(self.control or self.small or self.turns)


TestQueue = Queue.TestCase
TestQueue.settings = STATEFUL


def heads(batch: list[Any]) -> list[int]:
    """The sources of the frames in a batch."""
    return [part.source for part in batch if isinstance(part, Frame)]


@pytest.mark.parametrize("flood", ["control", "small", "turns"])
def test_no_lane_starves_another(flood: str) -> None:
    """However much is put into one lane before each batch, the frames of the others leave."""
    queue = SendQueue(LIMIT)
    others = [Source() for _ in range(30)]
    victim = Source()
    for number in range(20):
        queue.push_turn(victim, (frame(1, number), FILLING[:60_000]))
    queue.push_small(frame(2, 0))
    queue.push_control(frame(3, 0))
    left: list[int] = []
    for number in range(100):
        for which in range(30):
            if flood == "control":
                queue.push_control(frame(100, number))
            elif flood == "small":
                queue.push_small(frame(100, number))
            else:
                queue.push_turn(others[which], (frame(100, number), FILLING[:60_000]))
        left += [source for source in heads(queue.take()) if source < 100]
    assert left.count(1) >= (20 if flood != "turns" else 100 * 5 // 31)
    assert left.count(2) == left.count(3) == 1
    assert left[:2] == [3, 2]


def test_turns_are_of_equal_size_for_large_and_small_frames() -> None:
    """A source of many small frames waits no longer than one of large ones, and takes no more of the link."""
    queue = SendQueue(LIMIT)
    many, few = Source(), Source()
    for number in range(300):
        queue.push_turn(many, (frame(1, number), FILLING[:1011]))
    for number in range(6):
        queue.push_turn(few, (frame(2, number), FILLING[: TURN // 2 - 13]))
    batch = heads(queue.take(10 * TURN))
    assert batch == [1] * 128 + [2] * 2 + [1] * 128 + [2] * 2 + [1] * 44 + [2] * 2


def test_a_turn_is_no_larger_than_the_batch() -> None:
    """On a slow path batches are small, so that nothing urgent waits long; and so are the turns of two sources that share it."""
    queue = SendQueue(LIMIT)
    sources = [Source(), Source()]
    for number in range(4):
        for which, source in enumerate(sources):
            queue.push_turn(source, (frame(which, number), FILLING[: TURN // 2 - 13]))
    assert [heads(queue.take(TURN // 2)) for _ in range(4)] == [[0], [1], [0], [1]]
    assert heads(queue.take(TURN // 2 + 1)) == [0, 0]
    assert heads(queue.take()) == [1, 1]


def test_an_empty_queue() -> None:
    queue = SendQueue(LIMIT)
    assert not queue
    assert queue.take() == []
    queue.remove(Source())
    assert queue.size == 0


def test_a_source_may_add_and_the_queue_may_grow_while_a_batch_is_taken() -> None:
    queue = SendQueue(LIMIT)

    class Eager(TurnSource):
        left = 9

        def on_sent(self, size: int) -> None:
            if self.left:
                self.left -= 1
                queue.push_turn(self, (frame(1, 9 - self.left), FILLING[:20_000]))
                queue.push_control(frame(2, 9 - self.left))

    source = Eager()
    queue.push_turn(source, (frame(1, 0), FILLING[:20_000]))
    numbers: dict[int, list[int]] = {1: [], 2: []}
    while queue:
        for part in queue.take():
            if isinstance(part, Frame):
                numbers[part.source].append(part.number)
    assert numbers == {1: list(range(10)), 2: list(range(1, 10))}
    assert (queue.turn_bytes, source.size) == (0, 0)


class Interrupting(bytes):
    """Ctrl-C strikes when it is looked at for the second time: when it is taken."""

    looks = 0

    def __len__(self) -> int:
        self.looks += 1
        if self.looks == 2:
            raise KeyboardInterrupt
        return super().__len__()


def test_what_an_interrupt_leaves_can_be_removed() -> None:
    """It strikes in the middle of a turn: the link ends then, and its streams take back what they have waiting."""
    queue = SendQueue(LIMIT)
    sources = [Source(), Source()]
    for source in sources:
        queue.push_turn(source, (b"head", bytes(1000)))
        queue.push_turn(source, (b"head", Interrupting(1000)))
        queue.push_turn(source, (b"head", bytes(1000)))
    with pytest.raises(KeyboardInterrupt):
        queue.take()
    for source in sources:
        queue.remove(source)
    queue.clear()
    assert (bool(queue), queue.size) == (False, 0)
