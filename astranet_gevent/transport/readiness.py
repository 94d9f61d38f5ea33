"""A descriptor for select, poll and selectors: readable while a stream has something to read.

Made when somebody asks for ``fileno()``, at 2.7 kB of kernel memory each; streams that are never polled have none. An eventfd polls
readable while its counter is above 0. It always polls writable: whoever writes without blocking gets EAGAIN and comes back.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Protocol

__all__ = ["Readiness"]


class _Readable(Protocol):
    @property
    def readable(self) -> bool: ...


class Readiness:
    """An Observer that keeps a descriptor's readability equal to ``source.readable``."""

    def __init__(self, source: _Readable) -> None:
        self._source = source
        self._signalled = False
        if hasattr(os, "eventfd"):
            self._descriptor = self._signal_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            # Platforms without eventfd: the reading end of a socketpair, one byte in it while readable.
            ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)
            self._descriptor, self._signal_descriptor = (end.detach() for end in ends)
        self.on_readable()

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def on_readable(self) -> None:
        """Bring the descriptor in line with the source."""
        readable = self._source.readable
        if readable is self._signalled:
            return
        self._signalled = readable
        with contextlib.suppress(BlockingIOError):
            if readable:
                os.write(self._signal_descriptor, (1).to_bytes(8, "little"))
            else:
                os.read(self._descriptor, 8)

    def on_writable(self) -> None:
        """Nothing to do: the descriptor always polls writable."""

    def close(self) -> None:
        """Free the descriptor."""
        for descriptor in {self._descriptor, self._signal_descriptor}:
            os.close(descriptor)
        self._descriptor = self._signal_descriptor = -1
