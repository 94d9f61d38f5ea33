"""Node: links, streams and listeners of one node; dispatch of frames that belong to no stream; dialling."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from secrets import randbelow
from typing import Any, Final

import gevent
from gevent.event import Event

from .address import (
    MAX_WIRE_NAME_BYTES,
    LinkAddress,
    ServiceAddress,
    decode_name,
    encode_name,
    format_node_id,
    new_node_id,
    parse_dial_target,
    parse_node_id,
    parse_service,
)
from .announcing import Announcer
from .config import Config, Role
from .errors import (
    ConfigError,
    DialRefusedError,
    DialTimeout,
    ForkedError,
    LimitError,
    LinkLostError,
    NameInUseError,
    NoRouteError,
    RemoteProtocolError,
    SelfJoinError,
    ServiceNotFoundError,
    StreamClosedError,
    StreamTimeout,
    WrongThreadError,
)
from .greenlet_memory import keep_greenlet_memory
from .joining import Follower, LinkListener, Peering, advertised_addresses, reachable_address
from .protocol.frame import Command, address_key, encode_frame, reverse_key, split_key
from .protocol.handshake import decode_handshake, encode_handshake
from .protocol.registry import LOCAL, Registry, Service, ServiceKey
from .protocol.routing import Route, RouteTable
from .protocol.selectors import RandomChoice, Selector
from .protocol.stream import DIALING, OPEN
from .protocol.window import INITIAL_WINDOW
from .threads import get_ident
from .transport.busy_poll import BusyPoll
from .transport.conn import wrap_conn
from .transport.link import Link
from .transport.listener import Listener
from .transport.memory import loopback_conn
from .transport.path import Path, ResetCode
from .transport.relay import Relay
from .transport.stream import Stream

__all__ = ["Node"]

log = logging.getLogger("astranet_gevent")

# Dial ports and automatic listener ports: the original counts up from here.
_FIRST_PORT: Final = 2**24 + 1
_LAST_PORT: Final = 2**32 - 1

# Names whose servers are kept at hand between changes.
_MAX_FOUND: Final = 4096

# Ports that the original's HTTP dialler takes for "no port given".
_HTTP_PORTS: Final = (80, 443)


class Node:
    """One running node. ``AstraNet`` is its public face; a LinkOwner and a JoinOwner."""

    def __init__(self, config: Config) -> None:
        keep_greenlet_memory()
        self.config = config
        self.node_id = new_node_id()
        self.hub = gevent.get_hub()
        self.thread = get_ident()
        self.busy_poll = BusyPoll(self.hub.loop, config.busy_poll)
        self.closed = Event()
        self.forked = False
        self._joined_at_fork: tuple[LinkAddress, ...] = ()
        self.links: dict[Link, Announcer] = {}
        self.link_listeners: list[LinkListener] = []
        self.peerings: list[Peering] = []
        self.listeners: dict[int, Listener] = {}
        self.service_watchers: dict[Callable[[Service, bool], None], None] = {}
        self.route_watchers: dict[Callable[[int, bool], None], None] = {}
        self.registry = Registry(config.services_per_link, self._service_changed, self._direct_service_changed)
        self.routes: RouteTable[Link] = RouteTable(self._route_changed)
        self.relaying = Relay(config, self._relay_target)
        self.relay = self.relaying.forward
        self._follower = Follower(self, lambda node_id: not self.routes.direct(node_id))
        self._suffix = config.env_suffix.encode()
        self._next_port = _FIRST_PORT
        self._found: dict[ServiceAddress, list[tuple[ServiceKey, Service]]] = {}
        self._found_at = 0
        self._discovered: dict[Link, set[int]] = {}
        self._default_selector = RandomChoice(randbelow)
        self._handlers: dict[int, Callable[[Link, bytes, bytes], None]] = {
            Command.DIAL: self._receive_dial,
            Command.SERVICE: self._receive_service,
            Command.NO_SERVICE: self._receive_no_service,
            Command.FOLLOW: self._receive_follow,
            Command.DISCOVER: self._receive_discover,
            Command.RESET: self._receive_reset,
            Command.HELLO: self._receive_hello,
            Command.PAUSE: self._receive_pause,
            Command.RESUME: self._receive_resume,
        }
        self.loopback_link: Link | None = None
        if config.loopback:
            self.loopback_link = Link(self, loopback_conn(), self.hub, loopback=True)
            self.links[self.loopback_link] = Announcer(self.loopback_link, config.announce_interval)
        _running.add(self)

    # -- links -----------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise unless the node may be used here and now: WrongThreadError, ForkedError, StreamClosedError."""
        if self.forked:
            raise ForkedError("the node was started before a fork: start a new one in the child")
        self.check_thread()
        if self.closed.is_set():
            raise StreamClosedError("the node is closed")

    def check_thread(self) -> None:
        """Raise WrongThreadError in a thread other than the node's."""
        if get_ident() != self.thread:
            raise WrongThreadError("the node belongs to another thread: start one of its own in this thread")

    def adopt(self, sock: Any) -> Link:
        """Make a link of a connected socket or anything like one. Raises ConfigError, StreamClosedError."""
        self.check()
        link = Link(self, wrap_conn(sock, self.hub, self.config), self.hub)
        self.links[link] = Announcer(link, self.config.announce_interval)
        return link

    def link_ready(self, link: Link) -> None:
        """The handshake is done: decide about the link, and tell the peer what we offer."""
        peer_id = link.peer_id
        if peer_id == self.node_id and not link.loopback:
            link.end(SelfJoinError(f"{link.remote_address or 'the link'} leads back to this very node, {format_node_id(peer_id)}"))
            return
        rivals = [old for old in self.routes.direct(peer_id) if old.is_own_kind]
        self.routes.add_direct(peer_id, link)
        if link.loopback:
            return
        if rivals and link.is_own_kind:
            gevent.spawn(self._settle_rivalry, rivals[0], link)
        if self.config.role.announces:
            self._send_addresses(link, 0)
            for key in self._services_for(link):
                self.links[link].add(key, True)

    def _settle_rivalry(self, older: Link, newer: Link) -> None:
        """Keep the older of two links to a node, unless it turns out to be dead.

        Where both live the smaller id decides, so both keep the same.
        """
        heard = older.heard = older.heard or Event()
        older.send_ping()
        alive = heard.wait(self.config.handshake_timeout)
        if alive and older.is_ready:
            if self.node_id < newer.peer_id:
                newer.say_goodbye()
        elif not alive and newer.is_ready:
            older.end(RemoteProtocolError(f"no answer within {self.config.handshake_timeout:g} s, while a newer link to the node works"))

    def link_drained(self, link: Link) -> None:
        """The link takes no more streams."""
        self.routes.remove_direct(link.peer_id, link)

    def link_ended(self, link: Link) -> None:
        """Forget everything that was known through a link."""
        announcer = self.links.pop(link, None)
        if announcer is not None:
            announcer.close()
        self._discovered.pop(link, None)
        self.routes.remove_direct(link.peer_id, link)
        for key in self.registry.offered_by(link):
            if key.node_id != link.peer_id:
                self.routes.remove_behind(key.node_id, link)
        self.registry.remove_link(link)
        self.relaying.link_ended(link)

    def wait_unlinked(self, node_id: int, timeout: float) -> bool:
        """Wait until no direct link to a node is left; whether that is so."""
        gone = Event()

        def watch(changed: int, added: bool) -> None:
            if changed == node_id and not added:
                gone.set()

        self.route_watchers[watch] = None
        try:
            return not self.routes.direct(node_id) or bool(gone.wait(timeout))
        finally:
            self.route_watchers.pop(watch, None)

    def _route_changed(self, node_id: int, added: bool) -> None:
        for watcher in list(self.route_watchers):
            watcher(node_id, added)

    def _relay_target(self, node_id: int) -> Link | None:
        links = self.routes.direct(node_id)
        return links[0] if links and not links[0].loopback else None

    def relays_over(self, link: Link) -> bool:
        """Whether other nodes have talked through us over that link."""
        return self.relaying.uses(link)

    # -- dispatch --------------------------------------------------------------------------------------------------------------

    def receive(self, link: Link, command: int, key: bytes, payload: bytes) -> None:
        """Handle a frame that belongs to no stream. What is not known, or is late, is ignored."""
        handler = self._handlers.get(command)
        if handler is not None:
            handler(link, key, payload)

    def _receive_dial(self, link: Link, key: bytes, payload: bytes) -> None:
        remote, peer_id, port, _ = split_key(key)
        if remote != self.node_id or not peer_id or (peer_id == self.node_id and not link.loopback):
            return
        path = link.path_to(peer_id)
        if path is None:
            return
        old = link.streams.get(key)
        if old is not None:
            # As the original: with equal addresses the newest wins.
            old.break_off(LinkLostError("the peer dialled anew from the same port"))
        if len(link.streams) >= self.config.streams_per_link:
            self._refuse(path, key, ResetCode.LIMIT, f"streams_per_link {self.config.streams_per_link} reached")
            return
        listener = self.listeners.get(port)
        if listener is None:
            self._refuse(path, key, ResetCode.REFUSED, f"nothing is bound to port {port}")
            return
        stream = Stream(key, OPEN, path)
        link.add(stream)
        if listener.offer(stream):
            back = reverse_key(key)
            link.accepted = True
            link.send_control(encode_frame(Command.SYN, back))
            if not path.capabilities.own_kind:
                link.send_control(encode_frame(Command.SYN_ACK, back))
        else:
            link.forget(stream)
            self._refuse(path, key, ResetCode.REFUSED, f"the backlog of port {port} is full ({listener.backlog})")

    def _refuse(self, path: Path, key: bytes, code: int, reason: str) -> None:
        """Refuse a dial. The original knows no refusal: it gets a stream whose two halves end at once."""
        link, back = path.link, reverse_key(key)
        if not path.capabilities.reset:
            link.send_control(encode_frame(Command.SYN, back))
        link.queue.push_small(path.reset_frames(back, code, reason))
        if not link.flush_scheduled:
            link.schedule_flush()

    def _receive_service(self, link: Link, key: bytes, payload: bytes) -> None:
        _, node_id, _, port = split_key(key)
        if node_id == self.node_id or not node_id or len(payload) > MAX_WIRE_NAME_BYTES:
            return
        service = ServiceKey(payload, node_id, port)
        direct = node_id == link.peer_id
        if self.registry.is_offered(link, service):
            return
        if not self.registry.announce(link, service, direct):
            if self.registry.refused == 1:
                log.warning("service %r refused: services_per_link %d reached", decode_name(payload), self.config.services_per_link)
            return
        if not direct:
            self.routes.add_behind(node_id, link)
            self._discover(link, node_id, payload)

    def _receive_no_service(self, link: Link, key: bytes, payload: bytes) -> None:
        _, node_id, _, port = split_key(key)
        if self.registry.withdraw(link, ServiceKey(payload, node_id, port)) and node_id != link.peer_id:
            self.routes.remove_behind(node_id, link)
            if not self.routes.is_behind(node_id, link):
                self._discovered.get(link, set()).discard(node_id)

    def _receive_reset(self, link: Link, key: bytes, payload: bytes) -> None:
        _, node_id, _, _ = split_key(key)
        if node_id == link.peer_id:
            # The original's word for "that host is gone" cannot be about the one who says it.
            return
        path = link.paths.get(node_id)
        if path is None:
            return
        relay = format_node_id(link.peer_id)
        for stream in list(link.dialing.values()):
            if stream._path is path:
                stream.break_off(NoRouteError(f"relay {relay} has no route to node {format_node_id(node_id)}"))
        link.break_streams(node_id, LinkLostError(f"relay {relay} lost its link to node {format_node_id(node_id)}"))
        # Whoever comes back under this id knows nothing of us, and its relay nothing of a pause.
        del link.paths[node_id]

    def _receive_hello(self, link: Link, key: bytes, payload: bytes) -> None:
        _, node_id, _, _ = split_key(key)
        if node_id in (link.peer_id, self.node_id, 0):
            return
        path = link.path_to(node_id)
        if path is None:
            return
        was_known = path.capabilities.own_kind
        try:
            path.learn(decode_handshake(payload).capabilities)
        except RemoteProtocolError as error:
            # Not the link's fault: it only carried this.
            log.info("HELLO from %s ignored: %s", format_node_id(node_id), error)
            return
        if was_known:
            # It says so again because it has forgotten us; it will not answer the answer.
            path.greeted = False
        self._greet(path)

    def _greet(self, path: Path) -> None:
        """Tell a node behind a relay, once, what we understand."""
        if not path.greeted:
            path.greeted = True
            key = address_key(path.node_id, self.node_id, 0, 0)
            path.link.send_control(encode_frame(Command.HELLO, key, encode_handshake("", self.config.frame_size)))

    def _receive_pause(self, link: Link, key: bytes, payload: bytes) -> None:
        path = link.paths.get(split_key(key)[1])
        if path is not None and path.node_id != link.peer_id:
            path.paused = True

    def _receive_resume(self, link: Link, key: bytes, payload: bytes) -> None:
        path = link.paths.get(split_key(key)[1])
        if path is not None and path.paused:
            path.paused = False
            for stream in list(path.blocked):
                link.wake_later(stream, False, True)

    # -- services --------------------------------------------------------------------------------------------------------------

    def _services_for(self, link: Link) -> Iterable[ServiceKey]:
        """What a peer is told of: our own services and, from a router, those of our other direct peers."""
        own = self.registry.offered_by(LOCAL)
        if self.config.role is not Role.ROUTER:
            return own
        return own + [key for key in self.registry.direct_services() if key.node_id not in (link.peer_id, self.node_id)]

    def _direct_service_changed(self, key: ServiceKey, added: bool) -> None:
        if self.registry.is_relayed(key):
            # The service was there and stays, at another distance: for who keeps a set of values it is another one.
            self._tell_watchers(key, int(added), False)
            self._tell_watchers(key, int(not added), True)
        is_own = key.node_id == self.node_id
        if not self.config.role.announces or not (is_own or self.config.role is Role.ROUTER):
            return
        for link, announcer in self.links.items():
            if link.state in ("ready", "draining") and not link.loopback and key.node_id != link.peer_id:
                announcer.add(key, added)

    def _service_changed(self, key: ServiceKey, added: bool, distance: int) -> None:
        self._tell_watchers(key, distance, added)

    def _tell_watchers(self, key: ServiceKey, distance: int, added: bool) -> None:
        service = self._public_service(key, distance) if self.service_watchers else None
        if service is not None:
            for watcher in list(self.service_watchers):
                watcher(service, added)

    def _public_service(self, key: ServiceKey, distance: int) -> Service | None:
        """A service under its name in our environment; None for one of another environment."""
        suffix = self._suffix
        if suffix and not key.name.endswith(suffix):
            return None
        name = key.name[: len(key.name) - len(suffix)]
        return Service(decode_name(name), key.node_id, key.port, distance)

    def services(self) -> list[Service]:
        """Every service of our environment, sorted by name."""
        public = (self._public_service(key, self.registry.distance(key)) for key in self.registry)
        return sorted(service for service in public if service is not None)

    def find_services(self, name: str, port: int = 0) -> list[tuple[ServiceKey, Service]]:
        """The servers of a name. ``name:port`` finds what was bound with that port, or under that very text."""
        wire_name = encode_name(name)
        found = self.registry.find(wire_name + self._suffix, port)
        if not found and port:
            found = self.registry.find(b"%b:%d%b" % (wire_name, port, self._suffix))
        pairs = []
        for key, distance in found:
            service = self._public_service(key, distance)
            if service is not None:
                pairs.append((key, service))
        return pairs

    # -- following -------------------------------------------------------------------------------------------------------------

    def _send_addresses(self, link: Link, addressee: int) -> None:
        for text in advertised_addresses(self.config, self.link_listeners, link):
            key = address_key(addressee, self.node_id, 0, 0)
            link.send_control(encode_frame(Command.FOLLOW, key, text.encode()))

    def _discover(self, link: Link, node_id: int, name: bytes) -> None:
        asked = self._discovered.setdefault(link, set())
        if not self._follower.enabled or not name.endswith(self._suffix) or node_id in asked or self.routes.direct(node_id):
            return
        asked.add(node_id)
        link.send_control(encode_frame(Command.DISCOVER, address_key(node_id, self.node_id, 0, 0)))

    def _receive_discover(self, link: Link, key: bytes, payload: bytes) -> None:
        _, asker, _, _ = split_key(key)
        if self.config.role.announces and asker != self.node_id:
            self._send_addresses(link, asker)

    def _receive_follow(self, link: Link, key: bytes, payload: bytes) -> None:
        _, node_id, _, _ = split_key(key)
        if node_id in (self.node_id, link.peer_id) or not self.routes.is_behind(node_id, link):
            return
        own = [listener.link_address for listener in self.link_listeners]
        self._follower.consider(node_id, payload.decode("ascii", "replace"), own, lambda: bool(self.routes.links_to(node_id)))

    # -- listening and dialling ------------------------------------------------------------------------------------------------

    def listen(self, address: Any) -> LinkListener:
        """Listen for links and announce the address to those that are there."""
        listener = LinkListener(self, address, self.link_listeners.remove)
        self.link_listeners.append(listener)
        if self.config.role.announces:
            for link in self.links:
                if link.is_ready and not link.loopback:
                    self._send_addresses(link, 0)
        return listener

    def join(self, address: Any) -> Peering:
        """Join an address and stay joined."""
        self.peerings = [peering for peering in self.peerings if not peering.ended.is_set()]
        peering = Peering(self, address)
        self.peerings.append(peering)
        return peering

    def bind(self, text: str, backlog: int | None) -> Listener:
        """Bind a name, a port, or both. Raises ConfigError, NameInUseError."""
        service = parse_service(text)
        size = self.config.backlog if backlog is None else backlog
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"backlog {size!r} is not a whole number above 0")
        port = service.port or self._new_port()
        if port in self.listeners:
            raise NameInUseError(f"port {port} is already bound to {self.listeners[port].name!r}")
        key = ServiceKey(encode_name(service.name) + self._suffix, self.node_id, port) if service.name else None
        listener = Listener(self.hub, self.node_id, service.name, port, size, lambda closing: self._unbind(closing, key))
        self.listeners[port] = listener
        if key is not None:
            self.registry.announce(LOCAL, key, True)
        return listener

    def _unbind(self, listener: Listener, key: ServiceKey | None) -> None:
        self.listeners.pop(listener.port, None)
        if key is not None and not self.forked:
            self.registry.withdraw(LOCAL, key)

    def _new_port(self) -> int:
        port = self._next_port
        while port in self.listeners:
            port = port + 1 if port < _LAST_PORT else _FIRST_PORT
        self._next_port = port + 1 if port < _LAST_PORT else _FIRST_PORT
        return port

    def dial(self, target: Any, timeout: float | None, selector: Selector | None, *, http: bool = False, data: bytes = b"") -> Stream:
        """Dial a service or ``(node_id, port)``; see ``AstraNet.dial`` and ``AstraNet.http_dial``."""
        parsed = parse_service(target) if http else parse_dial_target(target)
        limit = self.config.dial_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        attempt = Attempt(deadline, limit, data)
        if not isinstance(parsed, ServiceAddress):
            return self._dial_node(*parsed, attempt)
        if http and parsed.port in _HTTP_PORTS:
            parsed = self._http_service(parsed, deadline)
        tried: set[ServiceKey] = set()
        while True:
            candidates = self._await_candidates(parsed, deadline, tried)
            if not candidates:
                node_id = _node_id_or_none(parsed)
                if node_id and self.routes.links_to(node_id):
                    return self._dial_node(node_id, parsed.port, attempt)
                raise ServiceNotFoundError(f"nobody offered service {str(target)!r} within {limit:g} s")
            key, chosen = candidates[0]
            if selector is not None or len(candidates) > 1:
                chosen = (selector or self._default_selector)([service for _, service in candidates])
                if all(chosen != service for _, service in candidates):
                    raise ConfigError(f"selector {selector!r} chose {chosen!r}, which is not one of the {len(candidates)} candidates")
                key = next(key for key, service in candidates if service == chosen)
            tried.add(key)
            attempt.sent = 0
            try:
                return self._dial_service(key, chosen, attempt)
            except (DialRefusedError, NoRouteError, LinkLostError) as error:
                # Announcements lag behind: another server of the name may still be there.
                if attempt.may_have_arrived(error) or not any(other not in tried for other, _ in self._candidates(parsed)):
                    raise

    def _http_service(self, service: ServiceAddress, deadline: float) -> ServiceAddress:
        """What an HTTP host with port 80 or 443 means: any server of the name, unless some are bound with that very port."""
        any_port = ServiceAddress(service.name, 0)
        node_id = _node_id_or_none(service)
        if node_id and self.routes.links_to(node_id) and not self._candidates(any_port):
            return service
        self._await_candidates(any_port, deadline, set())
        return service if self._candidates(service) else any_port

    def _candidates(self, service: ServiceAddress) -> list[tuple[ServiceKey, Service]]:
        """The servers to choose from, kept until an offer changes: looking them up is a fifth of the cost of a dial."""
        if self._found_at != self.registry.generation or len(self._found) >= _MAX_FOUND:
            self._found.clear()
            self._found_at = self.registry.generation
        found = self._found.get(service)
        if found is None:
            found = self.find_services(service.name, service.port)
            if self.loopback_link is None:
                found = [(key, public) for key, public in found if key.node_id != self.node_id]
            self._found[service] = found
        return found

    def _await_candidates(self, service: ServiceAddress, deadline: float, tried: set[ServiceKey]) -> list[tuple[ServiceKey, Service]]:
        """The servers that have not been tried; waits for one until the deadline, unless some were there or the text is a node id."""
        while True:
            found = self._candidates(service)
            if tried:
                found = [(key, public) for key, public in found if key not in tried]
            if found or tried or ((node_id := _node_id_or_none(service)) and self.routes.links_to(node_id)):
                return found
            left = deadline - time.monotonic()
            if left <= 0 or not self.wait_service(service.name, left):
                return []
            self.check()

    def wait_service(self, name: str, timeout: float | None) -> bool:
        """Wait until a service of that name (or ``name:port``) appears, or the node closes; False after ``timeout`` seconds."""
        appeared = Event()

        def watch(service: Service, added: bool) -> None:
            if added and (service.name == name or service.name.startswith(f"{name}:")):
                appeared.set()

        def stop(_: Event) -> None:
            appeared.set()

        self.service_watchers[watch] = None
        self.closed.rawlink(stop)
        try:
            return bool(appeared.wait(timeout))
        finally:
            self.closed.unlink(stop)
            self.service_watchers.pop(watch, None)

    def _dial_service(self, key: ServiceKey, service: Service, attempt: Attempt) -> Stream:
        if key.node_id != self.node_id:
            return self._dial_any(key, attempt)
        if self.loopback_link is None:
            raise NoRouteError(f"service {service.name!r} is this node's own, and loopback is off: use with_loopback()")
        self.loopback_link.wait_ready(attempt.deadline - time.monotonic())
        return self._dial_over(self.loopback_link, key, attempt)

    def _dial_node(self, node_id: int, port: int, attempt: Attempt) -> Stream:
        key = ServiceKey(b"", node_id, port)
        if node_id == self.node_id:
            return self._dial_service(key, Service(f":{port}", node_id, port, 0), attempt)
        return self._dial_any(key, attempt)

    def _links_for(self, key: ServiceKey) -> Sequence[Hashable]:
        """The links to dial a service over; a key without a name is a node's port."""
        return self.routes.direct(key.node_id) or (self.registry.links_to(key) if key.name else self.routes.links_to(key.node_id))

    def _dial_any(self, key: ServiceKey, attempt: Attempt) -> Stream:
        """Dial over one of equally good links, at random: the second of two relays must carry its share. If it fails, over the others."""
        error: Exception | None = None
        tried: list[Link] = []
        while True:
            usable = [link for link in self._links_for(key) if isinstance(link, Link) and link.is_ready and link not in tried]
            if not usable:
                raise error or NoRouteError(f"no route to node {format_node_id(key.node_id)} ({self._target_text(key)})")
            link = usable[randbelow(len(usable))] if len(usable) > 1 else usable[0]
            try:
                return self._dial_over(link, key, attempt)
            except (NoRouteError, LinkLostError) as caught:
                if attempt.may_have_arrived(caught):
                    raise
                tried.append(link)
                error = caught

    def _target_text(self, key: ServiceKey) -> str:
        """What is dialled, for an error."""
        if key.name and (service := self._public_service(key, 0)) is not None:
            return f"service {service.name!r}"
        return f"node {format_node_id(key.node_id)} port {key.port}"

    def _dial_over(self, link: Link, key: ServiceKey, attempt: Attempt) -> Stream:
        path = link.path_to(key.node_id)
        if path is None:
            raise LimitError(f"paths_per_link {self.config.paths_per_link} reached on the way to {self._target_text(key)}")
        if len(link.streams) >= self.config.streams_per_link:
            raise LimitError(f"streams_per_link {self.config.streams_per_link} reached on the link to {self._target_text(key)}")
        if not path.greeted:
            self._greet(path)
        stream = self._open(link, path, key.port)
        data = attempt.data
        try:
            attempt.sent = stream.send_early(data) if data else 0
            stream.wait_dialled(attempt.deadline)
            if attempt.sent < len(data):
                attempt.send_rest(stream)
        except StreamTimeout as error:
            stream.close()
            raise DialTimeout(f"no answer from {self._target_text(key)} within {attempt.limit:g} s") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def _open(self, link: Link, path: Path, port: int) -> Stream:
        own_port = self._new_port()
        key = address_key(self.node_id, path.node_id, own_port, port)
        while key in link.streams:
            own_port = self._new_port()
            key = address_key(self.node_id, path.node_id, own_port, port)
        stream = Stream(key, DIALING, path)
        link.add(stream)
        link.dialing[key[16:20]] = stream
        link.send_control(encode_frame(Command.DIAL, address_key(path.node_id, self.node_id, port, own_port)))
        return stream

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def route_list(self) -> list[Route]:
        """Every known way to every node, sorted."""
        return sorted({Route(node_id, distance, link.peer_id) for node_id, distance, link in self.routes.items() if not link.loopback})

    # -- ending ----------------------------------------------------------------------------------------------------------------

    def close(self, timeout: float) -> None:
        """Close listeners, peerings and links; what is queued is sent within ``timeout`` seconds."""
        if self.closed.is_set():
            return
        self.check_thread()
        self.closed.set()
        _running.discard(self)
        if self.forked:
            return
        self._follower.close()
        for link_listener in list(self.link_listeners):
            link_listener.close()
        for peering in self.peerings:
            peering.stop()
        for listener in list(self.listeners.values()):
            listener.close()
        links = list(self.links)
        try:
            if timeout > 0 and gevent.getcurrent() is not self.hub:
                # All at once: a peer that does not answer must not use up the time of the others.
                gevent.joinall([gevent.spawn(link.close, timeout) for link in links])
        finally:
            # Also when this greenlet is killed or timed out meanwhile.
            for link in links:
                link.close(0)
            for peering in self.peerings:
                peering.close()
            self.busy_poll.close()

    def heir_addresses(self) -> tuple[LinkAddress, ...]:
        """What a forked child's own node has to join: what this one joins, and this one itself where it listens."""
        if self.forked:
            return self._joined_at_fork
        joined = [peering.address for peering in self.peerings if not peering.closed]
        own = [reachable_address(listener.link_address) for listener in self.link_listeners if not listener.closed]
        return tuple(dict.fromkeys([*joined, *own]))

    def after_fork(self) -> None:
        """In a forked child: refuse everything, leave the parent's links alone."""
        self._joined_at_fork = self.heir_addresses()
        self.forked = True
        self.closed.set()
        self.busy_poll.close()
        for listener in self.listeners.values():
            listener.forked = True
        for link in self.links:
            link.after_fork()
        for link_listener in self.link_listeners:
            link_listener.after_fork()
        for peering in [*self.peerings, *self._follower.peerings]:
            peering.after_fork()


