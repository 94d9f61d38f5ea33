"""Joining: dial out to other nodes, back off, stay joined; listen for those who join; follow what owners announce."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import gevent
from gevent import socket
from gevent.event import Event

from .address import LinkAddress, format_node_id, parse_address
from .config import Config
from .errors import AstraNetError, ConfigError, PeeringTimeout, SelfJoinError, StreamClosedError
from .transport.link import Link

__all__ = ["Follower", "LinkListener", "Peering", "advertised_addresses", "makes_own_sockets", "reachable_address"]

log = logging.getLogger("astranet_gevent")

# A link that held for this long was a good one: the next attempt starts without back-off.
_GOOD_LINK: Final = 5.0

# Attempts at an address that was followed before it is left alone.
_FOLLOW_ATTEMPTS: Final = 5

# Addresses held of one node: a host has a handful.
_FOLLOW_ADDRESSES: Final = 8

# Accepting fails with these while the process or the system is short of something.
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# Seconds to wait in a shortage: what gevent's servers begin with.
_SHORTAGE_DELAY: Final = 0.1


class JoinOwner(Protocol):
    """What joining asks of its node."""

    node_id: int
    config: Config

    def check_thread(self) -> None:
        """Raise WrongThreadError in a thread other than the node's."""
        ...

    def adopt(self, sock: Any) -> Link:
        """Make a link of a connected socket."""
        ...

    def wait_unlinked(self, node_id: int, timeout: float) -> bool:
        """Wait until no direct link to a node is left; whether that is so."""
        ...


# Greenlets that make sockets of the node's own, for links: what they resolve, bind and connect is never a service of the mesh, whatever has
# been patched.
_own: Final[set[Any]] = set()


@contextlib.contextmanager
def _own_sockets() -> Iterator[None]:
    current = gevent.getcurrent()
    _own.add(current)
    try:
        yield
    finally:
        _own.discard(current)


def makes_own_sockets() -> bool:
    """Whether the greenlet that runs makes sockets for links of a node."""
    return bool(_own) and gevent.getcurrent() in _own


