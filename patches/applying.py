"""``apply()``: one patch with its rules, its addresses, and what it makes of connects and binds."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import gevent.socket
from gevent import getcurrent, monkey

from astranet_gevent import AstraNet, Listener, Service, Stream, format_node_id
from astranet_gevent.address import parse_service
from astranet_gevent.errors import DialRefusedError, LocalProtocolError, NameInUseError, StreamClosedError, WrongThreadError
from astranet_gevent.joining import makes_own_sockets
from astranet_gevent.threads import get_ident

from .hooks import Hooks
from .names import AddressBook, Rules, host_text, is_address, is_wildcard
from .raw import short_port

__all__ = ["Patch", "apply"]

log = logging.getLogger("astranet_gevent")

# Ports up to this one were chosen by somebody; nodes choose larger ones themselves.
_LAST_CHOSEN: Final = 65535

# Seconds for which a bare name is waited for after a node's first links are up: what its peers are about to announce. They do so within
# their announce_interval (0.05 s) of the handshake; the rest is for machines that are busy.
_SETTLING: Final = 1.0

# Seconds at the end for what has been written, when the node is the patch's own.
_LAST_WORDS: Final = 2.0

# "No port was meant", as for HTTP in the original.
_ANY_PORTS: Final = (80, 443)

_HOOKS: Final = Hooks()

# Hosts of which it is remembered that they are somebody else's; beyond that the patch begins anew.
_MAX_FOREIGN: Final = 4096

# An IPv4 address as sockets of the other family write it.
_MAPPED: Final = "::ffff:"

_RESOLVABLE: Final = (socket.AF_INET, socket.AF_INET6)


def apply(
    mesh: AstraNet,
    *,
    suffix: str = ".mesh",
    names: Collection[str] = (),
    bare: bool = True,
    name_wait: float = 5.0,
    block: str = "239.0.0.0/8",
    peer_block: str = "240.0.0.0/8",
    bindings: Mapping[tuple[str, int], str] | None = None,
) -> Patch:
    """Have gevent's sockets reach and offer the services of a started node; the arguments are those of ``Rules``.

    The result is a context manager, and has ``undo()``. Several patches may be in force, of one node or of several: the newest that knows
    a name has it. Raises ConfigError for a bad rule, LocalProtocolError when gevent has not patched ``socket`` or the node is not started.
    """
    return Patch(mesh, Rules(suffix, names, bare, name_wait, block, peer_block, dict(bindings or {})))


class Patch:
    """Made by ``apply()``, in force until ``undo()``."""

    def __init__(self, mesh: AstraNet, rules: Rules) -> None:
        _check_monkey()
        if mesh.closed:
            raise LocalProtocolError("the node is not running: use `with AstraNet() as mesh`, or call start(), before apply(mesh)")
        self._mesh = mesh
        # The node that ends with the patch, or with the process: one of the patch's own making.
        self._own: AstraNet | None = None
        self._settling = False
        self._thread = get_ident()
        # Known names in the form in which they are compared, as of a version of the service map.
        self._folded: dict[str, str] = {}
        self._folded_at = -1
        self._settle()
        self.rules = rules
        self.names = AddressBook(rules.block)
        self.peers = AddressBook(rules.peer_block, forgets=True)
        self._unused_bindings = set(rules.bindings)
        #: Inodes of the sockets that were there before, which a binding may take over.
        self.inherited = _open_sockets() if rules.bindings else frozenset()
        #: Hosts that are somebody else's, whatever is offered: programs that use TCP only ask for the same few again and again.
        self.foreign: set[str] = set()
        self._no_proxy = _exceptions_of_proxies(rules.suffix)
        _HOOKS.add(self)
        for variable in self._no_proxy:
            variable.add()

    @property
    def mesh(self) -> AstraNet:
        """The node in use: the one that was given, or in a forked child one of its own, made when it is first needed."""
        if self._mesh.forked:
            if get_ident() != self._thread:
                raise WrongThreadError("the node of a forked child belongs to the thread that forked: use it there")
            self._succeed()
        return self._mesh

    @classmethod
    def of_own_node(cls, mesh: AstraNet, rules: Rules) -> Patch:
        """Start a node and apply; it is closed with the patch, or at the end of the process."""
        _check_monkey()
        mesh.start()
        try:
            patch = cls(mesh, rules)
        except BaseException:
            mesh.close(0)
            raise
        patch._keep(mesh)
        return patch

    def after_fork(self) -> None:
        """In a forked child: its node will be that of the one thread that there is."""
        self._thread = get_ident()
        self._unused_bindings.clear()

    def _succeed(self) -> None:
        self._mesh = self._mesh.successor().start()
        self._folded_at = -1
        self._keep(self._mesh)
        self._settle()
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            # Its children end without atexit. Below 0: after everything that may still want to send.
            util.Finalize(None, self._close_own, exitpriority=-1)

    def _keep(self, mesh: AstraNet) -> None:
        self._own = mesh
        atexit.register(self._end)

    def _end(self) -> None:
        self._warn_of_unused()
        self._close_own()

    def _close_own(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            atexit.unregister(self._end)
            # Of a forked child's parent this closes nothing.
            own.close(_LAST_WORDS)

    def _settle(self) -> None:
        mesh = self._mesh
        self._settling = bool(mesh.peerings()) and not any(link.state == "ready" for link in mesh.links())

    @property
    def applied(self) -> bool:
        """Whether the patch is in force."""
        return self in _HOOKS.patches

    def undo(self) -> None:
        """End the patch; sockets that it has connected stay. Nothing if it has ended."""
        if not self.applied:
            return
        _HOOKS.remove(self)
        self._end()
        for variable in self._no_proxy:
            variable.remove()

    def _warn_of_unused(self) -> None:
        unused, self._unused_bindings = self._unused_bindings, set()
        for host, port in sorted(unused):
            log.warning("binding %s:%d: %r was never used: nothing has bound that address", host, port, self.rules.bindings[host, port])

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.undo()

    # -- names -----------------------------------------------------------------------------------------------------------------

    def service_of(self, host: str) -> str | None:
        """The service that a host name means, None when it is not the mesh's."""
        meant = self.rules.service_of(host)
        if meant is None:
            self._note_foreign(host)
            return None
        if makes_own_sockets():
            return None
        name, certain = meant
        return (self._find(name) or name) if certain else self._find_settled(name)

    def knows(self, host: Any) -> bool:
        """Whether a host means a service that somebody offers now."""
        text, thing = self._thing_at(host)
        meant = self.rules.service_of(text)
        return thing is not None or (meant is not None and self._find(meant[0]) is not None)

    def _thing_at(self, host: Any) -> tuple[str, str | None]:
        """A host as text, and the service whose address it is, also in the form that IPv6 sockets have for it."""
        text = host_text(host) or ""
        return text, self.names.thing_of(text.removeprefix(_MAPPED))

    def refuse_to_leak(self, host: Any) -> None:
        """Raise gaierror when a host that is about to be left to the system is the mesh's in any case."""
        text, thing = self._thing_at(host)
        meant = self.rules.service_of(text)
        if thing is not None or (meant is not None and meant[1] and not makes_own_sockets()):
            raise socket.gaierror(socket.EAI_SERVICE, f"{text!r} is a service of the mesh: it has streams only")
        if meant is None:
            self._note_foreign(text)

    def _note_foreign(self, host: str) -> None:
        if not self.names.covers(host.removeprefix(_MAPPED)):
            if len(self.foreign) >= _MAX_FOREIGN:
                self.foreign.clear()
            self.foreign.add(host)

    def _find(self, name: str) -> str | None:
        """A name as a service carries it, None when the mesh knows none such: programs write host names in any case."""
        service_map = self.mesh.service_map
        if name in service_map:
            return name
        if get_ident() != self._thread:
            # What is known is changed by that thread: nothing is gone through in another one.
            return None
        if self._folded_at != service_map.version:
            self._folded = {known.casefold(): known for known in service_map}
            self._folded_at = service_map.version
        return self._folded.get(name.casefold())

    def _find_settled(self, name: str) -> str | None:
        """As ``_find``, but of a node that has only just been started: waits for what its peers are about to say, ``name_wait`` at most."""
        known = self._find(name)
        if known is None and self._settling and getcurrent() is not gevent.get_hub() and get_ident() == self._thread:
            peerings = self.mesh.peerings()
            deadline = time.monotonic() + self.rules.name_wait
            for peering in peerings:
                peering.wait_attempted(max(0.0, deadline - time.monotonic()))
            if any(peering.ready for peering in peerings):
                self._await(name, max(0.0, min(_SETTLING, deadline - time.monotonic())))
            self._settling = False
            known = self._find(name)
        return known

    def _await(self, name: str, timeout: float) -> str | None:
        """Wait until somebody offers a name, in whatever case; the name as it is offered, None after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self.mesh.service_map.watch() as changes:
            while (known := self._find(name)) is None:
                left = deadline - time.monotonic()
                if left <= 0 or changes.get(left) is None:
                    return self._find(name)
        return known

    def _offered(self, service: str, wait: float) -> str:
        """The name of a service as it is offered, within ``wait`` seconds. Raises gaierror when nobody does."""
        try:
            known = self._find(service) or self._await(service, wait)
        except StreamClosedError as error:
            raise socket.gaierror(socket.EAI_NONAME, f"service {service!r} cannot be looked up: {error.strerror}") from error
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, f"nobody offered service {service!r} within {wait:g} s{self._unjoined()}")
        return known

    def resolve(self, service: str) -> str:
        """The address of a service, waiting ``name_wait`` seconds for it. Raises gaierror when nobody offers it."""
        return self.address_of(self._offered(service, self.rules.name_wait))

    def _unjoined(self) -> str:
        """For an error: what the node has not joined, which may be the reason."""
        return "".join(f"; {peering.address}: {peering.error or 'no answer yet'}" for peering in self.mesh.peerings() if not peering.ready)

    def address_of(self, service: str) -> str:
        """The synthetic address of a service."""
        return self.names.address_of(service)

    def name_of(self, address: str) -> str | None:
        """The name that an address stands for."""
        service = self.names.thing_of(address)
        if service is not None:
            return f"{service}{self.rules.suffix}"
        node_id = self.peers.thing_of(address)
        return None if node_id is None else format_node_id(node_id)

    def far_address(self, service: str, port: int) -> tuple[str, int]:
        """The address of a service as the sockets that are connected or bound to it show it."""
        return self.address_of(service), port

    def own_address(self, stream: Stream) -> tuple[str, int]:
        """The address of our own end of a stream."""
        return self.peer_address(*stream.getsockname())

    def peer_address(self, node_id: int, port: int) -> tuple[str, int]:
        """The address of a node that is not known by a name, as that of who dialled."""
        return self.peers.address_of(node_id), short_port(port)

    # -- connects and binds ----------------------------------------------------------------------------------------------------

    def target_of(self, system: Any, address: Any) -> tuple[str, int] | None:
        """``(service, port)`` when a connect of this socket to that address is the mesh's."""
        if not isinstance(address, tuple) or len(address) < 2:
            return None
        host, port = address[0], address[1]
        if type(host) is str and host in self.foreign:
            return None
        if system.family not in _RESOLVABLE or not _is_stream(system):
            self.refuse_to_leak(host)
            return None
        service = self._service_at(host)
        if service is None or not isinstance(port, int):
            return None
        if not 0 <= port <= 65535:
            raise OverflowError("connect(): port must be 0-65535.")
        return service, port

    def _service_at(self, host: Any) -> str | None:
        """The service that a program means by what it connects to: an address of ours, or a name."""
        text, service = self._thing_at(host)
        if service is None and text:
            service = self.service_of(text)
            # Asked last: parsing an address takes longer than all the rest.
            if service is not None and is_address(text):
                return None
        return service

    def dial(self, service: str, port: int, timeout: float | None) -> Stream:
        """A stream to a server of the name that suits the port."""
        limit = self.mesh.config.dial_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        known = self._offered(service, min(limit, self.rules.name_wait))
        return self.mesh.dial(known, max(0.0, deadline - time.monotonic()), lambda servers: _choose(servers, known, port))

    def binding_of(self, system: Any, address: Any) -> tuple[str, int] | None:
        """``(service, port)`` to bind when a bind of this socket to that address is the mesh's; port 0 for none."""
        if not isinstance(address, tuple) or len(address) < 2 or makes_own_sockets():
            return None
        host, port = host_text(address[0]), address[1]
        if host is None or not isinstance(port, int):
            return None
        if system.family not in _RESOLVABLE or not _is_stream(system):
            self.refuse_to_leak(host)
            return None
        mapped = self.rules.binding_of(host, port)
        if mapped is not None:
            self._unused_bindings -= {key for key in self._unused_bindings if self.rules.bindings[key] == mapped}
            return parse_service(mapped)
        service = self._thing_at(host)[1] or self.bindable(host)
        if service is None:
            return None
        if not 0 <= port <= 65535:
            raise OverflowError("bind(): port must be 0-65535.")
        return service, port

    def bindable(self, host: str) -> str | None:
        """The service that a host name to bind means, None when it is not the mesh's."""
        if is_wildcard(host) or is_address(host) or makes_own_sockets():
            return None
        meant = self.rules.service_of(host)
        return meant[0] if meant is not None and (meant[1] or _is_bindable(meant[0])) else None

    def binder(self, service: str, port: int) -> Callable[[int], Listener]:
        """What offers a service once a socket listens, with a port when one was given."""
        return lambda backlog: self._bind(service, port, backlog)

    def _bind(self, service: str, port: int, backlog: int) -> Listener:
        try:
            return self.mesh.bind(f"{service}:{port}" if port else service, backlog)
        except NameInUseError:
            # A node has each port once, and a program may serve several names on 80; the name alone will do, unless it is the same one.
            if any(mine.node_id == self.mesh.node_id and mine.name == service for mine in self.mesh.services()):
                raise
            return self.mesh.bind(service, backlog)


