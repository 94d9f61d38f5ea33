"""Windows: the arithmetic of each side, and both sides over wires of any delay: never more sent than granted, never stuck."""

from __future__ import annotations

from collections import deque

from hypothesis import example, given
from hypothesis import strategies as st

from astranet_gevent.protocol.stream import StreamCore, StreamState
from astranet_gevent.protocol.window import INITIAL_WINDOW, WindowBudget, next_window

from .tools import PROPERTY, source_bytes

MAX_PAYLOAD = 65536


def test_both_sides_begin_with_what_the_original_assumes() -> None:
    core = StreamCore(bytes(24), StreamState.OPEN)
    assert (core.send_left, core.send_window, core.receive_left, core.receive_window) == (65536,) * 4
    assert INITIAL_WINDOW == 65536


@PROPERTY
@given(st.integers(65536, 2**31 - 1), st.integers(65536, 2**31 - 1))
def test_next_window(window: int, maximum: int) -> None:
    assert next_window(window, maximum) == (window * 2 if window * 2 < maximum else maximum)


# -- the budget -------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=40), st.integers(0, 300))
@example([(True, 100), (True, 1), (False, 0), (True, 100)], 100)
def test_a_budget_is_never_passed(steps: list[tuple[bool, int]], limit: int) -> None:
    budget = WindowBudget()
    held: list[int] = []
    for take, amount in steps:
        if take:
            fits = sum(held) + amount <= limit
            assert budget.take(amount, limit) is fits
            held += [amount] if fits else []
        elif held:
            budget.give(held.pop(0))
        assert budget.used == sum(held) <= limit


# -- the sender's side ------------------------------------------------------------------------------------------------------

# What a peer may do to our sender: send, give credit (also for more than is outstanding), set another window (also a smaller one).
sender_steps = st.lists(
    st.tuples(st.sampled_from(["send", "credit", "window"]), st.one_of(st.integers(0, 70_000), st.sampled_from([0, 1, 65536, 2**32 - 1]))),
    max_size=40,
)


@PROPERTY
@given(sender_steps)
@example([("send", 65536), ("window", 1000), ("credit", 65536), ("credit", 1)])
@example([("send", 65536), ("window", 0), ("credit", 65536), ("window", 1)])
def test_the_sender_counts_what_is_outstanding(steps: list[tuple[str, int]]) -> None:
    core = StreamCore(bytes(24), StreamState.OPEN)
    outstanding, window = 0, INITIAL_WINDOW
    for what, amount in steps:
        if what == "send":
            # As the transport charges it.
            size = max(0, min(amount, core.send_left, MAX_PAYLOAD))
            core.send_left -= size
            outstanding += size
            assert not size or outstanding <= window
        elif what == "credit":
            assert core.receive_credit(amount) is (amount <= outstanding)
            outstanding -= amount if amount <= outstanding else 0
        else:
            core.receive_window_size(amount)
            window = amount
        assert core.send_left == window - outstanding
        assert core.send_window == window


# -- both sides -------------------------------------------------------------------------------------------------------------


