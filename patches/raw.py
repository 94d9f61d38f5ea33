"""What takes the place of the system's socket inside a gevent socket: the same methods, none of which waits, over a stream or a listener.

gevent's own class does the waiting, the time-outs and everything else that programs see; it calls these, and waits with the watchers of
``watchers`` when they raise BlockingIOError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

from astranet_gevent import AstraNetError, Listener, Stream, WrongThreadError
from astranet_gevent.errors import StreamWouldBlockError
from astranet_gevent.transport.options import get_option, set_option

from .descriptors import make_descriptor, make_token
from .dialling import PendingDial
from .watchers import Watcher

__all__ = ["CARRIED_OPTIONS", "RawListener", "RawStream", "SocketKind", "by_number", "full_address", "listening", "short_port"]

# Of a socket: family, type and protocol as the program gave them.
SocketKind = tuple[int, int, int]

Address = tuple[str, int]

#: Answers of the system that programs may have set before the connect, and that matter or are asked for afterwards.
CARRIED_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_LINGER, 8),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0),
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, 0),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
)


_WOULD_BLOCK = os.strerror(errno.EAGAIN)

#: Sockets whose number somebody has asked for, for those who make a socket object of it.
by_number: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

#: Listeners that are offered, for a fork to find.
listening: weakref.WeakSet[RawListener] = weakref.WeakSet()


class _Raw:
    """What both have in common: kind, addresses, and the number under which a program may poll them."""

    __slots__ = ("__weakref__", "_number", "_open", "family", "own_address", "proto", "type")

    def __init__(self, kind: SocketKind, own_address: Address) -> None:
        self.family, self.type, self.proto = kind
        self.own_address = own_address
        # A number of our own, which is closed with the socket.
        self._number = -1
        self._open = True

    def fileno(self) -> int:
        """A number that is there already, else -1: gevent asks for it while it closes."""
        return self._number

    def _close_number(self) -> None:
        number, self._number = self._number, -1
        if number >= 0:
            by_number.pop(number, None)
            os.close(number)

    def getsockname(self) -> Any:
        """The address of this end."""
        return full_address(self.family, self.own_address)

    def gettimeout(self) -> float:
        """0.0: nothing here waits."""
        return 0.0

    timeout = property(gettimeout)

    def close(self) -> None:
        """End it; nothing the second time."""
        if self._open:
            self._open = False
            self._close_number()
            self._end()

    @abstractmethod
    def _end(self) -> None:
        """Close what is behind it."""

    def __del__(self) -> None:
        # As the system's socket: programs leave closing to the end of the last reference.
        if self._open:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            with contextlib.suppress(OSError, AstraNetError):
                self.close()


def _would_block() -> BlockingIOError:
    """Of this very class: programs compare the class of what a socket raises then (redis-py does)."""
    return BlockingIOError(errno.EAGAIN, _WOULD_BLOCK)


class RawStream(_Raw):
    """A stream, or one that is being dialled."""

    __slots__ = ("_polled", "_shares", "_stream", "peer_address", "recv", "recv_into", "send")

    # The stream's own: methods here that call them would add 0.3 us to every call; these take 200 bytes per connection.
    recv: Callable[..., bytes]
    recv_into: Callable[..., int]
    send: Callable[..., int]

    def __init__(self, stream: Stream | PendingDial, kind: SocketKind, own_address: Address, peer_address: Address) -> None:
        super().__init__(kind, own_address)
        # A PendingDial has what is used of it here.
        self._use(cast("Stream", stream))
        # The number of the stream's own descriptor, once somebody has asked for it.
        self._polled = -1
        # How many of these share the stream, made by the first dup().
        self._shares: list[int] | None = None
        self.peer_address = peer_address

    def __repr__(self) -> str:
        return f"<socket object of the mesh, {self._stream!r}>"

    def open(self, stream: Stream, own_address: Address) -> None:
        """The dial has succeeded."""
        self._use(stream)
        self.own_address = own_address

    def _use(self, stream: Stream) -> None:
        stream.setblocking(False)
        stream.set_would_block(_would_block)
        self._stream = stream
        self.recv, self.recv_into, self.send = stream.recv, stream.recv_into, stream.send

    def keep_number(self, number: int) -> None:
        """Answer ``fileno()`` with a number that the program has seen already; it is ours from now on."""
        os.dup2(self._stream.fileno(), number, inheritable=False)
        self._number = number

    def number(self) -> int:
        """A descriptor to poll, made when it is first asked for."""
        number = self._number
        if number < 0:
            number = self._polled = self._stream.fileno()
        if number >= 0:
            by_number[number] = self
        return number

    def watchers(self) -> tuple[Watcher, Watcher]:
        """What gevent waits with to read and to write."""
        # A dial that is under way becomes another object.
        source = self if isinstance(cast("Any", self._stream), PendingDial) else self._stream
        writer = Watcher(source.wake_when_writable, source.forget_writer, self._is_writable)
        return Watcher(source.wake_when_readable, source.forget_reader), writer

    def wake_when_readable(self, watcher: Watcher) -> None:
        self._stream.wake_when_readable(watcher)

    def wake_when_writable(self, watcher: Watcher) -> None:
        self._stream.wake_when_writable(watcher)

    def _is_writable(self) -> bool:
        return self._stream.writable

    def forget_reader(self, watcher: Watcher) -> None:
        self._stream.forget_reader(watcher)

    def forget_writer(self, watcher: Watcher) -> None:
        self._stream.forget_writer(watcher)

    def getpeername(self) -> Any:
        self._stream.getpeername()
        return full_address(self.family, self.peer_address)

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, None]:
        return self._stream.recvfrom(bufsize, flags)

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, None]:
        return self._stream.recvfrom_into(buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> Any:
        return self._stream.recvmsg(bufsize, ancbufsize, flags)

    def recvmsg_into(self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0) -> Any:
        return self._stream.recvmsg_into(buffers, ancbufsize, flags)

    def sendto(self, data: Any, *args: Any) -> int:
        return self._stream.sendto(data, *args)

    def sendmsg(self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None) -> int:
        return self._stream.sendmsg(buffers, ancdata, flags, address)

    def shutdown(self, how: int) -> None:
        self._stream.shutdown(how)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        return self._stream.getsockopt(level, option, buflen)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        self._stream.setsockopt(level, option, value, optlen)

    def bind(self, address: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def listen(self, backlog: int = 128) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _accept(self) -> Any:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def connect(self, address: Any) -> None:
        code = self.connect_ex(address)
        raise OSError(code, os.strerror(code))

    def connect_ex(self, address: Any) -> int:
        stream: Any = self._stream
        return stream.connect_again() if isinstance(stream, PendingDial) else errno.EISCONN

    def dup(self) -> RawStream:
        """Another one for the same stream, which is closed with the last of them."""
        self._check_open()
        if self._shares is None:
            self._shares = [1]
        self._shares[0] += 1
        other = RawStream(self._stream, (self.family, self.type, self.proto), self.own_address, self.peer_address)
        other._shares = self._shares
        return other

    def detach(self) -> int:
        """A descriptor of the system that carries the stream's bytes from now on; the number that ``fileno()`` said, if it was asked."""
        try:
            self._check_open()
            if self._shares is not None and self._shares[0] > 1:
                raise OSError(errno.EOPNOTSUPP, "the socket has been duplicated: close the others before it is detached")
        except OSError:
            # gevent has let go of this one already.
            self.close()
            raise
        self._open = False
        stream = self._stream
        # The number of the stream's own descriptor, open: to be reused or closed.
        polled = stream.release_descriptor()
        known, self._number = (self._number if self._number >= 0 else polled), -1
        number = make_descriptor(stream)
        if known >= 0:
            by_number.pop(known, None)
            os.dup2(number, known, inheritable=False)
            os.close(number)
        if polled not in (-1, known):
            os.close(polled)
        return known if known >= 0 else number

    def _check_open(self) -> None:
        if isinstance(cast("Any", self._stream), PendingDial):
            raise OSError(errno.EOPNOTSUPP, "the socket is still connecting: it cannot be duplicated or detached")

    def _end(self) -> None:
        by_number.pop(self._polled, None)
        if self._shares is not None:
            self._shares[0] -= 1
            if self._shares[0] > 0:
                return
        try:
            self._stream.close()
        except WrongThreadError:
            # The last reference was let go of in another thread.
            self._stream.close_soon()


