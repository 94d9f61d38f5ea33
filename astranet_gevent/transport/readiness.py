"""A descriptor for select, poll and selectors: readable while a stream has something to read.

Made when somebody asks for ``fileno()``, at 2.7 kB of kernel memory each; streams that are never polled have none. An eventfd polls
readable while its counter is above 0, and always writable: whoever writes without blocking gets EAGAIN and comes back. A dial that is under
way polls neither readable nor writable, which an eventfd cannot say: one that is asked for its number has a socketpair, at five times the
memory, and keeps it, because who waits for the outcome has registered this very descriptor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Final, Protocol

__all__ = ["Readiness"]


# The smallest send buffer that a system gives for this is the cheapest to fill.
_LEAST_BUFFER: Final = 1


class _Readable(Protocol):
    @property
    def readable(self) -> bool: ...


class Readiness:
    """An Observer that keeps a descriptor's readability equal to ``source.readable``; with ``busy`` not writable until ``move()``."""

    def __init__(self, source: _Readable, *, busy: bool = False) -> None:
        self._source = source
        self._signalled = False
        self._busy = busy
        if hasattr(os, "eventfd") and not busy:
            self._descriptor = self._signal_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            # One end of a socketpair, with something to read in it while readable, and with a full send buffer while busy.
            ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)
            ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LEAST_BUFFER)
            self._descriptor, self._signal_descriptor = (end.detach() for end in ends)
        if busy:
            self._hold()
        else:
            self.on_readable()

    def _hold(self) -> None:
        """Poll as not writable."""
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._descriptor, b"x")

    def move(self, source: _Readable) -> None:
        """Follow another source from now on, which is not busy: a dial has become a stream, or an error."""
        self._source = source
        if self._busy:
            self._busy = False
            with contextlib.suppress(BlockingIOError):
                while os.read(self._signal_descriptor, 65536):
                    pass
        self.on_readable()

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def on_readable(self) -> None:
        """Bring the descriptor in line with the source."""
        readable = self._source.readable
        if readable is self._signalled or self._busy:
            return
        self._signalled = readable
        with contextlib.suppress(BlockingIOError):
            if readable:
                os.write(self._signal_descriptor, (1).to_bytes(8, sys.byteorder))
            else:
                os.read(self._descriptor, 8)

    def on_writable(self) -> None:
        """Nothing to do: the descriptor always polls writable."""

    def release(self) -> int:
        """Give the number away: it is kept up to date no more, and not closed."""
        number = self._descriptor
        if self._signal_descriptor != number:
            os.close(self._signal_descriptor)
        self._descriptor = self._signal_descriptor = -1
        return number

    def close(self) -> None:
        """Free the descriptor."""
        for descriptor in {self._descriptor, self._signal_descriptor}:
            os.close(descriptor)
        self._descriptor = self._signal_descriptor = -1
