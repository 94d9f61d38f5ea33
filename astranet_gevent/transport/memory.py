"""Byte streams in memory: the link of a node to itself, and the pairs of the test kit."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from typing import Final

import gevent
from gevent.event import Event

from .conn import BATCH_BYTES, Buffer

__all__ = ["MemoryConn", "MemoryPipe", "memory_pair"]

# About what a kernel holds for a loopback connection in one direction.
PIPE_CAPACITY: Final = 1024 * 1024


class MemoryPipe:
    """One direction: holds up to ``capacity`` bytes, the writer waits beyond that. Ends cleanly or broken."""

    def __init__(self, capacity: int = PIPE_CAPACITY) -> None:
        self._capacity = capacity
        self._chunks: deque[Buffer] = deque()
        self._size = 0
        self._ended = False
        self._readable = Event()
        self._writable = Event()
        self._writable.set()

    @property
    def room(self) -> int:
        """Bytes that go in without waiting."""
        return 0 if self._ended else max(0, self._capacity - self._size)

    def put(self, data: Buffer) -> None:
        """Add bytes; the caller has looked at ``room``. Raises BrokenPipeError once ended."""
        if self._ended:
            raise BrokenPipeError(errno.EPIPE, "memory pipe is closed")
        if not data:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= self._capacity:
            self._writable.clear()
        self._readable.set()

    def wait_writable(self) -> None:
        """Until there is room or the pipe has ended; whoever ends it wakes the waiter, so no deadline is needed."""
        self._writable.wait()

    def read_into(self, view: memoryview) -> int:
        """Wait for bytes and take some; 0 at the end."""
        self._readable.wait()
        filled = 0
        while self._chunks and filled < len(view):
            chunk = self._chunks.popleft()
            part = chunk[: len(view) - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(chunk):
                self._chunks.appendleft(memoryview(chunk)[len(part) :])
        self._size -= filled
        if self._size < self._capacity:
            self._writable.set()
        if not self._chunks and not self._ended:
            self._readable.clear()
        return filled

    def end(self) -> None:
        """No more bytes: what is inside can still be read."""
        self._ended = True
        self._readable.set()
        self._writable.set()


class MemoryConn:
    """One end of two pipes. A Conn."""

    batch_bytes = BATCH_BYTES

    def __init__(self, incoming: MemoryPipe, outgoing: MemoryPipe) -> None:
        self.remote_address = self.local_address = ""
        self._incoming = incoming
        self._outgoing = outgoing

    def recv_into(self, view: memoryview) -> int:
        # By way of the hub even when bytes are there: whoever got data must run in between.
        gevent.sleep(0)
        return self._incoming.read_into(view)

    def try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        pipe = self._outgoing
        for index, part in enumerate(parts):
            room = pipe.room
            if room < len(part):
                if room:
                    pipe.put(part[:room])
                elif pipe._ended:
                    pipe.put(part)
                return [memoryview(part)[room:], *parts[index + 1 :]]
            pipe.put(part)
        return ()

    def send_all(self, parts: Sequence[Buffer]) -> None:
        left = self.try_send(parts)
        while left:
            self._outgoing.wait_writable()
            left = self.try_send(left)

    def finish(self) -> bool:
        self._outgoing.end()
        return True

    def shutdown(self) -> None:
        self._outgoing.end()
        self._incoming.end()

    def close(self) -> None:
        self.shutdown()

    def unanswered_for(self) -> float:
        return 0.0


def memory_pair(capacity: int = PIPE_CAPACITY) -> tuple[MemoryConn, MemoryConn]:
    """Two connected Conns, each with ``capacity`` bytes on the way to the other."""
    there, back = MemoryPipe(capacity), MemoryPipe(capacity)
    return MemoryConn(back, there), MemoryConn(there, back)


def loopback_conn() -> MemoryConn:
    """A Conn that reads what it writes."""
    pipe = MemoryPipe()
    return MemoryConn(pipe, pipe)
