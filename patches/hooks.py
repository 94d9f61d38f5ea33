"""The hooks in gevent's socket class and in its hubs: put in with the first patch, taken out with the last.

gevent's socket is a shell around a non-blocking socket (``_sock``) and two watchers. Where an address is the mesh's, these three are
exchanged for ours; everything else, and every other socket, stays gevent's. These are gevent's own private names: docs/patches.md says with
which version they were tested.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import operator
import os
import socket
import ssl
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent.hub
import gevent.socket
import gevent.ssl

from .descriptors import take_token, tokens
from .dialling import PendingDial, cancel_wait_ex
from .exchanging import Loan, Seen, exchange
from .listening import Offer, RawListener, withdraw_unused
from .names import is_wildcard
from .raw import Address, RawSocket, RawStream, SocketKind, by_number, of_number
from .resolver import MeshResolver, in_order
from .tls import MemoryTLS

if TYPE_CHECKING:
    from astranet_gevent import Stream

    from .applying import Patch

__all__ = ["Hooks"]

# With their private attributes, of which no stub tells.
GeventSocket: Any = gevent.socket.socket
SSLSocket: Any = gevent.ssl.SSLSocket
_socket3: Any = sys.modules[GeventSocket.__module__]

_MISSING: Any = object()

# The attribute of a hub that holds its resolver while there are patches.
_RESOLVER = "_astranet_gevent_resolver"

# The private name of SSLSocket.__create_sslobj.
_CREATE_SSLOBJ = "_SSLSocket__create_sslobj"


class Hooks:
    """The patches in force, the newest first, and what they have replaced."""

    def __init__(self) -> None:
        self.patches: list[Patch] = []
        # Of these the ones that bind services in place of addresses.
        self._with_bindings: list[Patch] = []
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._seen: Seen = {}
        # Whether something may be made a socket of that the system does not know: a stream, a number, a listener in place of an address.
        self._has_other_numbers = False
        self._hubs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watches_forks = False

    def add(self, patch: Patch) -> None:
        """Put a patch in force."""
        if not self.patches:
            self._install()
        self.patches.insert(0, patch)
        if patch.rules.bindings:
            self._hook_init()
        self._with_bindings[:] = [each for each in self.patches if each.rules.bindings]

    def remove(self, patch: Patch) -> None:
        """End a patch; nothing if it is not in force."""
        if patch in self.patches:
            self.patches.remove(patch)
            self._with_bindings[:] = [each for each in self.patches if each.rules.bindings]
            if not self.patches:
                self._uninstall()

    def _install(self) -> None:
        if not self._watches_forks and hasattr(os, "register_at_fork"):
            self._watches_forks = True
            os.register_at_fork(after_in_parent=withdraw_unused, after_in_child=self._after_fork_in_child)
        try:
            if self._has_other_numbers:
                self._replace(GeventSocket, "__init__", self._make_init(GeventSocket.__init__))
            self._replace(GeventSocket, "_internal_connect", self._make_connect(GeventSocket._internal_connect))
            self._replace(GeventSocket, "bind", self._make_bind(GeventSocket.bind))
            self._replace(GeventSocket, "sendto", self._make_sendto(GeventSocket.sendto))
            self._replace(GeventSocket, "sendmsg", self._make_sendmsg(GeventSocket.sendmsg))
            self._replace(GeventSocket, "fileno", self._make_fileno(GeventSocket.fileno))
            self._replace(GeventSocket, "dup", self._make_dup(GeventSocket.dup))
            self._replace(GeventSocket, "set_inheritable", self._make_set_inheritable(GeventSocket.set_inheritable))
            for module in (gevent.socket, _socket3, *([socket] if socket.fromfd is gevent.socket.fromfd else [])):
                self._replace(module, "fromfd", self._make_fromfd(module.fromfd))
            self._replace(SSLSocket, "__init__", self._make_tls_init(SSLSocket.__init__))
            self._replace(SSLSocket, "sendall", self._make_tls_sendall(SSLSocket.sendall))
            self._replace(SSLSocket, "_real_connect", self._make_tls_connect(SSLSocket._real_connect))
            self._replace(SSLSocket, _CREATE_SSLOBJ, self._make_sslobj(getattr(SSLSocket, _CREATE_SSLOBJ)))
            self._hook_resolver(gevent.hub.Hub)
            RawSocket.hooked = True
        except BaseException:
            self._uninstall()
            raise

    def _hook_init(self) -> None:
        # Not before it is needed: to programs that use TCP only it is the dearest of the hooks, 1 of 100 sockets that are accepted.
        if not self._has_other_numbers:
            self._has_other_numbers = True
            # The last patch may have been undone while a name was waited for.
            if self.patches:
                self._replace(GeventSocket, "__init__", self._make_init(GeventSocket.__init__))

    def _after_fork_in_child(self) -> None:
        for patch in self.patches:
            patch.after_fork()

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        # What the class itself holds, if anything: an inherited attribute is undone by deleting ours.
        old = vars(owner).get(name, _MISSING)
        setattr(owner, name, new)
        self._replaced.append((owner, name, old, new))

    def _uninstall(self) -> None:
        RawSocket.hooked = False
        while self._replaced:
            owner, name, old, new = self._replaced.pop()
            if vars(owner).get(name) is not new:
                # Somebody has put his own over ours, and will put ours back: without patches it only passes everything on.
                continue
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        # Not cleared: who is still connecting goes on with what was known.
        self._seen = {}
        for hub in list(self._hubs):
            vars(hub).pop(_RESOLVER, None)
        self._hubs.clear()

    # -- hooks -----------------------------------------------------------------------------------------------------------------

    def _make_init(self, original: Any) -> Any:
        with_bindings = self._with_bindings

        def __init__(self: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None) -> None:
            # Written out for what the system accepts: 1 us of its 25 otherwise.
            if fileno is not None and (by_number or tokens or fileno.__class__ is not int):
                raw = fileno if isinstance(fileno, RawSocket) else _find_raw(fileno)
                if raw is not None:
                    _adopt(self, raw)
                    return
            original(self, family, type, proto, fileno)
            if fileno is not None and with_bindings:
                hooks._take_over(self)

        hooks = self
        return __init__

    def _take_over(self, sock: Any) -> None:
        """Offer a service in place of a listening socket that was made before us, by a process that knew nothing of the mesh."""
        for patch in self._with_bindings:
            system = sock._sock
            if not _is_listening(system, patch):
                continue
            bound = patch.binding_of(system, system.getsockname())
            if bound is not None:
                # Other processes may share it: this makes the system refuse connections that nobody would accept.
                with contextlib.suppress(OSError):
                    system.shutdown(socket.SHUT_RD)
                self._seen[system.fileno()] = weakref.ref(system)
                self.bind(sock, patch, *bound)
                sock._sock.listen(patch.mesh.config.backlog)
                return

    def _find_target(self, sock: Any, address: Any) -> tuple[Patch, str, int] | None:
        """The patch that has a connect, with the service and the port."""
        for patch in in_order(self.patches, address[0] if isinstance(address, tuple) and address else None):
            target = patch.target_of(sock._sock, address)
            if target is not None:
                return patch, *target
        return None

    def _make_connect(self, original: Any) -> Any:
        patches = self.patches

        def _internal_connect(self: Any, address: Any) -> Any:
            # Written out for programs that use TCP: a call less for each patch, and two for all.
            if address.__class__ is tuple and address and address[0].__class__ is str:
                for patch in patches:
                    if address[0] not in patch.foreign:
                        break
                else:
                    return original(self, address)
            target = hooks._find_target(self, address)
            return original(self, address) if target is None else hooks.connect(self, *target)

        hooks = self
        return _internal_connect

    def _make_bind(self, original: Any) -> Any:
        def bind(self: Any, address: Any) -> Any:
            for patch in tuple(hooks.patches):
                bound = patch.binding_of(self._sock, address)
                if bound is not None:
                    return hooks.bind(self, patch, *bound)
            return original(self, address)

        hooks = self
        return bind

    def _make_sendto(self, original: Any) -> Any:
        def sendto(self: Any, *args: Any) -> Any:
            if len(args) > 1:
                hooks._refuse_to_leak(args[-1])
            return original(self, *args)

        hooks = self
        return sendto

    def _make_sendmsg(self, original: Any) -> Any:
        def sendmsg(self: Any, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> Any:
            if address is not None:
                hooks._refuse_to_leak(address)
            return original(self, buffers, ancdata, flags, address)

        hooks = self
        return sendmsg

    def _refuse_to_leak(self, address: Any) -> None:
        """For the calls in which the system looks names up by itself."""
        if isinstance(address, tuple) and address:
            host = address[0]
            for patch in self.patches:
                if host.__class__ is not str or host not in patch.foreign:
                    patch.refuse_to_leak(host)

    def _make_fileno(self, original: Any) -> Any:
        seen = self._seen

        def fileno(self: Any) -> int:
            sock = self._sock
            if isinstance(sock, RawSocket):
                return sock.number()
            number: int = original(self)
            if number >= 0:
                seen[number] = weakref.ref(sock)
            return number

        return fileno

    def _hook_resolver(self, owner: Any) -> None:
        original = owner.resolver

        def make(hub: Any) -> Any:
            self._hubs.add(hub)
            return MeshResolver(original.fget(hub), self.patches)

        def write(hub: Any, value: Any) -> None:
            original.fset(hub, value)
            vars(hub).pop(_RESOLVER, None)

        def delete(hub: Any) -> None:
            original.fdel(hub)
            vars(hub).pop(_RESOLVER, None)

        # Every look-up of a name reads it: without a call in Python, but for the first of each hub.
        self._replace(owner, _RESOLVER, _MadeOnce(make))
        self._replace(owner, "resolver", property(operator.attrgetter(_RESOLVER), write, delete, original.__doc__))

    def _make_dup(self, original: Any) -> Any:
        def dup(self: Any) -> Any:
            raw = self._sock
            if not isinstance(raw, RawSocket):
                return original(self)
            other = self.__class__(self.family, self.type, self.proto, fileno=raw.dup())
            other.settimeout(self.gettimeout())
            return other

        return dup

    def _make_set_inheritable(self, original: Any) -> Any:
        def set_inheritable(self: Any, inheritable: bool) -> None:
            # There is nothing to inherit, and asking for a number would say that somebody wants to poll.
            if not isinstance(self._sock, RawSocket):
                original(self, inheritable)

        return set_inheritable

    def _make_fromfd(self, original: Any) -> Any:
        def fromfd(fd: Any, family: int, type: int, proto: int = 0) -> Any:
            raw = of_number(fd)
            return original(fd, family, type, proto) if raw is None else GeventSocket(fileno=raw.dup())

        return fromfd

    def _make_tls_init(self, original: Any) -> Any:
        def __init__(self: Any, sock: Any = None, *args: Any, **named: Any) -> None:
            raw = getattr(sock, "_sock", None)
            original(self, _Handover(sock) if isinstance(raw, RawSocket) else sock, *args, **named)

        return __init__

    def _make_tls_sendall(self, original: Any) -> Any:
        def sendall(self: Any, data: Any, flags: int = 0) -> None:
            try:
                original(self, data, flags)
            except BlockingIOError:
                # What MemoryTLS raises for the sake of send().
                if isinstance(self._sslobj, MemoryTLS):
                    raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)") from None
                raise

        return sendall

    def _make_tls_connect(self, original: Any) -> Any:
        def _real_connect(self: Any, address: Any, connect_ex: bool) -> Any:
            if hooks._find_target(self, address) is not None:
                return hooks.connect_tls(self, address, connect_ex)
            return original(self, address, connect_ex)

        hooks = self
        return _real_connect

    def _make_sslobj(self, original: Any) -> Any:
        def create(self: Any, server_side: bool = False, session: Any = None) -> Any:
            raw = self._sock
            if isinstance(raw, RawStream):
                return MemoryTLS(self.context, raw, _Owner(self), server_side, self.server_hostname, session)
            return original(self, server_side, session)

        return create

    # -- what they do ----------------------------------------------------------------------------------------------------------

    def connect(self, sock: Any, patch: Patch, service: str, port: int) -> None:
        """Dial, and put the stream into the socket; with a timeout of 0 in the background, and EINPROGRESS."""
        system = sock._sock
        if isinstance(system, RawStream) and sock.timeout != 0.0:
            return _connect_again(sock, system)
        if isinstance(system, RawStream) or (isinstance(system, RawListener) and system.offered):
            return system.connect((service, port))
        if not system:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if not isinstance(system, RawListener) and _is_connected(system):
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        self._hook_init()
        if sock.timeout == 0.0:
            self._connect_later(sock, patch, service, port)
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        self._connect_and_wait(sock, patch, service, port)

    def _connect_and_wait(self, sock: Any, patch: Patch, service: str, port: int) -> None:
        dial, raw, on_open = _make_stream(sock._sock, patch, service, port)
        loan = Loan(sock, dial, raw, self._seen)
        try:
            # In the greenlet that waits for it anyway: one more for each connect would be 24 us.
            dial.wait(lambda: patch.dial(service, port, sock.timeout), on_open)
            if sock._sock is not raw:
                # A socket object that wraps it has taken it over.
                raise cancel_wait_ex
            loan.keep()
        except BaseException:
            loan.take_back()
            raise

    def _connect_later(self, sock: Any, patch: Patch, service: str, port: int) -> None:
        dial, raw, on_open = _make_stream(sock._sock, patch, service, port)
        try:
            exchange(sock, raw, self._seen)
        except BaseException:
            raw.close()
            raise
        dial.start(lambda: patch.dial(service, port, None), on_open)

    def connect_tls(self, sock: Any, address: Any, connect_ex: bool) -> Any:
        """Connect a socket that was wrapped in TLS before: first the stream, then the TLS over it."""
        if sock.server_side:
            raise ValueError("can't connect in server-side mode")
        if sock._connected:
            raise ValueError("attempt to connect already-connected SSLSocket!")
        if connect_ex:
            code = GeventSocket.connect_ex(sock, address)
            if code == errno.EINPROGRESS:
                # Who does not wait goes on with do_handshake() when the socket has become writable.
                sock._sslobj = getattr(sock, _CREATE_SSLOBJ)(False, sock._session)
            if code:
                return code
        else:
            GeventSocket.connect(sock, address)
        sock._sslobj = getattr(sock, _CREATE_SSLOBJ)(False, sock._session)
        try:
            if sock.do_handshake_on_connect:
                sock.do_handshake()
        except OSError:
            sock._sslobj = None
            raise
        sock._connected = True
        return 0 if connect_ex else None

    def bind(self, sock: Any, patch: Patch, service: str, port: int) -> None:
        """Put a listener-to-be into the socket."""
        if isinstance(sock._sock, RawSocket):
            sock._sock.bind((service, port))
        self._hook_init()
        raw = RawListener(_kind(sock._sock), patch.far_address(service, port), Offer(patch.binder(service, port), patch.peer_address))
        exchange(sock, raw, self._seen)


def _connect_again(sock: Any, raw: RawStream) -> None:
    """Another connect of one that is connecting, which it waits for, or is connected already."""
    while True:
        code = raw.connect_ex(raw.peer_address)
        if code == errno.EISCONN:
            return
        if code != errno.EALREADY:
            raise OSError(code, os.strerror(code))
        sock._wait(sock._write_event)


def _make_stream(system: Any, patch: Patch, service: str, port: int) -> tuple[PendingDial, RawStream, Callable[[Stream], None]]:
    """What a socket holds while it connects, and what a dial for it calls with the stream."""

    def on_open(stream: Stream) -> None:
        raw.open(stream, _own_address(system, patch, stream))

    dial = PendingDial()
    own_address = system.own_address if isinstance(system, RawListener) else ("0.0.0.0", 0)
    raw = RawStream(dial, _kind(system), own_address, patch.far_address(service, port))
    return dial, raw, on_open


def _own_address(system: Any, patch: Patch, stream: Stream) -> Address:
    """The address of the near end of a dialled stream: what was bound before, as far as something was."""
    chosen = patch.own_address(stream)
    if not isinstance(system, RawListener):
        return chosen
    host, port = system.own_address
    return chosen[0] if is_wildcard(host) else host, port or chosen[1]


def _find_raw(number: Any) -> RawSocket | None:
    """What a number stands for that was detached from one of our sockets, or is that of one."""
    raw = of_number(number)
    if raw is not None:
        raw.add_owner()
        return raw
    detached: RawSocket | None = take_token(number)
    return detached


def _is_listening(system: Any, patch: Patch) -> bool:
    """Whether this is a listening socket, or one that was until ``_take_over`` in another process made it refuse."""
    if system.family not in (socket.AF_INET, socket.AF_INET6) or system.type & 0xF != socket.SOCK_STREAM:
        return False
    if system.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return True
    # An accepted connection that has been reset looks the same, but was not there before the patch.
    if os.fstat(system.fileno()).st_ino not in patch.inherited:
        return False
    try:
        system.getpeername()
    except OSError:
        return bool(system.getsockname()[1])
    return False


def _is_connected(system: Any) -> bool:
    try:
        system.getpeername()
    except OSError:
        return False
    return True


def _kind(system: Any) -> SocketKind:
    return system.family, system.type, system.proto


class _Handover:
    """What SSLSocket's ``__init__`` asks of the socket that it takes over, which it knows by its descriptor; ours has none."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self.family, self.type, self.proto = sock.family, sock.type, sock.proto
        self.gettimeout = sock.gettimeout
        self.getsockopt = sock.getsockopt

    def fileno(self) -> Any:
        return self._socket._sock

    def detach(self) -> None:
        """The stream belongs to the SSLSocket now."""
        sock = self._socket
        raw = sock._sock
        sock._closed = True
        sock._drop_events_and_close(closefd=False)
        sock._sock = _socket3._closedsocket(raw.family, raw.type, raw.proto, raw.fileno(), "detached")


class _MadeOnce:
    """A hub's attribute, made when it is first read; after that the hub itself has it. functools' own holds a lock while it makes it."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __get__(self, thing: Any, owner: Any = None) -> Any:
        made = vars(thing)[_RESOLVER] = self._make(thing)
        return made


class _Owner:
    """What OpenSSL's callbacks are given: gevent's contexts make an SSLSocket of it again."""

    def __init__(self, sock: Any) -> None:
        self._sslsock = weakref.ref(sock)

    @property
    def waits(self) -> bool:
        """Whether the socket's methods wait, with or without a limit."""
        sock = self._sslsock()
        return sock is None or sock.timeout != 0.0


def _adopt(sock: Any, raw: RawSocket) -> None:
    """Make a socket object of an accepted stream, as gevent's own ``__init__`` does of a descriptor."""
    for base in GeventSocket.__mro__[1:]:
        if "__init__" in vars(base):
            base.__init__(sock)
            break
    sock._closed = False
    sock._io_refs = 0
    sock.hub = gevent.hub.get_hub()
    sock._sock = raw
    sock._read_event, sock._write_event = raw.watchers()
    sock.timeout = _socket.getdefaulttimeout()
