"""A stream's receive buffer against a plain run of bytes, and its credit against what was taken."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from astranet_gevent.protocol.stream import StreamCore, StreamState
from astranet_gevent.protocol.window import INITIAL_WINDOW

from .tools import STATEFUL, source_bytes

sizes = st.one_of(st.integers(1, 20), st.integers(1, 3000), st.sampled_from([INITIAL_WINDOW, INITIAL_WINDOW // 2, INITIAL_WINDOW - 1]))
MAX_WINDOW = 300_000


class ReceiveBuffer(RuleBasedStateMachine):
    """Payloads come, and are read in all ways."""

    def __init__(self) -> None:
        super().__init__()
        self.core = StreamCore(bytes(24), StreamState.OPEN)
        self.received = 0
        self.taken = 0
        self.credited = 0
        self.granted = INITIAL_WINDOW

    @property
    def waiting(self) -> bytes:
        """The model."""
        return source_bytes(self.taken, self.received - self.taken)

    @property
    def allowed(self) -> int:
        """Bytes that the peer may still send."""
        return self.granted + self.credited - self.received

    @rule(size=sizes)
    def receive(self, size: int) -> None:
        fits = size <= self.allowed
        assert self.core.receive(source_bytes(self.received, size)) is fits
        self.received += size if fits else 0

    @precondition(lambda self: self.allowed > 0)
    @rule()
    def receive_all_that_is_allowed(self) -> None:
        self.receive(self.allowed)

    @rule(size=st.integers(1, 9), count=st.integers(2, 30))
    def receive_many(self, size: int, count: int) -> None:
        for _ in range(count):
            self.receive(size)

    @rule()
    def receive_nothing(self) -> None:
        assert self.core.receive(b"") is True

    @rule(limit=sizes)
    def take(self, limit: int) -> None:
        expected = self.waiting[:limit]
        data = self.core.take(limit)
        assert type(data) is bytes
        assert data == expected
        self.consume(len(data))

    @rule()
    def take_all(self) -> None:
        self.take(len(self.waiting) or 1)

    @rule(size=sizes, offset=st.integers(0, 3))
    def take_into(self, size: int, offset: int) -> None:
        expected = self.waiting[:size]
        target = bytearray(b"\xee" * (offset + size))
        count = self.core.take_into(memoryview(target)[offset:])
        assert count == len(expected)
        assert target == b"\xee" * offset + expected + b"\xee" * (size - count)
        self.consume(count)

    @rule(limit=sizes)
    def peek(self, limit: int) -> None:
        data = self.core.peek(limit)
        assert type(data) is bytes
        assert data == self.waiting[:limit]

    def consume(self, count: int) -> None:
        """As the transport does after each read: credit comes when half of the window has been taken, or 256 KiB."""
        self.taken += count
        owed = self.taken - self.credited
        credit = self.core.consume(count)
        assert credit == (owed if owed >= min(self.granted / 2, 256 * 1024) else 0)
        self.credited += credit

    @rule(blocked=st.booleans())
    def grow(self, blocked: bool) -> None:
        self.core.sender_blocked = blocked
        growth = self.core.grow(MAX_WINDOW)
        assert growth == (min(self.granted * 2, MAX_WINDOW) - self.granted if blocked else 0)
        assert self.core.grow(MAX_WINDOW) == 0
        if growth:
            self.granted += growth
            assert self.core.enlarge(growth) == self.granted

    @invariant()
    def the_sums_are_right(self) -> None:
        core = self.core
        assert core.buffered == self.received - self.taken
        assert (core.received is None) is (core.buffered == 0)
        assert core.receive_window == self.granted <= MAX_WINDOW
        assert core.receive_left == self.allowed >= 0
        assert core.uncredited == self.taken - self.credited
        # Never less than half a window for a peer whose bytes have all been read: it cannot get stuck.
        assert (self.allowed + core.buffered) * 2 > self.granted


TestReceiveBuffer = ReceiveBuffer.TestCase
TestReceiveBuffer.settings = STATEFUL


def core_with(*payloads: bytes) -> StreamCore:
    """A stream in which these payloads wait."""
    core = StreamCore(bytes(24), StreamState.OPEN)
    assert all(core.receive(payload) for payload in payloads)
    return core


def test_a_payload_that_is_taken_whole_is_not_copied() -> None:
    payload = b"x" * 5000
    assert core_with(payload).take(5000) is payload
    assert core_with(payload).take(9999) is payload


def test_nothing_to_take() -> None:
    core = core_with()
    assert core.take(5) == b""
    assert core.peek(5) == b""
    assert core.take_into(memoryview(bytearray(5))) == 0
    assert core_with(b"abc").take_into(memoryview(bytearray())) == 0


@pytest.mark.parametrize("payloads", [(b"a",), (b"ab", b"c"), (b"ab", b"c", b"d")])
def test_discard(payloads: tuple[bytes, ...]) -> None:
    core = core_with(*payloads)
    core.discard()
    assert (core.buffered, core.received, core.take(9), core.peek(9)) == (0, None, b"", b"")
    assert core.receive(b"new")
    assert core.take(9) == b"new"


def test_an_overrun_changes_nothing() -> None:
    core = core_with(b"x" * (INITIAL_WINDOW - 3))
    assert core.receive(b"abcd") is False
    assert (core.receive_left, core.buffered) == (3, INITIAL_WINDOW - 3)
    assert core.receive(b"abc") is True
    assert core.receive(b"") is True
    assert core.receive(b"a") is False


def test_credit_comes_at_exactly_half_a_window() -> None:
    core = core_with(b"x" * INITIAL_WINDOW)
    assert [core.consume(count) for count in (0, INITIAL_WINDOW // 2 - 1, 1, 1)] == [0, 0, INITIAL_WINDOW // 2, 0]
    assert core.uncredited == 1
    assert core.receive_left == INITIAL_WINDOW // 2
