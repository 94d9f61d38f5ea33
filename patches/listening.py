"""What takes the place of the system's socket that a program binds to a service: a listener-to-be, then a listener."""

from __future__ import annotations

import errno
import operator
import os
import socket
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from astranet_gevent import Listener, WrongThreadError
from astranet_gevent.errors import StreamWouldBlockError
from astranet_gevent.threads import get_ident
from astranet_gevent.transport.options import get_option, set_option

from .descriptors import make_descriptor, make_token
from .raw import Address, RawSocket, RawStream, SocketKind, full_address, short_port, would_block
from .watchers import Watcher

__all__ = ["Offer", "RawListener", "make_placeholder", "withdraw_unused"]

# What forks to start programs: gevent's subprocess, the interpreter's with preexec_fn, os.spawn*().
_STARTERS: Final = frozenset((("gevent.subprocess", "_execute_child"), ("subprocess", "_execute_child"), ("os", "_spawnvef")))

# What is offered; the last that has a part in it takes it out. A plain set is copied in one go, whichever thread forks.
_offered: set[Offer] = set()


def withdraw_unused() -> None:
    """After a fork, in the process that forked: a server that leaves accepting to its children must not be dialled itself."""
    if not _becomes_another_program():
        for offer in list(_offered):
            offer.withdraw_unless_looked()