class Peering:
    """Made by ``join()``: dials the address, and again whenever the link is lost, until it is closed.

    Attempts are spaced by a jittered back-off from ``rejoin_min`` to ``rejoin_max`` seconds. ``error`` is what the last attempt met.
    """

    def __init__(self, owner: JoinOwner, address: LinkAddress, expected: int = 0, wanted: Callable[[], bool] | None = None) -> None:
        #: The address of the attempt under way; there is more than one only for a node that is followed.
        self.address = address
        self.error: Exception | None = None
        self.attempts = 0
        #: The node at the other end, 0 until its first handshake.
        self.node_id = 0
        self._owner = owner
        self._expected = expected
        self._wanted = wanted
        self._addresses = [address]
        self._failures = 0
        self._link: Link | None = None
        self._connecting: Any = None
        self._closed = Event()
        # Set while joined, and while the last attempt's error is one that waiting does not mend.
        self._settled = Event()
        # Set once an attempt has had an outcome, good or bad.
        self._attempted = Event()
        self.ended = Event()
        self._greenlet = gevent.spawn(self._run)

    @property
    def ready(self) -> bool:
        """Whether the link is up (this one, or another to the same node that made this one superfluous)."""
        return self._settled.is_set() and self.error is None and not self._closed.is_set()

    @property
    def closed(self) -> bool:
        """Whether it joins no more: closed, or with a node that has been."""
        return self._closed.is_set()

    @property
    def link(self) -> Link | None:
        """The link of this peering, None while there is none."""
        return self._link

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until joined. Raises PeeringTimeout naming the last error, SelfJoinError at once, StreamClosedError once closed."""
        self._settled.wait(timeout)
        if self._closed.is_set():
            raise StreamClosedError(f"the peering with {self.address} is closed")
        if isinstance(self.error, SelfJoinError):
            raise self.error
        if not self._settled.is_set():
            raise PeeringTimeout(f"not joined to {self.address} within {timeout} s: {self.error or 'no answer yet'}") from self.error

    def wait_attempted(self, timeout: float | None = None) -> bool:
        """Wait until the first attempt has had an outcome (``ready`` and ``error`` tell which); whether it has."""
        return bool(self._attempted.wait(timeout))

    def stop(self) -> None:
        """Stop joining; the link stays until it ends by itself."""
        self._closed.set()
        self._settled.set()
        self._attempted.set()
        if self._connecting is not None:
            # Wakes the greenlet that waits in connect().
            self._connecting.close()

    def close(self) -> None:
        """Stop joining and close the link."""
        if not self._closed.is_set():
            self._owner.check_thread()
        self.stop()
        if self._link is not None:
            self._link.close()

    def after_fork(self) -> None:
        """In a forked child: dial no more. Descriptors are closed by the child's own loop, once gevent has made it anew."""
        connecting, self._connecting = self._connecting, None
        self._closed.set()
        self._settled.set()
        self._attempted.set()
        if connecting is not None:
            gevent.get_hub().loop.run_callback(connecting.close)

    def _run(self) -> None:
        try:
            with _own_sockets():
                while not self._closed.is_set() and self._is_wanted():
                    self._attempt()
                    self._failures += 1
                    self._settled.clear()
                    if self._closed.wait(self._delay()):
                        break
        finally:
            self._settled.set()
            self._attempted.set()
            self.ended.set()

    def _is_wanted(self) -> bool:
        return self._wanted is None or (self._wanted() and self._failures < _FOLLOW_ATTEMPTS * len(self._addresses))

    def add_address(self, address: LinkAddress) -> bool:
        """Another address of the same node, to be tried in turn; False when it is known, or one too many."""
        if address in self._addresses or len(self._addresses) >= _FOLLOW_ADDRESSES:
            return False
        self._addresses.append(address)
        return True

    def _attempt(self) -> None:
        """Dial once and stay until the link has ended."""
        self.address = self._addresses[self.attempts % len(self._addresses)]
        self.attempts += 1
        try:
            link = _adopt(self._owner, self._connect())
        except (OSError, AstraNetError) as error:
            self._note(error)
            return
        self._link = link
        try:
            if self._closed.is_set():
                link.close(0)
                return
            link.wait_ready(self._owner.config.handshake_timeout)
            if self._expected and link.peer_id != self._expected:
                raise AstraNetError(
                    f"node {format_node_id(link.peer_id)} answers at {self.address}, announced by {format_node_id(self._expected)}"
                )
        except AstraNetError as error:
            self._note(error)
            link.close(0)
        else:
            self._stay(link)
        finally:
            self._link = None

    def _stay(self, link: Link) -> None:
        self.error = None
        self.node_id = link.peer_id
        self._settled.set()
        self._attempted.set()
        started = time.monotonic()
        # No deadline: staying joined is what this greenlet is for; close() ends the link.
        link.wait()
        # Another link to the same node won: stay joined through that one.
        while link.error is None and not self._closed.is_set() and not self._owner.wait_unlinked(self.node_id, 1.0):
            continue
        self.error = link.error
        if time.monotonic() - started > _GOOD_LINK:
            self._failures = 0

    def _connect(self) -> Any:
        """A connected socket. Raises OSError (gaierror included)."""
        if self.address.kind == "unix":
            return self._connect_to(socket.AF_UNIX, self.address.host)
        error: OSError | None = None
        host = self.address.host or "localhost"
        try:
            # Others may announce any text. Asked first: getaddrinfo would raise the same, and gevent print it as an error of its thread.
            host.encode("idna")
        except UnicodeError as caught:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is no host name: {caught}") from caught
        for family, _, _, _, target in socket.getaddrinfo(host, self.address.port, 0, socket.SOCK_STREAM):
            try:
                return self._connect_to(family, target)
            except OSError as caught:
                error = caught
        raise error or OSError(errno.EADDRNOTAVAIL, f"{self.address} resolves to no address")

    def _connect_to(self, family: int, target: Any) -> Any:
        if self._closed.is_set():
            raise StreamClosedError(f"the peering with {self.address} is closed")
        sock = self._connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._owner.config.handshake_timeout)
            sock.connect(target)
        except BaseException:
            sock.close()
            raise
        finally:
            self._connecting = None
        return sock

    def _note(self, error: Exception) -> None:
        if isinstance(error, SelfJoinError) and not isinstance(self.error, SelfJoinError):
            log.warning("joining %s: %s", self.address, error)
        elif self.error is None or str(error) != str(self.error):
            log.info("joining %s: %s", self.address, error)
        self.error = error
        self._attempted.set()
        if isinstance(error, SelfJoinError):
            self._settled.set()

    def _delay(self) -> float:
        """Seconds until the next attempt.

        Doubled each time, jittered by half, so that those who lost one router do not come back at once.
        """
        config = self._owner.config
        if isinstance(self.error, SelfJoinError):
            # The address may lead elsewhere some day, but not soon.
            self._settled.set()
            return config.rejoin_max
        ceiling = min(config.rejoin_max, config.rejoin_min * 2.0 ** min(self._failures - 1, 30))
        return random.uniform(ceiling / 2, ceiling)

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else "ready" if self.ready else f"not joined: {self.error}"
        return f"<Peering {self.address} {state}>"