class Attempt:
    """What all tries of one ``dial()`` share: ``deadline`` is monotonic, ``limit`` the seconds to name in an error."""

    __slots__ = ("data", "deadline", "limit", "sent")

    def __init__(self, deadline: float, limit: float, data: bytes) -> None:
        if len(data) > INITIAL_WINDOW:
            raise ConfigError(f"{len(data)} bytes of data are more than go with a dial ({INITIAL_WINDOW}): send them on the stream")
        self.deadline = deadline
        self.limit = limit
        self.data = data
        # Bytes of it that the last try has sent, in full or in part.
        self.sent = 0

    def send_rest(self, stream: Stream) -> None:
        """Send what did not go with the dial. Raises StreamTimeout at the deadline."""
        rest, self.sent = memoryview(self.data)[self.sent :], len(self.data)
        timeout = stream.gettimeout()
        stream.settimeout(max(0.001, self.deadline - time.monotonic()))
        stream.sendall(rest)
        stream.settimeout(timeout)

    def may_have_arrived(self, error: Exception) -> bool:
        """Whether a server may have read the data although the try failed. One that refuses has not."""
        return self.sent > 0 and not isinstance(error, DialRefusedError)


def _node_id_or_none(service: ServiceAddress) -> int:
    """The node id that a dial target may be instead of a name, 0 when it is none. Names win: this is asked last."""
    if len(service.name) != 11 or not service.port:
        return 0
    try:
        return parse_node_id(service.name)
    except ConfigError:
        return 0


class _Running:
    """The nodes of this process, for a fork to find. The hook is installed with the first of them: importing does nothing."""

    def __init__(self) -> None:
        self._nodes: weakref.WeakSet[Node] = weakref.WeakSet()
        self._hooked = False

    def add(self, node: Node) -> None:
        if not self._hooked and hasattr(os, "register_at_fork"):
            self._hooked = True
            os.register_at_fork(after_in_child=self._after_fork_in_child)
        self._nodes.add(node)

    def discard(self, node: Node) -> None:
        self._nodes.discard(node)

    def _after_fork_in_child(self) -> None:
        for node in list(self._nodes):
            node.after_fork()
        self._nodes.clear()


_running: Final = _Running()
