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
from typing import Any, Final, cast

from gevent import monkey

from astranet_gevent import AstraNetError, Stream, WrongThreadError

from .descriptors import identity, make_descriptor
from .dialling import PendingDial
from .watchers import Watcher

__all__ = ["RawSocket", "RawStream", "SocketKind", "by_number", "full_address", "of_number", "short_port", "would_block"]

# Of a socket: family, type and protocol as the program gave them.
SocketKind = tuple[int, int, int]

Address = tuple[str, int]

# Not gevent's: that one waits for the loop when a number is closed twice, and this runs where nothing may wait.
_close: Final = monkey.get_original("os", "close")

_WOULD_BLOCK = os.strerror(errno.EAGAIN)

#: Sockets whose number somebody has asked for, for those who make a socket object of it.
#: A plain dict, as every socket that the system makes is looked up here; a socket that ends takes itself out.
by_number: dict[int, weakref.ref[RawSocket]] = {}


class RawSocket:
    """What streams and listeners have in common: kind, addresses, and the number under which a program may poll them."""

    #: Whether gevent's class is hooked. Without hooks, after the last patch, it knows descriptors only.
    hooked = False

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

    @abstractmethod
    def watchers(self) -> tuple[Watcher, Watcher]:
        """What gevent waits with to read and to write."""

    @abstractmethod
    def dup(self) -> RawSocket:
        """Another one for the same thing, which ends with the last of them."""

    @abstractmethod
    def number(self) -> int:
        """A descriptor to poll, made when it is first asked for."""

    def fileno(self) -> int:
        """A number that is there already, else -1: gevent asks for it while it closes."""
        return self._number if RawSocket.hooked else self.number()

    def _register(self, number: int) -> None:
        """Be found by the number from now on."""
        by_number[number] = weakref.ref(self)
        self._identity = identity(number)

    def _unregister(self, number: int) -> None:
        # By now another one may be found by it. One whose references have been cleared is this one, at its end.
        known = by_number.get(number)
        if known is not None and known() in (None, self):
            del by_number[number]

    def is_under(self, number: int) -> bool:
        """Whether the number, under which this was registered, still stands for it: a program may have closed it."""
        try:
            return identity(number) == self._identity
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
            self._unregister(number)
            _close(number)

    def getsockname(self) -> Any:
        """The address of this end."""
        return full_address(self.family, self.own_address)

    def bind(self, address: Any) -> None:
        """It is bound, or connected, already."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

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


def would_block() -> BlockingIOError:
    """Of this very class: programs compare the class of what a socket raises then (redis-py does)."""
    return BlockingIOError(errno.EAGAIN, _WOULD_BLOCK)


class RawStream(RawSocket):
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
        # What a bind before the connect holds, for as long as this is open.

    def __repr__(self) -> str:
        return f"<socket object of the mesh, {self._stream!r}>"

    def open(self, stream: Stream, own_address: Address) -> None:
        """The dial has succeeded."""
        self._use(stream)
        self.own_address = own_address

    def _use(self, stream: Stream) -> None:
        stream.setblocking(False)
        stream.set_would_block(would_block)
        self._stream = stream
        self.recv, self.recv_into, self.send = stream.recv, stream.recv_into, stream.send

    def keep_number(self, number: int) -> None:
        """Answer ``fileno()`` with a number that the program has seen already; it is ours from now on."""
        os.dup2(self._stream.fileno(), number, inheritable=False)
        self._number = number
        self._register(number)

    def prepare_number(self) -> None:
        """Have the descriptor that ``keep_number`` copies. Raises OSError when the system has none left."""
        self._stream.fileno()

    def number(self) -> int:
        """A descriptor to poll, made when it is first asked for."""
        number = self._number
        if number < 0:
            polled = self._stream.fileno()
            if self._number >= 0:
                # The dial has taken over the number of the socket in whose place this is.
                return self._number
            number = self._polled = polled
            if number >= 0:
                self._register(number)
        return number

    def take_number(self) -> int:
        """Let go of the number that the program knows, still open: for something else to be put under it; -1 if there is none."""
        number, self._number = self._number, -1
        polled, self._polled = self._polled, -1
        known = number if number >= 0 else polled
        if known < 0 or not self.is_under(known):
            # The program may have closed it, and another file may have it by now.
            return -1
        self._unregister(known)
        if number < 0:
            self._stream.release_descriptor()
        return known

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
            self._unregister(known)
            os.dup2(number, known, inheritable=False)
            os.close(number)
        if polled not in (-1, known):
            os.close(polled)
        return known if known >= 0 else number

    def _check_open(self) -> None:
        if isinstance(cast("Any", self._stream), PendingDial):
            raise OSError(errno.EOPNOTSUPP, "the socket is still connecting: it cannot be duplicated or detached")

    def _end(self) -> None:
        self._unregister(self._polled)
        if self._shares is not None:
            self._shares[0] -= 1
            if self._shares[0] > 0:
                return
        try:
            self._stream.close()
        except WrongThreadError:
            # The last reference was let go of in another thread.
            self._stream.close_soon()


def of_number(number: Any) -> RawSocket | None:
    """The socket that a number was given out for, if it still stands for it."""
    found = by_number.get(number) if isinstance(number, int) else None
    raw = None if found is None else found()
    return raw if raw is not None and raw.is_under(number) else None


def short_port(port: int) -> int:
    """Ports of the mesh have 32 bits; what programs look at has 16, and is not 0."""
    return port % 65536 or 1


def full_address(family: int, address: Address) -> Any:
    """An address in the form of its family."""
    if family == socket.AF_INET6:
        host, port = address
        return host if ":" in host else f"::ffff:{host}", port, 0, 0
    return address
