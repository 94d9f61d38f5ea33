"""One stream's state: opening, two halves, reset; its receive buffer and its windows.

Rules for editing: a step that is not in ``_STEPS`` does not exist. A frame that asks for one is ignored (late frames are normal); a
caller that does is refused by the layer above. Nothing here sends: methods say what has to be sent.

    DIALING ---> OPEN ---> SENT_FIN ---> FINISHED      (we finished writing first)
                   |-----> GOT_FIN ----> FINISHED      (the peer did)
                   |-----> PEER_GONE                   (the peer closed: it reads no more either)
    RESET: broken by the peer, a lost link, or an overrun. CLOSED: closed by us.

Frames matter only to DIALING, OPEN, SENT_FIN and GOT_FIN (``LIVE``): in any other state the stream is no longer in its link's table. As
with TCP, an end of stream that has arrived stays one: what breaks a stream later only breaks its sending half.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final

from .window import INITIAL_WINDOW, next_window

__all__ = ["CREDIT_BYTES", "Step", "StreamCore", "StreamState"]


class StreamState(IntEnum):
    """Where a stream stands; see the drawing at the head of this file."""

    DIALING = 0
    OPEN = 1
    SENT_FIN = 2
    GOT_FIN = 3
    FINISHED = 4
    PEER_GONE = 5
    RESET = 6
    CLOSED = 7


class Step(IntEnum):
    """What can happen to a stream: the first two are ours, the others the peer's."""

    SHUTDOWN = 0
    CLOSE = 1
    SYN = 2
    FIN = 3  # FIN2: writes no more
    GONE = 4  # FIN1: has closed
    BREAK = 5  # FORCE_CLOSED, RESET, a lost link


DIALING: Final = StreamState.DIALING
OPEN: Final = StreamState.OPEN
SENT_FIN: Final = StreamState.SENT_FIN
GOT_FIN: Final = StreamState.GOT_FIN
FINISHED: Final = StreamState.FINISHED
PEER_GONE: Final = StreamState.PEER_GONE
RESET: Final = StreamState.RESET
CLOSED: Final = StreamState.CLOSED

_STEPS: Final[dict[tuple[StreamState, Step], StreamState]] = {
    (DIALING, Step.SYN): OPEN,
    (DIALING, Step.CLOSE): CLOSED,
    (DIALING, Step.BREAK): RESET,
    (OPEN, Step.SHUTDOWN): SENT_FIN,
    (OPEN, Step.CLOSE): CLOSED,
    (OPEN, Step.FIN): GOT_FIN,
    (OPEN, Step.GONE): PEER_GONE,
    (OPEN, Step.BREAK): RESET,
    (SENT_FIN, Step.CLOSE): CLOSED,
    (SENT_FIN, Step.FIN): FINISHED,
    (SENT_FIN, Step.GONE): FINISHED,
    (SENT_FIN, Step.BREAK): RESET,
    (GOT_FIN, Step.SHUTDOWN): FINISHED,
    (GOT_FIN, Step.CLOSE): CLOSED,
    (GOT_FIN, Step.GONE): PEER_GONE,
    (GOT_FIN, Step.BREAK): PEER_GONE,
    (FINISHED, Step.CLOSE): CLOSED,
    (PEER_GONE, Step.SHUTDOWN): FINISHED,
    (PEER_GONE, Step.CLOSE): CLOSED,
    (RESET, Step.CLOSE): CLOSED,
}

LIVE: Final = frozenset((DIALING, OPEN, SENT_FIN, GOT_FIN))

# States in which the peer has ended its half: reading gives what is buffered, then the end.
ENDED: Final = frozenset((GOT_FIN, FINISHED, PEER_GONE))

# Buffered payloads: one is held as it is, a deque is made for the second. Idle and ping-pong streams never pay for a deque (600 bytes).
Payload = bytes | memoryview
Buffered = Payload | deque[Payload] | None


# Credit that goes back however large the window is: over a long path what is not returned yet is missing from the rate. Less of it would
# only wake the sender more often.
CREDIT_BYTES: Final = 256 * 1024

# From this number on payloads are joined while they are smaller than this on average.
_MANY_PAYLOADS: Final = 512
_TINY_PAYLOAD: Final = 256


