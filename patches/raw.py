"""What takes the place of the system's socket inside a gevent socket: the same methods, none of which waits, over a stream or a listener.

gevent's own class does the waiting, the time-outs and everything else that programs see; it calls these, and waits with the watchers of
``watchers`` when they raise BlockingIOError.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import operator
import os
import socket
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from gevent import monkey

from astranet_gevent import AstraNetError, Listener, Stream, WrongThreadError
from astranet_gevent.errors import StreamWouldBlockError
from astranet_gevent.transport.options import get_option, set_option

from .descriptors import make_descriptor, make_token
from .dialling import PendingDial
from .watchers import Watcher

__all__ = ["RawListener", "RawStream", "SocketKind", "by_number", "changed_options", "full_address", "listening", "of_number", "short_port"]

# Of a socket: family, type and protocol as the program gave them.
SocketKind = tuple[int, int, int]

Address = tuple[str, int]

# Options that programs set before the connect or the bind, and that matter or are asked for afterwards, by name, as platforms differ.
_CARRIED: Final = {
    socket.SOL_SOCKET: ("SO_KEEPALIVE", "SO_LINGER", "SO_OOBINLINE", "SO_RCVBUF", "SO_REUSEADDR", "SO_REUSEPORT", "SO_SNDBUF"),
    socket.IPPROTO_TCP: ("TCP_KEEPCNT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_NODELAY", "TCP_USER_TIMEOUT"),
    socket.IPPROTO_IPV6: ("IPV6_V6ONLY",),
}
_CARRIED_OPTIONS: Final = tuple(
    (int(level), int(getattr(socket, name)), 8 if name == "SO_LINGER" else 0)
    for level, names in _CARRIED.items()
    for name in names
    if hasattr(socket, name)
)

# What a socket of the system answers that nobody has changed, by family.
_pristine: dict[int, dict[tuple[int, int], Any]] = {}


def changed_options(system: Any) -> dict[tuple[int, int], Any]:
    """What a program has set of a socket of the system, as far as it is carried over."""
    family = system.family
    before = _pristine.get(family)
    if before is None:
        fresh = _socket.socket(family, socket.SOCK_STREAM)
        before = _pristine[family] = _read_options(fresh)
        fresh.close()
    return {key: value for key, value in _read_options(system).items() if value != before.get(key)}


def _read_options(system: Any) -> dict[tuple[int, int], Any]:
    found = {}
    for level, option, size in _CARRIED_OPTIONS:
        if level != socket.IPPROTO_IPV6 or system.family == socket.AF_INET6:
            found[level, option] = system.getsockopt(level, option, size) if size else system.getsockopt(level, option)
    return found


# Not gevent's: that one waits for the loop when a number is closed twice, and this runs where nothing may wait.
_close: Final = monkey.get_original("os", "close")

_WOULD_BLOCK = os.strerror(errno.EAGAIN)

#: Sockets whose number somebody has asked for, for those who make a socket object of it.
by_number: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

#: Listeners that are offered, for a fork to find.
listening: weakref.WeakSet[RawListener] = weakref.WeakSet()


class _Raw:
    """What both have in common: kind, addresses, and the number under which a program may poll them."""

    __slots__ = ("__weakref__", "_identity", "_number", "_open", "_owners", "family", "own_address", "proto", "type")

    def __init__(self, kind: SocketKind, own_address: Address) -> None:
        self.family, self.type, self.proto = kind
        self.own_address = own_address
        # A number of our own, which is closed with the socket.
        self._number = -1
        self._open = True
        # What stands under the number that ``by_number`` has of this.
        self._identity = (0, 0)
        # How many socket objects were made of the number, this one's included; the first to close it ends all of them.
        self._owners = 1

    def fileno(self) -> int:
        """A number that is there already, else -1: gevent asks for it while it closes."""
        return self._number

    def _register(self, number: int) -> None:
        """Be found by the number from now on."""
        by_number[number] = self
        self._identity = _identity(number)

    def is_under(self, number: int) -> bool:
        """Whether the number, under which this was registered, still stands for it: a program may have closed it."""
        try:
            return _identity(number) == self._identity
        except OSError:
            return False

    def add_owner(self) -> None:
        """Another socket object has been made of the number."""
        self._owners += 1

    def _leave_to_others(self) -> bool:
        """One owner detaches: whether others go on, to whom it leaves everything."""
        self._owners -= 1
        return self._owners > 0

    def _close_number(self) -> None:
        number, self._number = self._number, -1
        if number >= 0:
            by_number.pop(number, None)
            _close(number)

    def getsockname(self) -> Any:
        """The address of this end."""
        return full_address(self.family, self.own_address)

    def gettimeout(self) -> float:
        """0.0: nothing here waits."""
        return 0.0

    timeout = property(gettimeout)

    def close(self) -> None:
        """End it; nothing the second time, but EBADF for another owner of the number."""
        if self._open:
            self._open = False
            try:
                self._end()
            finally:
                # Raises when the program has closed the number itself.
                self._close_number()
        elif self._owners > 1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

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

    __slots__ = ("_polled", "_shares", "_stream", "bound", "peer_address", "recv", "recv_into", "send")

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
        # What a bind before the connect holds, for as long as this is open.
        self.bound: Any = None

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
        self._register(number)

    def number(self) -> int:
        """A descriptor to poll, made when it is first asked for."""
        number = self._number
        if number < 0:
            number = self._polled = self._stream.fileno()
            if number >= 0:
                self._register(number)
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
        if self._leave_to_others():
            return self.number()
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
        self.bound = None
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

    __slots__ = ("_backlog", "_bind", "_looked", "_peer_address", "listener", "options")

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
        self.options: dict[tuple[int, int], Any] = {}

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

    @property
    def offered(self) -> bool:
        """Whether ``listen()`` has been called."""
        return self._backlog > 0

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
        self._register(number)

    def number(self) -> int:
        """A descriptor to poll.

        One of our own: when the node closes, its listeners and their descriptors go, and a server that still polls must not find another
        file under the number.
        """
        if not self._backlog:
            if self._number < 0:
                self._number = _make_placeholder()
                self._register(self._number)
        else:
            listener = self._look()
            if self._number < 0:
                self._number = os.dup(listener.fileno())
                self._register(self._number)
        return self._number

    def fileno(self) -> int:
        """The descriptor to poll: gevent's servers ask this object itself."""
        return self.number() if self._backlog else self._number

    def listen(self, backlog: int = 128) -> None:
        """Offer the service."""
        backlog = operator.index(backlog)
        if not -(2**31) <= backlog < 2**31:
            raise OverflowError(f"listen() takes a C int, not {backlog}")
        if self._backlog:
            return
        if self._number >= 0:
            # Raises when the program has closed it: what another file may have by now must not be overwritten.
            os.fstat(self._number)
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
        for (level, option), value in self.options.items():
            raw.setsockopt(level, option, value)
        return raw, full_address(self.family, peer_address)

    def _refuse(self, *args: Any) -> Any:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    recv = recv_into = recvfrom = recvfrom_into = recvmsg = recvmsg_into = shutdown = _refuse

    def send(self, data: Any, flags: int = 0) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    sendmsg = sendto = send

    def connect(self, address: Any) -> None:
        """Nothing but the mesh is connected to from what is bound there; that one the hooks connect."""
        code = self.connect_ex(address)
        raise OSError(code, os.strerror(code))

    def connect_ex(self, address: Any) -> int:
        return errno.EISCONN if self._backlog else errno.EINVAL

    def give_up(self) -> tuple[int, Any]:
        """For a stream to take this one's place: the number that the program has seen, if any, else -1; and what the bind holds."""
        number, self._number = self._number, -1
        bound = self._bind
        self.close()
        return number, bound

    def bind(self, address: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        if (level, option) == (socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", None)):
            return int(self._backlog > 0)
        return get_option(self.options, level, option, buflen, lambda: 0)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        set_option(self.options, level, option, value)

    def detach(self) -> int:
        """A number of which a socket object can be made again."""
        if self._leave_to_others():
            return self.number()
        self._owners = 1
        return make_token(self)

    def _end(self) -> None:
        self._backlog = 0
        listening.discard(self)
        if self.listener is not None:
            self.listener.close()
        # With it goes whatever the patch holds for as long as this socket is bound.
        self._bind = _closed


def of_number(number: Any) -> RawStream | RawListener | None:
    """The socket that a number was given out for, if it still stands for it."""
    raw = by_number.get(number) if by_number and isinstance(number, int) else None
    return raw if raw is not None and raw.is_under(number) else None


def _identity(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def _make_placeholder() -> int:
    """A number for a socket that does not listen yet: there is nothing to be read under it."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


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
        host, port = address
        return host if ":" in host else f"::ffff:{host}", port, 0, 0
    return address
