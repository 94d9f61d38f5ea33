"""Listener: accepted streams of one port, waiting for the application; shaped like a listening socket."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from gevent import getcurrent
from gevent.hub import Hub

from ..errors import ForkedError, StreamClosedError, StreamTimeout, StreamWouldBlockError, WrongThreadError
from ..threads import get_ident
from .options import get_option, set_option
from .readiness import Readiness
from .stream import Stream, check_timeout

__all__ = ["Listener"]

_EXPIRED: Final = object()


class Listener:
    """Made by ``bind()``. Streams that peers dialled wait here, at most ``backlog`` of them: further dials are refused.

    Several greenlets may accept at once. ``close()`` resets what waits and gives EBADF to who accepts.
    """

    family: Final = socket.AF_INET
    type: Final = socket.SOCK_STREAM
    proto: Final = socket.IPPROTO_TCP

    def __init__(self, hub: Hub, node_id: int, name: str, port: int, backlog: int, on_close: Callable[[Listener], None]) -> None:
        self.name = name
        self.port = port
        self.backlog = backlog
        self.closed = False
        self.forked = False
        self._hub = hub
        self._thread = get_ident()
        self._node_id = node_id
        self._on_close = on_close
        self._timeout: float | None = socket.getdefaulttimeout()
        self._streams: deque[Stream] = deque()
        self._waiters: deque[Any] = deque()
        self._wake_scheduled = False
        self._callback: Callable[[], None] | None = None
        self._options: dict[tuple[int, int], Any] = {}
        self._readiness: Readiness | None = None

    def offer(self, stream: Stream) -> bool:
        """Queue a stream; False when the backlog is full."""
        if self.closed or len(self._streams) >= self.backlog:
            return False
        self._streams.append(stream)
        self._notify()
        return True

    def _notify(self) -> None:
        if self._readiness is not None:
            self._readiness.on_readable()
        if not self._wake_scheduled and (self._waiters or self._callback is not None):
            self._wake_scheduled = True
            self._hub.loop.run_callback(self._wake)

    def _wake(self) -> None:
        self._wake_scheduled = False
        if self._callback is not None:
            self._callback()
        while self._waiters and (self._streams or self.closed):
            self._waiters.popleft().switch()

    def accept(self) -> tuple[Stream, tuple[int, int]]:
        """Wait for a stream: ``(stream, (node_id, port))``. Raises StreamTimeout, StreamClosedError, BlockingIOError."""
        self._check()
        timeout = self._timeout
        deadline = time.monotonic() + timeout if timeout else None
        while not self._streams:
            if self.closed:
                raise StreamClosedError("the listener is closed")
            if timeout == 0:
                raise StreamWouldBlockError
            self._wait(deadline)
        return self.accept_nowait()

    def accept_nowait(self) -> tuple[Stream, tuple[int, int]]:
        """As ``accept``, without waiting: BlockingIOError when none is there."""
        self._check()
        if self.closed:
            raise StreamClosedError("the listener is closed")
        if not self._streams:
            raise StreamWouldBlockError
        stream = self._streams.popleft()
        if self._readiness is not None:
            self._readiness.on_readable()
        return stream, (int.from_bytes(stream.key[8:16], "big"), int.from_bytes(stream.key[20:], "big"))

    def _wait(self, deadline: float | None) -> None:
        current = getcurrent()
        timer = None
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise StreamTimeout
            timer = self._hub.loop.timer(left)
            timer.start(self._expire, current, update=True)
        self._waiters.append(current)
        try:
            if self._hub.switch() is _EXPIRED:
                raise StreamTimeout
        except BaseException:
            # Woken by somebody else: a stream that was meant for this greenlet goes to the next one.
            if current in self._waiters:
                self._waiters.remove(current)
            self._notify()
            raise
        finally:
            if timer is not None:
                timer.close()

    def _expire(self, waiter: Any) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter.switch(_EXPIRED)

    def on_ready(self, callback: Callable[[], None] | None) -> None:
        """Have ``callback`` called in the hub when a stream waits or the listener closes; it must not wait. None ends that."""
        self._callback = callback
        if callback is not None and (self._streams or self.closed):
            self._notify()

    @property
    def readable(self) -> bool:
        """Whether ``accept`` would return (or raise) at once."""
        return bool(self._streams) or self.closed

    def __iter__(self) -> Iterator[tuple[Stream, tuple[int, int]]]:
        """Accept until the listener is closed."""
        while not self.closed:
            try:
                yield self.accept()
            except StreamClosedError:
                return

    def close(self) -> None:
        """Stop listening: waiting streams are reset, who accepts gets EBADF."""
        if self.closed:
            return
        if not self.forked and get_ident() != self._thread:
            self._check()
        self.closed = True
        self._on_close(self)
        while self._streams:
            self._streams.popleft().abort("the listener was closed")
        if self._readiness is not None:
            self._readiness.close()
            self._readiness = None
        self._notify()

    def close_soon(self) -> None:
        """As ``close()``, from any thread: for finalizers, which run wherever the last reference is let go of."""
        self._hub.loop.run_callback_threadsafe(self.close)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check(self) -> None:
        if self.forked:
            raise ForkedError("the node was started before a fork: start a new one in the child")
        if get_ident() != self._thread:
            raise WrongThreadError(f"{self!r} belongs to another thread; start a node of its own in this thread")

    # -- shape of a socket -----------------------------------------------------------------------------------------------------

    @property
    def timeout(self) -> float | None:
        """Seconds for each ``accept``; None waits for ever, 0.0 does not wait."""
        return self._timeout

    def gettimeout(self) -> float | None:
        """The timeout in seconds, None for none."""
        return self._timeout

    def settimeout(self, value: float | None) -> None:
        """Set the timeout in seconds. Raises ValueError below 0."""
        self._timeout = None if value is None else check_timeout(value)

    def setblocking(self, flag: bool) -> None:
        """``settimeout(None)`` or ``settimeout(0.0)``."""
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """Whether ``accept`` may wait."""
        return self._timeout != 0.0

    def getsockname(self) -> tuple[int, int]:
        """``(node_id, port)``."""
        if self.closed:
            raise StreamClosedError
        return self._node_id, self.port

    def getpeername(self) -> tuple[int, int]:
        """A listener has no peer: always ENOTCONN."""
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        """What was set, or what a listening TCP socket would answer."""
        if (level, option) == (socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", None)):
            return 1
        return get_option(self._options, level, option, buflen, lambda: 0)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        """Remember an option."""
        set_option(self._options, level, option, value)

    def fileno(self) -> int:
        """A descriptor that polls as readable while a stream waits; -1 once closed."""
        if self.closed:
            return -1
        self._check()
        if self._readiness is None:
            self._readiness = Readiness(self)
        return self._readiness.fileno()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._streams)} of {self.backlog} waiting"
        return f"<Listener {self.name!r} port {self.port}: {state}>"