class Flow:
    """A sender and a receiver, each a StreamCore driven as the transport drives it, and three wires of any delay between them.

    Frames of the control lane may overtake data, so what is said of data and what is said of windows travels on wires of its own.
    """

    def __init__(self, total: int, maximum: int, budget: int, chatty: bool) -> None:
        self.sender = StreamCore(bytes(24), StreamState.OPEN)
        self.receiver = StreamCore(bytes(24), StreamState.OPEN)
        self.total = total
        self.maximum = maximum
        self.budget = WindowBudget()
        self.budget_limit = budget
        # Whether the sender says that it is held back: the original does not.
        self.chatty = chatty
        self.told = False
        self.sent = self.read = self.credited = 0
        self.data: deque[bytes] = deque()
        self.blocked: deque[None] = deque()
        self.control: deque[tuple[str, int]] = deque()

    def send(self, size: int) -> None:
        """Write, as much as the window allows; say so when it allows nothing."""
        size = min(size, self.sender.send_left, self.total - self.sent, MAX_PAYLOAD)
        if size > 0:
            self.data.append(source_bytes(self.sent, size))
            self.sender.send_left -= size
            self.sent += size
        elif self.sent < self.total and self.chatty and not self.told:
            self.told = True
            self.blocked.append(None)

    def deliver_data(self, _: int = 0) -> None:
        """One DATA frame arrives."""
        if self.data:
            assert self.receiver.receive(self.data.popleft()), "the peer took it for an overrun"

    def deliver_blocked(self, _: int = 0) -> None:
        """One BLOCKED frame arrives."""
        if self.blocked:
            self.blocked.popleft()
            self.receiver.sender_blocked = True

    def deliver_control(self, _: int = 0) -> None:
        """One REWIND or WND_SIZE frame arrives."""
        if self.control:
            command, value = self.control.popleft()
            if command == "REWIND":
                assert self.sender.receive_credit(value), "more credit than is outstanding"
            else:
                self.sender.receive_window_size(value)
            if self.sender.send_left > 0:
                self.told = False

    def take(self, size: int) -> None:
        """The application reads."""
        data = self.receiver.take(size)
        assert data == source_bytes(self.read, len(data))
        self.read += len(data)
        credit = self.receiver.consume(len(data))
        if credit:
            growth = self.receiver.grow(self.maximum)
            if growth and self.budget.take(growth, self.budget_limit):
                self.control.append(("WND_SIZE", self.receiver.enlarge(growth)))
            self.control.append(("REWIND", credit))
            self.credited += credit

    def check(self) -> None:
        """Every byte of window is somewhere: with the sender, under way, buffered, or waiting to be given back."""
        sender, receiver = self.sender, self.receiver
        assert sender.send_left >= 0
        assert self.credited <= self.read <= self.sent
        assert self.sent <= receiver.receive_window + self.credited
        assert receiver.receive_window <= self.maximum
        assert receiver.receive_window - INITIAL_WINDOW == self.budget.used <= self.budget_limit
        on_wire = sum(map(len, self.data))
        coming = sum(value for command, value in self.control if command == "REWIND") + receiver.receive_window - sender.send_window
        assert receiver.receive_left == sender.send_left + on_wire + coming

    def finish(self) -> None:
        """Everybody does what there is to do, until all has arrived."""
        while self.read < self.total:
            before = self.read
            for _ in range(1 + self.total // MAX_PAYLOAD):
                self.send(MAX_PAYLOAD)
            for action in (self.deliver_data, self.deliver_blocked):
                while self.data if action == self.deliver_data else self.blocked:
                    action()
            self.take(self.receiver.buffered or 1)
            while self.control:
                self.deliver_control()
            self.check()
            assert self.read > before or self.sender.send_left > 0, "stuck"


actions = st.lists(
    st.tuples(
        st.sampled_from([Flow.send, Flow.send, Flow.deliver_data, Flow.deliver_control, Flow.deliver_blocked, Flow.take, Flow.take]),
        st.one_of(st.integers(1, 100), st.integers(1, MAX_PAYLOAD), st.just(MAX_PAYLOAD)),
    ),
    max_size=120,
)


@PROPERTY
@given(
    actions,
    st.sampled_from([1, 100, 65536, 65537, 400_000]),
    st.sampled_from([65536, 65537, 100_001, 262_144, 4 * 1024 * 1024]),
    st.sampled_from([0, 65535, 65536, 200_000, 2**40]),
    st.booleans(),
)
def test_what_is_sent_arrives_and_never_more_than_was_granted(
    actions: list[tuple[object, int]], total: int, maximum: int, budget: int, chatty: bool
) -> None:
    flow = Flow(total, maximum, budget, chatty)
    for action, size in actions:
        action(flow, size)  # type: ignore[operator]
        flow.check()
    flow.finish()
    assert flow.read == flow.sent == total


def test_a_held_back_sender_gets_larger_windows_up_to_the_maximum() -> None:
    flow = Flow(400_000, 200_000, 2**40, chatty=True)
    sizes = {flow.sender.send_window}
    while flow.read < flow.total:
        for _ in range(5):
            flow.send(MAX_PAYLOAD)
        while flow.data:
            flow.deliver_data()
        flow.deliver_blocked()
        flow.take(MAX_PAYLOAD)
        while flow.control:
            flow.deliver_control()
        sizes.add(flow.sender.send_window)
    assert sizes == {65536, 131072, 200_000}


def test_a_sender_that_is_not_held_back_gets_no_larger_window() -> None:
    flow = Flow(400_000, 2**30, 2**40, chatty=True)
    while flow.read < flow.total:
        flow.send(1000)
        flow.deliver_data()
        flow.take(1000)
        flow.deliver_control()
    assert flow.receiver.receive_window == INITIAL_WINDOW
    assert not flow.blocked


def test_credit_is_given_in_lumps() -> None:
    flow = Flow(400_000, 65536, 0, chatty=False)
    rewinds = 0
    while flow.read < flow.total:
        flow.send(100)
        flow.deliver_data()
        flow.take(100)
        rewinds += len(flow.control)
        while flow.control:
            flow.deliver_control()
    assert rewinds == 400_000 // 32768