class LinkListener:
    """Made by ``listen()``.

    Makes a link of every connection. At most ``handshakes`` links may be unfinished; further ones are closed at once.
    """

    def __init__(self, owner: JoinOwner, address: LinkAddress, on_close: Callable[[LinkListener], None]) -> None:
        self.requested = address
        self.closed = False
        self.refused = 0
        self._owner = owner
        self._on_close = on_close
        self._unfinished: set[Link] = set()
        with _own_sockets():
            self._socket = _listen_socket(address)
        self._identity = _file_identity(address.host) if address.kind == "unix" else None
        self.link_address = address if address.kind == "unix" else LinkAddress("tcp", *self._socket.getsockname()[:2])
        self._stop = Event()
        self._greenlet = gevent.spawn(self._accept_loop)

    @property
    def address(self) -> tuple[str, int] | str:
        """The address as bound: ``(host, port)``, or ``"unix:/path"``. ``join()`` takes it."""
        if self.link_address.kind == "unix":
            return str(self.link_address)
        return self.link_address.host, self.link_address.port

    def close(self) -> None:
        """Stop listening; links that were made stay."""
        if self.closed:
            return
        self._owner.check_thread()
        self.closed = True
        self._stop.set()
        self._socket.close()
        if self._identity is not None and _file_identity(self.link_address.host) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self.link_address.host)
        self._on_close(self)

    def after_fork(self) -> None:
        """In a forked child: accept nothing, and leave the parent's file alone."""
        self.closed = True
        gevent.get_hub().loop.run_callback(self._socket.close)

    def _accept_loop(self) -> None:
        while not self.closed:
            try:
                with _own_sockets():
                    sock, _ = self._socket.accept()
            except OSError as error:
                if self.closed or error.errno == errno.EBADF:
                    return
                log.warning("accepting on %s: %s", self.link_address, error)
                if error.errno in _SHORTAGES:
                    self._stop.wait(_SHORTAGE_DELAY)
                continue
            self._welcome(sock)

    def _welcome(self, sock: Any) -> None:
        self._unfinished = {link for link in self._unfinished if link.state == "handshake"}
        limit = self._owner.config.handshakes
        if len(self._unfinished) >= limit:
            self.refused += 1
            log.warning("connection on %s refused: %d links in handshake (handshakes %d)", self.link_address, limit, limit)
            sock.close()
            return
        try:
            self._unfinished.add(_adopt(self._owner, sock))
        except (OSError, AstraNetError) as error:
            log.info("connection on %s refused: %s", self.link_address, error)

    def __repr__(self) -> str:
        return f"<LinkListener {self.link_address}{' closed' if self.closed else ''}>"


def _adopt(owner: JoinOwner, sock: Any) -> Link:
    """A link of a socket, which is closed when that fails."""
    try:
        return owner.adopt(sock)
    except BaseException:
        sock.close()
        raise


def _listen_socket(address: LinkAddress) -> Any:
    if address.kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: Any = address.host
        _remove_stale(address.host)
    else:
        host = address.host or "0.0.0.0"
        family, _, _, _, target = socket.getaddrinfo(host, address.port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if address.kind != "unix" and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(1024)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the file of a listener that is no more, as far as that can be told: a socket at which nobody answers."""
    # Connecting to any other file is refused just as well.
    if not _is_socket(path):
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            os.unlink(path)
    except OSError:
        return
    finally:
        probe.close()


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def advertised_addresses(config: Config, listeners: list[LinkListener], link: Link) -> list[str]:
    """The ``host:port`` texts to announce on a link. A wildcard listener is announced under the address that this link has."""
    if config.advertise is not None:
        return [str(address) for address in config.advertise]
    texts = []
    for listener in listeners:
        address = listener.link_address
        if address.kind != "tcp":
            continue
        if address.host in ("0.0.0.0", "::"):
            if not link.local_address:
                continue
            address = address._replace(host=parse_address(link.local_address).host)
        texts.append(str(address))
    return texts


def reachable_address(address: LinkAddress) -> LinkAddress:
    """Where a process on the same machine reaches a listener: one that is bound to every interface, over loopback."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host)
    return address if loopback is None else address._replace(host=loopback)


class Follower:
    """Opens direct links to nodes behind a relay, at addresses that they announce themselves.

    Policy: only with ``follow`` on and a role that follows, only nodes that are known to be behind that link, never an own address or a
    node with a direct link, at most ``max_followed`` at a time, and a link stays only when the node that announced the address answers.
    """

    def __init__(self, owner: JoinOwner, is_unlinked: Callable[[int], bool]) -> None:
        self._owner = owner
        self._is_unlinked = is_unlinked
        self._peerings: dict[int, Peering] = {}

    @property
    def count(self) -> int:
        """Addresses being followed."""
        return len(self._peerings)

    @property
    def peerings(self) -> list[Peering]:
        """The peerings with nodes that are followed."""
        return list(self._peerings.values())

    @property
    def enabled(self) -> bool:
        """Whether this node follows at all."""
        config = self._owner.config
        return config.follow and config.role.follows and config.max_followed > 0

    def consider(self, node_id: int, text: str, own_addresses: list[LinkAddress], wanted: Callable[[], bool]) -> bool:
        """Follow an address that ``node_id`` announced; False when the policy says no. ``wanted``: whether it still makes sense."""
        for known in [known for known, peering in self._peerings.items() if peering.ended.is_set()]:
            del self._peerings[known]
        if not self.enabled or not self._is_unlinked(node_id):
            return False
        try:
            address = parse_address(text)
        except ConfigError:
            return False
        if address.kind != "tcp" or not address.host or not address.port or address in own_addresses:
            return False
        if node_id in self._peerings:
            return self._peerings[node_id].add_address(address)
        if len(self._peerings) >= self._owner.config.max_followed:
            log.info("not following %s: max_followed %d reached", text, self._owner.config.max_followed)
            return False
        self._peerings[node_id] = Peering(self._owner, address, node_id, wanted)
        return True

    def close(self) -> None:
        """Stop following."""
        for peering in self._peerings.values():
            peering.close()
        self._peerings.clear()
