"""A descriptor for select, poll and selectors: readable while a stream has something to read.

Made when somebody asks for ``fileno()``, at 2.7 kB of kernel memory each; streams that are never polled have none. An eventfd polls
readable while its counter is above 0. It polls writable, except of a dial that is under way: whoever writes without blocking gets EAGAIN
and comes back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Final, Protocol

__all__ = ["Readiness"]


# An eventfd with this counter takes no more, so it polls as not writable.
_HIGHEST_COUNTER: Final = 2**64 - 2


class _Readable(Protocol):
    @property
    def readable(self) -> bool: ...


class Readiness:
    """An Observer that keeps a descriptor's readability equal to ``source.readable``."""

    def __init__(self, source: _Readable, *, busy: bool = False) -> None:
        self._source = source
        self._signalled = False
        self._busy = False
        if hasattr(os, "eventfd"):
            self._descriptor = self._signal_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            # Platforms without eventfd: the reading end of a socketpair, one byte in it while readable.
            ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)
            self._descriptor, self._signal_descriptor = (end.detach() for end in ends)
        if busy:
            self._hold()
        else:
            self.on_readable()

    def _hold(self) -> None:
        """Poll as not writable: only an eventfd can, by a counter that is as high as it goes."""
        if self._descriptor == self._signal_descriptor:
            self._busy = True
            os.write(self._signal_descriptor, _HIGHEST_COUNTER.to_bytes(8, sys.byteorder))

    def move(self, source: _Readable) -> None:
        """Follow another source from now on, which is not busy: a dial has become a stream, or an error."""
        self._source = source
        if self._busy:
            self._busy = False
            os.read(self._descriptor, 8)
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
