"""What takes the place of the system's socket that a program binds to a service: a listener-to-be, then a listener."""

from __future__ import annotations

import errno
import operator
import os
import socket
import weakref
from collections.abc import Callable
from typing import Any

from astranet_gevent import Listener, WrongThreadError
from astranet_gevent.errors import StreamWouldBlockError
from astranet_gevent.transport.options import get_option, set_option

from .descriptors import make_descriptor, make_token
from .raw import Address, RawSocket, RawStream, SocketKind, full_address, short_port, would_block
from .watchers import Watcher

__all__ = ["RawListener", "listening"]

#: Listeners that are offered, for a fork to find.
listening: weakref.WeakSet[RawListener] = weakref.WeakSet()


class RawListener(RawSocket):
    """A socket that is bound to a service; offered once ``listen`` has been called.

    After a fork, who forked and never looked whether somebody dials offers it no more, until it does look: it is a server that leaves that
    to its children. A child that looks offers it on a node of its own.
    """

    __slots__ = ("_backlog", "_bind", "_looked", "_peer_address", "_waiting", "listener", "options")

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
        # Of each socket object of this that waits.
        self._waiting: dict[Watcher, None] = {}
        self.options: dict[tuple[int, int], Any] = {}

    def __repr__(self) -> str:
        return f"<socket object of the mesh, {self.listener!r}>"

    def watchers(self) -> tuple[Watcher, Watcher]:
        """What gevent waits with: a listener is never writable, and before it listens there is nothing to accept."""
        return Watcher(self._wait_stream, self._forget_acceptor), Watcher(_do_nothing, _do_nothing)

    def _wait_stream(self, watcher: Watcher) -> None:
        if self._backlog:
            self._waiting[watcher] = None
            self._look().on_ready(self._wake)

    def _wake(self) -> None:
        for watcher in list(self._waiting):
            watcher.switch()

    def _forget_acceptor(self, watcher: Watcher) -> None:
        self._waiting.pop(watcher, None)
        if self.listener is not None and not self._waiting:
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
        # One that somebody has dialled already will be accepted from here: who leaves that to children forks at once.
        if listener is not None and not self._looked and not listener.readable:
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
        return self.number() if self._backlog else super().fileno()

    def listen(self, backlog: int = 128) -> None:
        """Offer the service."""
        backlog = operator.index(backlog)
        if not -(2**31) <= backlog < 2**31:
            raise OverflowError(f"listen() takes a C int, not {backlog}")
        if self._backlog:
            return
        if self._number >= 0 and not self.is_under(self._number):
            # The program has closed it, and another file may have it by now.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._backlog = max(1, backlog)
        try:
            listener = self._offer()
        except BaseException:
            self._backlog = 0
            raise
        host, port = self.own_address
        self.own_address = host, port or short_port(listener.port)

    def _accept(self) -> tuple[RawStream | int, Any]:
        """The next stream, in the form in which gevent makes a socket of it: as a descriptor when that is all that it knows."""
        try:
            stream, (node_id, port) = self._look().accept()
        except StreamWouldBlockError:
            raise would_block() from None
        try:
            peer_address = self._peer_address(node_id, port)
            if not RawSocket.hooked:
                return make_descriptor(stream), full_address(self.family, peer_address)
            raw = RawStream(stream, (self.family, self.type, self.proto), self.own_address, peer_address)
            for (level, option), value in self.options.items():
                raw.setsockopt(level, option, value)
        except BaseException:
            stream.close()
            raise
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

    def lend_number(self) -> None:
        """A stream that is being dialled has the number that the program has seen, if any."""
        self._number = -1

    def take_number_back(self, number: int) -> None:
        """There is nothing to be read under it again."""
        placeholder = _make_placeholder()
        os.dup2(placeholder, number, inheritable=False)
        os.close(placeholder)
        self.keep_number(number)

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
            try:
                self.listener.close()
            except WrongThreadError:
                # The last reference was let go of in another thread.
                self.listener.close_soon()
        # With it goes whatever the patch holds for as long as this socket is bound.
        self._bind = _closed


def _make_placeholder() -> int:
    """A number for a socket that does not listen yet: there is nothing to be read under it."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def _do_nothing(watcher: Watcher) -> None:
    """Of a watcher for which there is never a reason."""


def _closed(backlog: int) -> Listener:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