class StreamCore:
    """State, receive buffer and windows of one stream, without any IO.

    ``key`` is the stream's address as it stands in frames that arrive for it. The receive buffer is bounded by the window: a peer that
    sends more than it was given makes ``receive`` return False.
    """

    __slots__ = (
        "buffered",
        "error",
        "key",
        "receive_left",
        "receive_window",
        "received",
        "send_left",
        "send_window",
        "sender_blocked",
        "state",
        "uncredited",
    )

    def __init__(self, key: bytes, state: StreamState) -> None:
        self.key = key
        self.state = state
        # What broke the stream, raised to the application after it has read what arrived before.
        self.error: Exception | None = None
        self.received: Buffered = None
        self.buffered = 0
        self.receive_window = INITIAL_WINDOW
        # Bytes the peer may still send; bytes taken by the application and not yet given back as credit.
        self.receive_left = INITIAL_WINDOW
        self.uncredited = 0
        self.sender_blocked = False
        self.send_window = INITIAL_WINDOW
        self.send_left = INITIAL_WINDOW

    def step(self, step: Step) -> bool:
        """Take one step of the table; False when there is no such row, and then nothing has changed."""
        state = _STEPS.get((self.state, step))
        if state is None:
            return False
        self.state = state
        return True

    def receive(self, payload: bytes) -> bool:
        """Buffer one DATA payload; False when it is more than the peer was allowed to send. Only for OPEN and SENT_FIN."""
        size = len(payload)
        left = self.receive_left - size
        if left < 0:
            return False
        if size:
            self.receive_left = left
            held = self.received
            if held is None:
                self.received = payload
            elif type(held) is deque:
                held.append(payload)
                if len(held) >= _MANY_PAYLOADS:
                    self._merge(held)
            else:
                self.received = deque((held, payload))  # type: ignore[arg-type]
            self.buffered += size
        return True

    def _merge(self, held: deque[Payload]) -> None:
        """Join many tiny payloads: each would cost an object of 35 bytes and more, and the window counts only what is in it."""
        if self.buffered + len(held[-1]) < len(held) * _TINY_PAYLOAD:
            self.received = deque((b"".join(held),))

    def take(self, limit: int) -> bytes:
        """Up to ``limit`` (> 0) buffered bytes, removed from the buffer."""
        held = self.received
        if type(held) is bytes:
            if len(held) <= limit:
                self.received = None
                self.buffered = 0
                return held
            self.received = memoryview(held)[limit:]
            self.buffered -= limit
            return held[:limit]
        return self._take_more(limit)

    def _take_more(self, limit: int) -> bytes:
        parts: list[Payload] = []
        wanted = limit
        while wanted and self.buffered:
            part = self._pop_payload(wanted)
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def _pop_payload(self, limit: int) -> Payload:
        """The first buffered payload or the first ``limit`` bytes of it, removed."""
        held = self.received
        assert held is not None
        if type(held) is deque:
            payload = held.popleft()
            if len(payload) > limit:
                held.appendleft(memoryview(payload)[limit:])
                payload = payload[:limit]
            elif not held:
                self.received = None
        else:
            payload = held  # type: ignore[assignment]
            self.received = None
            if len(payload) > limit:
                self.received = memoryview(payload)[limit:]
                payload = payload[:limit]
        self.buffered -= len(payload)
        return payload

    def take_into(self, target: memoryview) -> int:
        """Fill ``target`` from the buffer, each byte copied once; the number of bytes, removed from the buffer."""
        size = len(target)
        held = self.received
        if type(held) is not deque:
            count = self.buffered
            if not 0 < count <= size:
                return self._take_part_into(target, 0)
            # All of the only payload.
            target[:count] = held  # type: ignore[assignment]
            self.received = None
            self.buffered = 0
            return count
        filled = 0
        # Whole payloads, as long as they fit.
        while held:
            payload = held[0]
            stop = filled + len(payload)
            if stop > size:
                break
            target[filled:stop] = payload
            # Nothing is called up to the end of this: Ctrl-C finds both done or neither.
            self.buffered -= stop - filled
            filled = stop
            del held[0]
        if not held:
            self.received = None
        return self._take_part_into(target, filled)

    def _take_part_into(self, target: memoryview, filled: int) -> int:
        """Fill the rest of ``target`` with the beginning of the next payload, if there is one; how much is filled then."""
        room = len(target) - filled
        if not room or not self.buffered:
            return filled
        payload = self._pop_payload(room)
        stop = filled + len(payload)
        target[filled:stop] = payload
        return stop

    def peek(self, limit: int) -> bytes:
        """Up to ``limit`` buffered bytes, left where they are."""
        held = self.received
        if held is None:
            return b""
        if type(held) is not deque:
            return bytes(held[:limit])  # type: ignore[index]
        parts: list[Payload] = []
        wanted = limit
        for part in held:
            parts.append(part[:wanted])
            wanted -= len(parts[-1])
            if not wanted:
                break
        return b"".join(parts)

    def discard(self) -> None:
        """Forget what is buffered."""
        self.received = None
        self.buffered = 0

    def consume(self, count: int) -> int:
        """Note that the application took ``count`` bytes; the credit to return now, 0 until enough of the window has come together.

        Half of a window, or CREDIT_BYTES.
        """
        uncredited = self.uncredited + count
        if uncredited < CREDIT_BYTES and uncredited * 2 < self.receive_window:
            self.uncredited = uncredited
            return 0
        self.uncredited = 0
        self.receive_left += uncredited
        return uncredited

    def grow(self, maximum: int) -> int:
        """Bytes by which the receive window would grow now, 0 unless the sender said that it is held back."""
        if not self.sender_blocked:
            return 0
        self.sender_blocked = False
        return next_window(self.receive_window, maximum) - self.receive_window if self.receive_window < maximum else 0

    def enlarge(self, amount: int) -> int:
        """Grow the receive window by ``amount``; its new size, to be announced."""
        self.receive_window += amount
        self.receive_left += amount
        return self.receive_window

    def receive_credit(self, count: int) -> bool:
        """Apply a REWIND; False when it returns more than is outstanding."""
        left = self.send_left + count
        if left > self.send_window:
            return False
        self.send_left = left
        return True

    def receive_window_size(self, window: int) -> None:
        """Apply a WND_SIZE. A smaller window may leave a debt: ``send_left`` is then negative until credit has made up for it."""
        self.send_left += window - self.send_window
        self.send_window = window