def _becomes_another_program() -> bool:
    """Whether this fork is half of starting a program: such a child accepts nothing."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _STARTERS:
            return True
        frame = frame.f_back
    return False


class Offer:
    """A service that is bound, and offered once ``listen`` has been called; shared by duplicates of one socket.

    After a fork, who forked and never looked whether somebody dials offers it no more, until it does look: it is a server that leaves that
    to its children. A child that looks offers it on a node of its own.
    """

    __slots__ = ("_bind", "_looked", "_open", "_raws", "_thread", "_waiting", "backlog", "listener", "options", "peer_address")

    def __init__(self, bind: Callable[[int], Listener], peer_address: Callable[[int, int], Address]) -> None:
        self.listener: Listener | None = None
        #: 0 until it is offered.
        self.backlog = 0
        self.options: dict[tuple[int, int], Any] = {}
        #: ``(node id, port)`` as the address of whoever dials.
        self.peer_address = peer_address
        self._looked = False
        self._thread = get_ident()
        self._bind = bind
        # How many are open, and which: they have it, and it must not keep them from ending.
        self._open = 0
        self._raws: weakref.WeakSet[RawListener] = weakref.WeakSet()
        # Of each socket object of this that waits.
        self._waiting: dict[Watcher, None] = {}

    def join(self, raw: RawListener) -> None:
        """One more that has a part in it."""
        self._raws.add(raw)
        self._open += 1

    def leave(self, raw: RawListener) -> None:
        """One less: the last ends the listener."""
        self._raws.discard(raw)
        self._open -= 1
        if not self._open:
            self.backlog = 0
            _offered.discard(self)
            if self.listener is not None:
                try:
                    self.listener.close()
                except WrongThreadError:
                    # The last reference was let go of in another thread.
                    self.listener.close_soon()

    def wait(self, watcher: Watcher) -> None:
        """Have a watcher told when somebody dials."""
        if self.backlog:
            self._waiting[watcher] = None
            self.look().on_ready(self._wake)

    def _wake(self) -> None:
        for watcher in list(self._waiting):
            watcher.switch()

    def forget(self, watcher: Watcher) -> None:
        """It does not wait any more."""
        self._waiting.pop(watcher, None)
        if self.listener is not None and not self._waiting:
            self.listener.on_ready(None)

    def look(self) -> Listener:
        """The listener, for who wants to know whether somebody dials. Raises OSError(EINVAL) before ``listen()``."""
        self._looked = True
        listener = self.listener
        if listener is None or listener.forked:
            if not self.backlog:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            listener = self._make()
        return listener

    def _make(self) -> Listener:
        listener = self._bind(self.backlog)
        try:
            listener.setblocking(False)
            for raw in self._raws:
                raw.poll(listener)
        except BaseException:
            # There was no descriptor left to poll it: then it is not offered either.
            listener.close()
            raise
        self.listener = listener
        self._thread = get_ident()
        _offered.add(self)
        return listener

    def start(self, backlog: int) -> None:
        """Offer the service."""
        self.backlog = backlog
        try:
            listener = self._make()
        except BaseException:
            self.backlog = 0
            raise
        for raw in self._raws:
            host, port = raw.own_address
            raw.own_address = host, port or short_port(listener.port)

    def withdraw_unless_looked(self) -> None:
        """Called after a fork, in the process that forked, whichever thread it was."""
        listener = self.listener
        if self._thread != get_ident():
            # It is not for this one to touch.
            return
        # One that somebody has dialled already will be accepted from here: who leaves that to children forks at once.
        if listener is not None and not self._looked and not listener.readable:
            self.listener = None
            _offered.discard(self)
            listener.close()


class RawListener(RawSocket):
    """A socket that is bound to a service."""

    __slots__ = ("_offer",)

    def __init__(self, kind: SocketKind, address: Address, offer: Offer) -> None:
        super().__init__(kind, address)
        self._offer = offer
        offer.join(self)

    def __repr__(self) -> str:
        return f"<socket object of the mesh, {self._offer.listener!r}>"

    def watchers(self) -> tuple[Watcher, Watcher]:
        """What gevent waits with: a listener is never writable, and before it listens there is nothing to accept."""
        return Watcher(self._offer.wait, self._offer.forget), Watcher(_do_nothing, _do_nothing)

    @property
    def offered(self) -> bool:
        """Whether ``listen()`` has been called."""
        return self._offer.backlog > 0

    @property
    def options(self) -> dict[tuple[int, int], Any]:
        """What has been set with ``setsockopt``."""
        return self._offer.options

    def getpeername(self) -> Any:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def keep_number(self, number: int) -> None:
        """Answer ``fileno()`` with a number that the program has seen already; there is something to poll once the socket listens."""
        self._number = number
        if self._offer.listener is not None:
            self.poll(self._offer.listener)
        else:
            self._register(number)

    def poll(self, listener: Listener) -> None:
        """Have it polled under the number that the program has seen, if it has."""
        if self._number >= 0:
            os.dup2(listener.fileno(), self._number, inheritable=False)
            self._register(self._number)

    def number(self) -> int:
        """A descriptor to poll.

        One of our own: when the node closes, its listeners and their descriptors go, and a server that still polls must not find another
        file under the number.
        """
        listener = self._offer.look() if self.offered else None
        if self._number < 0:
            self._number = make_placeholder() if listener is None else os.dup(listener.fileno())
            self._register(self._number)
        return self._number

    def fileno(self) -> int:
        """The descriptor to poll: gevent's servers ask this object itself."""
        return self.number() if self._open and self.offered else super().fileno()

    def listen(self, backlog: int = 128) -> None:
        """Offer the service."""
        backlog = operator.index(backlog)
        if not -(2**31) <= backlog < 2**31:
            raise OverflowError(f"listen() takes a C int, not {backlog}")
        if self.offered:
            return
        if not self._open or (self._number >= 0 and not self.is_under(self._number)):
            # The program has closed it, and another file may have the number by now.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._offer.start(max(1, backlog))

    def _accept(self) -> tuple[RawStream | int, Any]:
        """The next stream, in the form in which gevent makes a socket of it: as a descriptor when that is all that it knows."""
        offer = self._offer
        if not self._open:
            # By another socket object of the same number.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            stream, (node_id, port) = offer.look().accept()
        except StreamWouldBlockError:
            raise would_block() from None
        try:
            peer_address = offer.peer_address(node_id, port)
            if not RawSocket.hooked:
                return make_descriptor(stream), full_address(self.family, peer_address)
            raw = RawStream(stream, (self.family, self.type, self.proto), self.own_address, peer_address)
            for (level, option), value in offer.options.items():
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
        return errno.EISCONN if self.offered else errno.EINVAL

    @property
    def known_number(self) -> int:
        """The number that the program has seen, if any, else -1."""
        return self._number

    def give_up(self) -> None:
        """For a stream to take this one's place, and its number."""
        self._number = -1
        self._open = False
        self._offer.leave(self)

    def lend_number(self) -> None:
        """A stream that is being dialled has the number that the program has seen, if any."""
        self._number = -1

    def take_number_back(self, number: int, placeholder: int) -> None:
        """There is nothing to be read under it again: ``placeholder``, which is closed, stands there."""
        os.dup2(placeholder, number, inheritable=False)
        os.close(placeholder)
        self.keep_number(number)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        if (level, option) == (socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", None)):
            return int(self.offered)
        return get_option(self._offer.options, level, option, buflen, lambda: 0)

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        set_option(self._offer.options, level, option, value)

    def detach(self) -> int:
        """A number of which a socket object can be made again."""
        if self._leave_to_others():
            return self.number()
        self._owners = 1
        return make_token(self)

    def dup(self) -> RawListener:
        """Another one for the same service, which is offered until the last of them is closed."""
        return RawListener((self.family, self.type, self.proto), self.own_address, self._offer)

    def _end(self) -> None:
        self._offer.leave(self)


def make_placeholder() -> int:
    """A number for a socket that does not listen yet: there is nothing to be read under it."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def _do_nothing(watcher: Watcher) -> None:
    """Of a watcher for which there is never a reason."""
