"""``apply()``: one patch with its rules, its addresses, and what it makes of connects and binds."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import gevent.socket
from gevent import monkey

from astranet_gevent import AstraNet, Listener, Service, ServiceNotFoundError, Stream, format_node_id
from astranet_gevent.address import parse_service
from astranet_gevent.errors import DialRefusedError, LocalProtocolError, NameInUseError

from .hooks import Hooks
from .names import AddressBook, Rules, is_address, is_wildcard
from .raw import short_port

__all__ = ["Patch", "apply"]

log = logging.getLogger("astranet_gevent")

# Ports up to this one were chosen by somebody; nodes choose larger ones themselves.
_LAST_CHOSEN: Final = 65535

# "No port was meant", as for HTTP in the original.
_ANY_PORTS: Final = (80, 443)

_HOOKS: Final = Hooks()

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
        self.mesh = mesh
        self.rules = rules
        self.names = AddressBook(rules.block)
        self.peers = AddressBook(rules.peer_block)
        self._unused_bindings = set(rules.bindings)
        self._no_proxy = [_ListVariable(name, rules.suffix) for name in ("no_proxy", "NO_PROXY")] if rules.suffix else []
        _HOOKS.add(self)
        for variable in self._no_proxy:
            variable.add()

    @property
    def applied(self) -> bool:
        """Whether the patch is in force."""
        return self in _HOOKS.patches

    def undo(self) -> None:
        """End the patch; sockets that it has connected stay. Nothing if it has ended."""
        if not self.applied:
            return
        _HOOKS.remove(self)
        for variable in self._no_proxy:
            variable.remove()
        for host, port in sorted(self._unused_bindings):
            log.warning("binding %s:%d: %r was never used: nothing has bound that address", host, port, self.rules.bindings[host, port])

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.undo()

    # -- names -----------------------------------------------------------------------------------------------------------------

    def service_of(self, host: str) -> str | None:
        """The service that a host name means, None when it is not the mesh's."""
        return self.rules.service_of(host, self._known)

    def _known(self, name: str) -> str | None:
        """A name as a service carries it: programs write host names in any case."""
        service_map = self.mesh.service_map
        if name in service_map:
            return name
        folded = name.casefold()
        return next((service.name for service in self.mesh.services() if service.name.casefold() == folded), None)

    def resolve(self, service: str) -> str:
        """The address of a service, waiting ``name_wait`` seconds for it. Raises gaierror when nobody offers it."""
        if self._known(service) is None:
            try:
                self.mesh.service_map.wait_for(service, self.rules.name_wait)
            except ServiceNotFoundError as error:
                raise socket.gaierror(socket.EAI_NONAME, f"{service!r}: {error.strerror or error}") from error
        return self.address_of(service)

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
        if not isinstance(address, tuple) or len(address) < 2 or system.family not in _RESOLVABLE or not _is_stream(system):
            return None
        host, port = address[0], address[1]
        if isinstance(host, (bytes, bytearray)):
            host = bytes(host).decode("utf-8", "replace")
        if not isinstance(host, str) or not isinstance(port, int):
            return None
        service = self.names.thing_of(host.removeprefix("::ffff:"))
        if service is None:
            service = None if not host or is_address(host) else self.service_of(host)
        if service is None:
            return None
        if not 0 <= port <= 65535:
            raise OverflowError("connect(): port must be 0-65535.")
        return service, port

    def dial(self, service: str, port: int, timeout: float | None) -> Stream:
        """A stream to a server of the name that suits the port."""
        limit = self.mesh.config.dial_timeout if timeout is None else timeout
        return self.mesh.dial(service, limit, lambda servers: _choose(servers, service, port))

    def binding_of(self, system: Any, address: Any) -> tuple[str, int] | None:
        """``(service, port)`` to bind when a bind of this socket to that address is the mesh's; port 0 for none."""
        if not isinstance(address, tuple) or len(address) < 2 or system.family not in _RESOLVABLE or not _is_stream(system):
            return None
        host, port = address[0], address[1]
        if not isinstance(host, str) or not isinstance(port, int):
            return None
        mapped = self.rules.binding_of(host, port)
        if mapped is not None:
            self._unused_bindings -= {key for key in self._unused_bindings if self.rules.bindings[key] == mapped}
            return parse_service(mapped)
        service = None if is_wildcard(host) or is_address(host) else self.rules.service_of(host, self._bindable)
        return None if service is None else (service, port)

    def _bindable(self, name: str) -> str | None:
        # Whatever is bound under a bare name is not in DNS unless the machine has that name.
        own = socket.gethostname()
        return None if name.casefold() in (own.casefold(), own.partition(".")[0].casefold()) else name

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


class _ListVariable:
    """An item in an environment variable that is a list with commas, for as long as a patch is in force."""

    def __init__(self, name: str, item: str) -> None:
        self._name = name
        self._item = item
        self._added = False

    def add(self) -> None:
        """Append the item, unless it is there."""
        old = os.environ.get(self._name)
        if self._item not in (old or "").split(","):
            os.environ[self._name] = f"{old},{self._item}" if old else self._item
            self._added = True

    def remove(self) -> None:
        """Take out what was appended; a variable that did not exist is deleted."""
        if not self._added:
            return
        before, found, after = os.environ.get(self._name, "").rpartition(self._item)
        if found:
            value = before.removesuffix(",") + after if before else after.removeprefix(",")
            if value:
                os.environ[self._name] = value
            else:
                del os.environ[self._name]


def _check_monkey() -> None:
    if not monkey.is_module_patched("socket"):
        raise LocalProtocolError(
            "gevent has not patched the socket module: write `from gevent import monkey; monkey.patch_all()` at the very top of the program"
        )
    if socket.socket is not gevent.socket.socket:
        holder = f"{socket.socket.__module__}.{socket.socket.__qualname__}"
        warnings.warn(f"socket.socket is {holder}, not gevent's: what that class does itself does not reach the mesh", stacklevel=4)
