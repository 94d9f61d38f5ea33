"""AstraNet: the public face of a node."""

from __future__ import annotations

import dataclasses
from typing import Any

from .address import format_node_id, parse_address
from .config import FIELD_NAMES, Config, Role
from .errors import ConfigError, LocalProtocolError
from .joining import LinkListener, Peering
from .node import Node
from .protocol.registry import Service
from .protocol.routing import Route
from .protocol.selectors import Selector
from .transport.link import Link
from .transport.listener import Listener
from .transport.stream import Stream
from .views import RouteMap, ServiceMap

__all__ = ["AstraNet"]


class AstraNet:
    """A node of the mesh. Made unstarted; ``start()`` and ``close()``, or ``with``, begin and end it.

    ``overrides`` are fields of Config. Bound to the thread that starts it. After a fork the child's node is closed: start a new one there.
    """

    def __init__(self, config: Config | None = None, **overrides: Any) -> None:
        unknown = sorted(set(overrides) - FIELD_NAMES)
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}; the settings are the fields of Config: {', '.join(sorted(FIELD_NAMES))}")
        base = Config() if config is None else config
        self._config = dataclasses.replace(base, **overrides) if overrides else base
        self._node: Node | None = None

    # -- life ------------------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The settings, frozen."""
        return self._config

    def start(self) -> AstraNet:
        """Start the node, listen and join as configured; itself. Raises LocalProtocolError the second time, OSError from listening."""
        if self._node is not None:
            raise LocalProtocolError("this AstraNet has been started before: make a new one")
        self._node = Node(self._config)
        try:
            for address in self._config.listen:
                self._node.listen(address)
            for address in self._config.join:
                self._node.join(address)
        except BaseException:
            self._node.close(0)
            raise
        return self

    def close(self, timeout: float = 5.0) -> None:
        """Close everything; bytes that were written are sent first, for at most ``timeout`` seconds. Streams of peers are reset."""
        if self._node is not None:
            self._node.close(timeout)

    def __enter__(self) -> AstraNet:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def serve_forever(self) -> None:
        """Wait until the node is closed, by another greenlet or an exception such as KeyboardInterrupt; then close it."""
        node = self._running()
        try:
            # No deadline: this is what the caller asked for.
            node.closed.wait()
        finally:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether the node has been closed (or never started)."""
        return self._node is None or self._node.closed.is_set()

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that started the node: it is of no use here, ``successor()`` makes another."""
        return self._node is not None and self._node.forked

    @property
    def node_id(self) -> int:
        """This node's id; known once started."""
        return self._started().node_id

    def _started(self) -> Node:
        if self._node is None:
            raise LocalProtocolError("the node is not started: use `with AstraNet() as mesh`, or call start()")
        return self._node

    def _running(self) -> Node:
        node = self._started()
        node.check()
        return node

    # -- variants --------------------------------------------------------------------------------------------------------------

    def _variant(self, **changes: Any) -> AstraNet:
        return AstraNet(dataclasses.replace(self._config, **changes))

    def with_env(self, *env: str) -> AstraNet:
        """A new, unstarted node that sees and offers services of that environment only."""
        return self._variant(env=env)

    def with_loopback(self) -> AstraNet:
        """A new, unstarted node that may dial its own services."""
        return self._variant(loopback=True)

    def client(self) -> AstraNet:
        """A new, unstarted node that announces nothing."""
        return self._variant(role=Role.CLIENT)

    def server(self) -> AstraNet:
        """A new, unstarted node that does not follow."""
        return self._variant(role=Role.SERVER)

    def router(self) -> AstraNet:
        """A new, unstarted node that passes on the services of its peers."""
        return self._variant(role=Role.ROUTER)

    def successor(self) -> AstraNet:
        """A new, unstarted node for a forked child: joins what this one joins, and this one where it listens, and listens nowhere itself.

        A router's successor is none: it would only offer again what the router offers.
        """
        role = Role.BOTH if self._config.role is Role.ROUTER else self._config.role
        return self._variant(listen=(), advertise=(), join=self._started().heir_addresses(), role=role)

    # -- links -----------------------------------------------------------------------------------------------------------------

    def listen(self, *address: Any) -> LinkListener:
        """Accept links at ``(host, port)``, ``"unix:/path"`` or ``("tcp4", ":10000")``; port 0 for any. Raises OSError, ConfigError."""
        return self._running().listen(parse_address(*address))

    def join(self, *address: Any) -> Peering:
        """Join the node at an address and stay joined, for ever, until the Peering is closed. Returns at once. Raises ConfigError."""
        parsed = parse_address(*address)
        if parsed.kind == "tcp" and not parsed.port:
            raise ConfigError(f"cannot join {parsed}: port 0 is nobody's")
        return self._running().join(parsed)

    def peerings(self) -> list[Peering]:
        """The peerings that ``join()`` and the configuration have made and nobody has closed, in that order."""
        return [peering for peering in self._started().peerings if not peering.closed]

    def attach(self, conn: Any) -> Link:
        """Make a link of a connected socket, a socket-like object, a file-like object or ``(reader, writer)``, and own it from now on.

        Raises ConfigError for anything else.
        """
        return self._running().adopt(conn)

    def links(self) -> list[Link]:
        """The links that there are, in the order in which they came."""
        return [link for link in self._started().links if not link.loopback]

    # -- streams ---------------------------------------------------------------------------------------------------------------

    def bind(self, service: str, backlog: int | None = None) -> Listener:
        """Offer ``"name"``, ``"name:port"`` or ``":port"`` (found by node id only). Raises ConfigError, NameInUseError."""
        return self._running().bind(service, backlog)

    def dial(
        self, target: str | tuple[int, int], timeout: float | None = None, selector: Selector | None = None, *, data: bytes = b""
    ) -> Stream:
        """Open a stream to ``"service"``, ``"service:port"`` or ``(node_id, port)``; returns once accepted.

        ``timeout`` seconds are for everything, waiting for the name included (default: ``dial_timeout``). ``selector`` picks among the
        servers (default: at random); when one refuses, another is tried. Raises ServiceNotFoundError when nobody offers the name in
        time, DialRefusedError, DialTimeout, NoRouteError, LinkLostError, LimitError, ConfigError.

        ``data``, 64 KiB at most, is sent first. To a node of our own kind it goes with the dial, before that has been accepted: the answer
        comes one round trip earlier. Once it may have reached a server no other one is tried, unless that one refuses.
        """
        kept = data if type(data) is bytes else memoryview(data).cast("B").tobytes()
        return self._running().dial(target, _check_seconds(timeout), selector, data=kept)

    def http_dial(self, host: str, timeout: float | None = None, selector: Selector | None = None) -> Stream:
        """Open a stream to the service behind an HTTP host: ports 80 and 443 mean any, unless the service is bound with one of them."""
        return self._running().dial(host, _check_seconds(timeout), selector, http=True)

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def services(self) -> list[Service]:
        """The services of this environment, sorted by name, own ones included."""
        return self._started().services()

    def routes(self) -> list[Route]:
        """The ways to all known nodes."""
        return self._started().route_list()

    @property
    def service_map(self) -> ServiceMap:
        """Services by name, live."""
        return ServiceMap(self._started())

    @property
    def route_map(self) -> RouteMap:
        """Routes by node id, live."""
        return RouteMap(self._started())

    def __repr__(self) -> str:
        if self._node is None:
            return f"<AstraNet {self._config.role.value} unstarted>"
        state = "closed" if self.closed else f"{len(self.links())} links"
        return f"<AstraNet {self._config.role.value} {format_node_id(self._node.node_id)}: {state}>"


def _check_seconds(timeout: float | None) -> float | None:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
        raise ConfigError(f"timeout {timeout!r} is not a number of seconds")
    return timeout
