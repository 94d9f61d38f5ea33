"""What waits to be written on one link: the control lane first, then small data frames, then large ones, each source in turn.

Small data frames go in the order in which they came; large ones wait with their source (a stream, or a relayed pair), and the sources
take turns of 128 KiB or what is left of a batch, at least one frame. A source that has something waiting adds small frames behind it, so
the order within a source always holds. Every batch carries all small frames and at least one turn: neither kind starves the other. Only
one that is taken with a limit of 0, as the outlet does for some milliseconds at most, has no turn.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .conn import BATCH_BYTES, Buffer

__all__ = ["SMALL_FRAME", "UNJOINED_PAYLOAD", "SendQueue", "TurnSource"]

# Data frames up to this size travel in the shared lane. 16 KiB takes 0.2 ms at 100 MB/s; copying it costs 1 us.
SMALL_FRAME: Final = 16 * 1024

# Payloads of the shared lane from this size on are not copied behind their header: another part costs less than two copies of so much.
UNJOINED_PAYLOAD: Final = 4096

# One turn: two frames of 64 KiB, so that who reads them is woken half as often; less where a batch is smaller.
_TURN_BYTES: Final = 128 * 1024

Parts = tuple[Buffer, ...]


class TurnSource:
    """Frames of one stream or pair that wait for their turn. The owner bounds them before it adds."""

    #: Counted apart, so that relayed frames do not take the room of our own writers.
    is_relayed = False

    __slots__ = ("pending", "size")

    def __init__(self) -> None:
        self.pending: deque[Parts] = deque()
        self.size = 0

    def on_sent(self, size: int) -> None:
        """``size`` bytes have left the queue."""


class SendQueue:
    """The queue of one link. Bounded by its users: control frames by a count, data by ``small_room`` and ``turn_room``."""

    __slots__ = ("control", "limit", "relayed_bytes", "small", "small_bytes", "turn_bytes", "turns")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # The three lanes: others look whether they are empty.
        self.control: list[bytes] = []
        self.small: list[Buffer] = []
        self.turns: deque[TurnSource] = deque()
        self.small_bytes = 0
        self.turn_bytes = 0
        self.relayed_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.control or self.small or self.turns)

    @property
    def control_count(self) -> int:
        """Control frames waiting."""
        return len(self.control)

    @property
    def small_room(self) -> bool:
        """Whether another small frame is welcome."""
        return self.small_bytes < self.limit

    @property
    def turn_room(self) -> bool:
        """Whether another large frame is welcome."""
        return self.turn_bytes < self.limit

    @property
    def size(self) -> int:
        """Bytes of data waiting."""
        return self.small_bytes + self.turn_bytes + self.relayed_bytes

    def _count_turn(self, source: TurnSource, size: int) -> None:
        source.size += size
        if source.is_relayed:
            self.relayed_bytes += size
        else:
            self.turn_bytes += size

    def push_control(self, frame: bytes) -> None:
        """Queue a control frame."""
        self.control.append(frame)

    def push_small(self, frame: bytes) -> None:
        """Queue a small data frame of a source that has nothing waiting."""
        self.small.append(frame)
        self.small_bytes += len(frame)

    def push_small_parts(self, header: bytes, payload: Buffer) -> None:
        """As ``push_small``, for a frame in two parts."""
        self.small += (header, payload)
        self.small_bytes += len(header) + len(payload)

    def push_turn(self, source: TurnSource, parts: Parts) -> None:
        """Queue a frame behind what its source has waiting."""
        pending = source.pending
        if not pending:
            self.turns.append(source)
        pending.append(parts)
        self._count_turn(source, _size_of(parts))

    def remove(self, source: TurnSource) -> None:
        """Forget what a source has waiting."""
        if source.pending:
            self.turns.remove(source)
            source.pending.clear()
            self._count_turn(source, -source.size)

    def take(self, limit: int = BATCH_BYTES) -> list[Buffer]:
        """The next batch, removed from the queue: all that is small, and turns until they are ``limit`` bytes or more."""
        batch: list[Buffer] = self.control  # type: ignore[assignment]
        if batch:
            self.control = []
            batch += self.small
        else:
            batch = self.small
        self.small = []
        self.small_bytes = 0
        if self.turns:
            self._take_turns(batch, limit)
        return batch

    def _take_turns(self, batch: list[Buffer], left: int) -> None:
        turns = self.turns
        while turns and left > 0:
            # It stays among the turns until all is counted: an interrupt in between finds it where remove() looks.
            source = turns[0]
            pending = source.pending
            size = 0
            turn = min(left, _TURN_BYTES)
            while pending and size < turn:
                parts = pending.popleft()
                size += _size_of(parts)
                batch += parts
            self._count_turn(source, -size)
            left -= size
            if pending:
                turns.rotate(-1)
            else:
                turns.popleft()
            source.on_sent(size)

    def clear(self) -> None:
        """Forget everything: the link has ended."""
        for source in self.turns:
            source.pending.clear()
            source.size = 0
        self.turns.clear()
        self.control = []
        self.small = []
        self.small_bytes = self.turn_bytes = self.relayed_bytes = 0


def _size_of(parts: Parts) -> int:
    # Nearly all are a header and a payload: written out, a fifth of the time of sum() and map().
    return len(parts[0]) + len(parts[1]) if len(parts) == 2 else sum(map(len, parts))