class RawListener(_Raw):
    """A socket that is bound to a service; offered once ``listen`` has been called.

    After a fork, who forked and never looked whether somebody dials offers it no more, until it does look: it is a server that leaves that
    to its children. A child that looks offers it on a node of its own.
    """

    __slots__ = ("_backlog", "_bind", "_looked", "_options", "_peer_address", "listener")

    def __init__(
        self, kind: SocketKind, address: Address, bind: Callable[[int], Listener], peer_address: Callable[[int, int], Address]
    ) -> None:
        super().__init__(kind, address)
        self.listener: Listener | None = None
        # 0 until listen() is called.
        self._backlog = 0
        self._looked = False
        self._bind = bind
        self._peer_address = peer_address
        self._options: dict[tuple[int, int], Any] = {}

    def __repr__(self) -> str:
        return f"<socket object of the mesh, {self.listener!r}>"

    def watchers(self) -> tuple[Watcher, Watcher]:
        """What gevent waits with: a listener is never writable, and before it listens there is nothing to accept."""
        return Watcher(self._wait_stream, self._forget_acceptor), Watcher(_do_nothing, _do_nothing)

    def _wait_stream(self, watcher: Watcher) -> None:
        if self._backlog:
            self._look().on_ready(watcher.switch)

    def _forget_acceptor(self, watcher: Watcher) -> None:
        if self.listener is not None:
            self.listener.on_ready(None)

    def _look(self) -> Listener:
        """The listener, for who wants to know whether somebody dials. Raises OSError(EINVAL) before ``listen()``."""
        self._looked = True
        listener = self.listener
        if listener is None or listener.forked:
            if not self._backlog:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            listener = self._offer()
        return listener

    def _offer(self) -> Listener:
        self.listener = listener = self._bind(self._backlog)
        listener.setblocking(False)
        listening.add(self)
        if self._number >= 0:
            self.keep_number(self._number)
        return listener

    def withdraw_unless_looked(self) -> None:
        """Called after a fork, in the process that forked."""
        listener = self.listener
        if listener is not None and not self._looked:
            self.listener = None
            listening.discard(self)
            listener.close()

    def getpeername(self) -> Any:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def keep_number(self, number: int) -> None:
        """Answer ``fileno()`` with a number that the program has seen already; there is something to poll once the socket listens."""
        self._number = number
        if self.listener is not None:
            os.dup2(self.listener.fileno(), number, inheritable=False)

    def number(self) -> int:
        """A descriptor to poll.

        One of our own: when the node closes, its listeners and their descriptors go, and a server that still polls must not find another
        file under the number.
        """
        if self._backlog or self._number < 0:
            listener = self._look()
            if self._number < 0:
                self._number = os.dup(listener.fileno())
                by_number[self._number] = self
        return self._number

    def fileno(self) -> int:
        """The descriptor to poll: gevent's servers ask this object itself."""
        return self.number() if self._backlog else self._number

    def listen(self, backlog: int = 128) -> None:
        """Offer the service."""
        if self._backlog:
            return
        self._backlog = max(1, backlog)
        try:
            listener = self._offer()
        except BaseException:
            self._backlog = 0
            raise
        host, port = self.own_address
        self.own_address = host, port or short_port(listener.port)

    def _accept(self) -> tuple[RawStream, Any]:
        """The next stream, in the form in which gevent makes a socket of it."""
        try:
            stream, (node_id, port) = self._look().accept()
        except StreamWouldBlockError:
            raise _would_block() from None
        peer_address = self._peer_address(node_id, port)
        raw = RawStream(stream, (self.family, self.type, self.proto), self.own_address, peer_address)
        return raw, full_address(self.family, peer_address)

    def _refuse(self, *args: Any) -> Any:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    recv = recv_into = recvfrom = recvfrom_into = recvmsg = recvmsg_into = shutdown = _refuse

    def send(self, data: Any, flags: int = 0) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    sendmsg = sendto = send

    def connect(self, address: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def connect_ex(self, address: Any) -> int:
        return errno.EINVAL

    def bind(self, address: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        if (level, option) == (socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", None)):
            return int(self._backlog > 0)
        return get_option(self._options, level, option, buflen, lambda: 0)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        set_option(self._options, level, option, value)

    def detach(self) -> int:
        """A number of which a socket object can be made again."""
        return make_token(self)

    def _end(self) -> None:
        self._backlog = 0
        listening.discard(self)
        if self.listener is not None:
            self.listener.close()
        # With it goes whatever the patch holds for as long as this socket is bound.
        self._bind = _closed


def _do_nothing(watcher: Watcher) -> None:
    """Of a watcher for which there is never a reason."""


def _closed(backlog: int) -> Listener:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def short_port(port: int) -> int:
    """Ports of the mesh have 32 bits; what programs look at has 16, and is not 0."""
    return port % 65536 or 1


def full_address(family: int, address: Address) -> Any:
    """An address in the form of its family."""
    if family == socket.AF_INET6:
        return f"::ffff:{address[0]}", address[1], 0, 0
    return address