def _is_bindable(name: str) -> bool:
    """Whether a bare name that is bound is a service's: a machine can bind its own name only."""
    own = socket.gethostname().casefold()
    return name.casefold() not in (own, own.partition(".")[0])


def _is_stream(system: Any) -> bool:
    return bool((system.type & 0xF) == socket.SOCK_STREAM)


def _choose(servers: Any, service: str, port: int) -> Service:
    """One of the servers with that port; else one whose port nobody has chosen, or any when the port says nothing."""
    fitting = [server for server in servers if server.port == port]
    if not fitting:
        fitting = [server for server in servers if server.port > _LAST_CHOSEN or port in _ANY_PORTS]
    if not fitting:
        ports = ", ".join(str(server.port) for server in servers)
        raise DialRefusedError(f"service {service!r} is offered with port {ports}, not with {port}")
    chosen: Service = secrets.choice(fitting)
    return chosen


def _open_sockets() -> frozenset[int]:
    """Inodes of the sockets of this process, where the system lists its descriptors."""
    found = set()
    folder = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)
    for name in os.listdir(folder) if folder else ():
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                found.add(status.st_ino)
    return frozenset(found)


# By variable and item, how many patches want an item that none of them has found there.
_held: dict[tuple[str, str], int] = {}


class _ListVariable:
    """An item in an environment variable that is a list with commas, for as long as a patch is in force."""

    def __init__(self, name: str, item: str) -> None:
        self._key = (name, item)
        self._added = False

    def add(self) -> None:
        """Append the item, unless it is there by somebody else's hand."""
        name, item = self._key
        old = os.environ.get(name)
        if self._key not in _held:
            if item in _items(old):
                return
            os.environ[name] = f"{old},{item}" if old else item
        self._added = True
        _held[self._key] = _held.get(self._key, 0) + 1

    def remove(self) -> None:
        """Take out what was appended, with the last who wanted it; a variable that is empty then is deleted."""
        if not self._added:
            return
        self._added = False
        _held[self._key] -= 1
        if _held[self._key]:
            return
        del _held[self._key]
        name, item = self._key
        parts = os.environ.get(name, "").split(",")
        for index in reversed(range(len(parts))):
            if parts[index].strip() == item:
                del parts[index]
                break
        if parts:
            os.environ[name] = ",".join(parts)
        else:
            os.environ.pop(name, None)


def _items(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",")]


def _exceptions_of_proxies(suffix: str) -> list[_ListVariable]:
    """Where the suffix is added: programs read the one in small letters first, so a new one of these would hide the other."""
    present = [name for name in ("no_proxy", "NO_PROXY") if name in os.environ]
    return [_ListVariable(name, suffix) for name in present or ("no_proxy", "NO_PROXY")] if suffix else []


def _check_monkey() -> None:
    if not monkey.is_module_patched("socket"):
        raise LocalProtocolError(
            "gevent has not patched the socket module: write `from gevent import monkey; monkey.patch_all()` at the very top of the program"
        )
    if socket.socket is not gevent.socket.socket:
        holder = f"{socket.socket.__module__}.{socket.socket.__qualname__}"
        warnings.warn(f"socket.socket is {holder}, not gevent's: what that class does itself does not reach the mesh", stacklevel=4)
