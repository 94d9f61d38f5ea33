"""What a socket holds between connect() and its outcome."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket

from astranet_gevent import AstraNetError, Stream
from astranet_gevent.transport.options import get_option, set_option
from astranet_gevent.transport.readiness import Readiness

__all__ = ["PendingDial", "cancel_wait_ex"]

#: The OSError(EBADF) of gevent's own sockets; no stub tells of it.
cancel_wait_ex: Any = vars(gevent.socket)["cancel_wait_ex"]


class _Ended(gevent.GreenletExit):
    """Ends a dial whose socket has been closed, in the greenlet that waits for the answer."""


class PendingDial:
    """Has the methods of a stream that ``RawStream`` uses, and answers as a TCP socket that is connecting, or that could not.

    ``on_open(stream)`` is called in the greenlet that dials when the dial has succeeded.
    """

    def __init__(self) -> None:
        self.readable = self.writable = False
        self._error: OSError | None = None
        self._reader: Any = None
        self._writer: Any = None
        self._readiness: Readiness | None = None
        self._options: dict[tuple[int, int], Any] = {}
        self._closed = False
        #: Called when the number is first asked for.
        self.on_polled: Callable[[], None] | None = None
        # The greenlet that dials, while it does, and its hub: whoever closes may have another.
        self._greenlet: Any = None
        self._hub = gevent.get_hub()

    def start(self, dial: Callable[[], Stream], on_open: Callable[[Stream], None]) -> None:
        """Dial in a greenlet of its own."""
        self._greenlet = gevent.spawn(self._run, dial, on_open)

    def _run(self, dial: Callable[[], Stream], on_open: Callable[[Stream], None]) -> None:
        # Whoever uses the socket is told.
        with contextlib.suppress(OSError, AstraNetError):
            self.wait(dial, on_open)

    def wait(self, dial: Callable[[], Stream], on_open: Callable[[Stream], None]) -> None:
        """Dial, and raise what ``dial`` raises; OSError(EBADF), as gevent's sockets do, when this is closed meanwhile."""
        self._greenlet = gevent.getcurrent()
        try:
            stream = dial()
            try:
                # Closed after the answer had come, when it was too late to end the dial.
                if self._closed:
                    raise _Ended
                self._open(stream, on_open)
            except BaseException:
                stream.close()
                raise
        except _Ended:
            raise cancel_wait_ex() from None
        except BaseException as error:
            self._fail(error if isinstance(error, OSError) else OSError(errno.ECONNABORTED, str(error)))
            raise
        finally:
            self._greenlet = None

    def _end(self) -> None:
        # Unless it has ended by itself meanwhile, and its greenlet does something else.
        if self._greenlet is not None:
            self._greenlet.throw(_Ended)

    def _open(self, stream: Stream, on_open: Callable[[Stream], None]) -> None:
        for (level, option), value in self._options.items():
            stream.setsockopt(level, option, value)
        if self._readiness is not None:
            stream.keep_readiness(self._readiness)
            self._readiness = None
        on_open(stream)
        # Who waits with this one goes on with the stream: a new look is all that a wake-up promises.
        for waiter, wake in ((self._reader, stream.wake_when_readable), (self._writer, stream.wake_when_writable)):
            if waiter is not None:
                wake(waiter)

    def _fail(self, error: OSError) -> None:
        self._error = error
        self.readable = self.writable = True
        if self._readiness is not None:
            self._readiness.move(self)
        loop = gevent.get_hub().loop
        for waiter in (self._reader, self._writer):
            if waiter is not None:
                loop.run_callback(waiter.switch)
        self._reader = self._writer = None

    # -- as a stream -----------------------------------------------------------------------------------------------------------

    def setblocking(self, flag: bool) -> None:
        """Nothing here waits."""

    def set_would_block(self, make_error: Callable[[], OSError]) -> None:
        """What is raised here is what a system's socket raises."""

    def fileno(self) -> int:
        if self._readiness is None:
            self._readiness = readiness = Readiness(self, busy=not self.writable)
            try:
                if self.on_polled is not None:
                    self.on_polled()
            except BaseException:
                self._readiness = None
                readiness.close()
                raise
        return self._readiness.fileno()

    def wake_when_readable(self, waiter: Any) -> None:
        self._reader = waiter
        if self.readable:
            gevent.get_hub().loop.run_callback(waiter.switch)

    def wake_when_writable(self, waiter: Any) -> None:
        self._writer = waiter
        if self.writable:
            gevent.get_hub().loop.run_callback(waiter.switch)

    def forget_reader(self, waiter: Any) -> None:
        if self._reader is waiter:
            self._reader = None

    def forget_writer(self, waiter: Any) -> None:
        if self._writer is waiter:
            self._writer = None

    def _refuse(self, *args: Any) -> Any:
        if not self.writable:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        error, self._error = self._error, None
        raise error or OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    recv = recv_into = recvfrom = recvfrom_into = recvmsg = recvmsg_into = send = sendmsg = sendto = _refuse

    def release_descriptor(self) -> int:
        """Give away the number that ``fileno()`` gave, to be reused or closed; -1 if it was never asked."""
        readiness, self._readiness = self._readiness, None
        return -1 if readiness is None else readiness.release()

    def getpeername(self) -> Any:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def shutdown(self, how: int) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def connect_again(self) -> int:
        """The errno of another connect()."""
        if not self.writable:
            return errno.EALREADY
        return self._take_error() or errno.ECONNABORTED

    def _take_error(self) -> int:
        error, self._error = self._error, None
        if error is None:
            return 0
        # A name that cannot be found has an errno of another kind.
        return errno.EHOSTUNREACH if isinstance(error, socket.gaierror) else error.errno or errno.ETIMEDOUT

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        return get_option(self._options, level, option, buflen, self._take_error)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        set_option(self._options, level, option, value)

    def close(self) -> None:
        # A dial that is ended this way tells the far node, and takes its stream out of every table.
        self._closed = True
        if self._greenlet is not None:
            loop = self._hub.loop
            (loop.run_callback if gevent.get_hub() is self._hub else loop.run_callback_threadsafe)(self._end)
        if self._readiness is not None:
            self._readiness.close()
            self._readiness = None
