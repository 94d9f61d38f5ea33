"""Replays a recording with one of our nodes in the place of a Go node.

The node under test is attached to one socketpair per hop; the raw peer at the other end sends the
recorded bytes of the neighbour. Each frame goes out only after the node has produced what it had
produced at that point of the recording, so cause and effect are kept without the recorded times.
The applications' calls are made on our node. It has another id and other ports than the recorded
one: frames are translated both ways, and everything is judged in the recording's terms.

What the node sends must be what was recorded, except for the freedoms in freedoms.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import AstraNetError, DialTimeout

from . import freedoms
from .conftest import Bench, outcome
from .peer import (
    ACK,
    DATA,
    DEADLINE,
    DIAL,
    FIN1,
    FIN2,
    FOLLOW,
    HANDSHAKE,
    PING,
    PONG,
    RESET,
    REWIND,
    SERVICE,
    SYN,
    SYN_ACK,
    WINDOW,
    Frame,
    LinkEndedError,
    NothingCameError,
    RawPeer,
    read_u32,
    u32,
)
from .recording import ENDS, Moment, Recording, parse_id, pattern

# How long a dial that has to fail is given; the recorded ones waited 1.5 to 3 s.
FAILING_DIAL = 0.2

# A service that the node announces when all is over.
MARKER = b"end of the replay"

# The order that the frames of one stream in one direction keep, whatever else is free.
RANKS = {DIAL: 0, SYN: 0, ACK: 1, SYN_ACK: 1, DATA: 2, FIN2: 3, FIN1: 4}


class Side:
    """One hop of the node under test: the raw peer, and what was recorded up to now."""

    def __init__(self, hop: str, peer: RawPeer, link: Any) -> None:
        self.hop = hop
        self.peer = peer
        self.link = link
        self.expected: list[Frame] = []
        self.sent: list[Frame] = []
        # Frames of streams whose window is used up: a Go sender's Write would wait with them.
        self.blocked: list[Frame] = []
        # PONGs that answered fences: nothing of the recording.
        self.fences = 0
        self.on_arrival: Callable[[], None] = lambda: None
        self._arrived = Event()
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            try:
                self.peer.receive()
            except NothingCameError:
                continue
            except LinkEndedError:
                # As a Go node, which closes its end at once; until then ours would wait for that.
                self.peer.close()
                return
            except OSError:
                return
            self.on_arrival()
            self._arrived.set()

    def wait_until(self, condition: Callable[[], bool], what: object) -> None:
        """Wait for something that more frames of the node will bring about."""
        with gevent.Timeout(DEADLINE, NothingCameError(f"{what} on {self.hop}; got {self.peer.received[-10:]}")):
            while not condition():
                self._arrived.clear()
                self._arrived.wait()

    def fence(self) -> None:
        """Wait until the node has dealt with all that was sent; see RawPeer.fence()."""
        for _ in range(2):
            before = self.pongs
            self.fences += 1
            self.peer.send(Frame(PING))
            self.wait_until(lambda: self.pongs > before, "PONG")  # noqa: B023 - called before the next turn

    def wait_end(self) -> None:
        """Wait until the node has closed the link."""
        self._reader.get(timeout=DEADLINE)
        assert self.peer.ended

    @property
    def pongs(self) -> int:
        """PONGs that have come."""
        return self.peer.received.count(Frame(PONG))

    def close(self) -> None:
        """Drop the link."""
        self._reader.kill()
        self.peer.close()


@dataclass(frozen=True)
class Case:
    """A recording and the node of it that ours replaces."""

    recording: str
    node: str
    config: Mapping[str, Any] = field(default_factory=dict)
    # Tags of calls that are not made, with the reason.
    left_out: Mapping[str, str] = field(default_factory=dict)
    # Streams whose dial the recorded peer never answers: ours ends with a timeout.
    unanswered: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.recording}-{self.node}"


class Replay:
    """One run. ``run()`` replays, ``verify()`` compares what is left to compare at the end."""

    def __init__(self, bench: Bench, case: Case) -> None:
        self.case = case
        self.recording = Recording(case.recording)
        self.events = self.recording.events(case.node)
        self.ends = ENDS[case.node]
        self.recorded_id = self._find_id()
        self.mesh: AstraNet = bench.node(**{"role": Role.BOTH, **case.config})
        self.sides: dict[str, Side] = {}
        # Recorded port -> port of our node, for services and dialled streams; TCP ports likewise.
        self.ports: dict[int, int] = {}
        self.addresses: dict[bytes, bytes] = {}
        self.listeners: dict[str, Any] = {}
        self.streams: dict[str, Any] = {}
        self.hosts: dict[str, int] = {}
        self.dead_hosts: set[int] = set()
        self.calls: dict[str, gevent.Greenlet[..., Any]] = {}
        self.results = {event.api["tag"]: event.api for event in self.events if "cmd" in event.api}
        self.over = False
        self._bench = bench

    def _find_id(self) -> int:
        for event in self.events:
            if event.frame.cmd == HANDSHAKE and self._is_ours(event):
                return event.frame.local
        raise AssertionError(f"{self.case.name} has no HANDSHAKE of the node")

    def _is_ours(self, event: Moment) -> bool:
        return self.ends[event.hop] == event.sender

    # -- the run

    def run(self) -> Replay:
        """Replay the recording to its end, or to the death of the node that ours stands for."""
        for event in self.events:
            if self.over:
                break
            if event.kind == "api":
                self._run_api(event.api)
            elif event.kind == "open":
                self._open(event.hop)
            elif event.kind == "eof":
                self._end(event)
            elif self._is_ours(event):
                self._await_ours(self.sides[event.hop], event.frame)
            else:
                self._send_theirs(self.sides[event.hop], event.frame)
        return self

    def _open(self, hop: str) -> None:
        peer, link = self._bench.silent_peer(self.mesh)
        side = self.sides[hop] = Side(hop, peer, link)
        side.on_arrival = lambda: self._send_unblocked(side) if side.blocked else None

    def _end(self, event: Moment) -> None:
        """A link ended: its other end has died, or the recorded node in our place has."""
        side = self.sides[event.hop]
        if self._is_ours(event):
            # The other end of the link follows in the recording; one end is enough.
            self.over = self.over or not side.peer.ended
            return
        if not side.peer.ended:
            self.verify_frames(side)
            side.close()
            side.link.wait(DEADLINE)
            self.dead_hosts |= {frame.local for frame in side.sent}

    def _await_ours(self, side: Side, frame: Frame) -> None:
        side.expected.append(frame)
        if freedoms.may_be_missing(self, side, frame):
            return
        if frame.cmd == DIAL and frame.local == self.recorded_id:
            self._await_dial(side, frame)
            return
        side.wait_until(lambda: self._produced(side, frame), frame)

    def _await_dial(self, side: Side, frame: Frame) -> None:
        # Our port counter may differ from the recorded one: the first DIAL not yet known is the one.
        known = set(self.ports.values())

        def matches(got: Frame) -> bool:
            return got.cmd == DIAL and got.key[:3] == frame.key[:3] and got.lport not in known

        side.wait_until(lambda: any(map(matches, self.got(side))), frame)
        self.ports[frame.lport] = next(filter(matches, self.got(side))).lport

    def _produced(self, side: Side, frame: Frame) -> bool:
        got = self.got(side)
        if frame.cmd == HANDSHAKE:
            return any(item.cmd == HANDSHAKE for item in got)
        if frame.cmd == DATA:
            return _data(got, frame) >= _data(side.expected, frame)
        if frame.cmd == PONG:
            return got.count(frame) - side.fences >= side.expected.count(frame)
        return frame in got

    def _send_theirs(self, side: Side, frame: Frame) -> None:
        if frame.cmd in (DATA, FIN2):
            side.blocked.append(frame)
            self._send_unblocked(side)
            return
        if frame.cmd == HANDSHAKE:
            side.peer.node_id = frame.local
        side.sent.append(frame)
        side.peer.send(self.to_node(frame))
        if frame.cmd == RESET:
            side.fence()
            self.dead_hosts.add(frame.local)

    def _send_unblocked(self, side: Side) -> None:
        """Send what the windows have room for, in order within each stream.

        As Go's sender, which cuts its frames to the window that is left: it is not the recorded
        one where credit comes in lumps.
        """
        held: list[Frame] = []
        for frame in side.blocked:
            room = WINDOW - _data(side.sent, frame) + self.credit(side, frame)
            if any(frame.key == item.key for item in held):
                room = -1
            now, later = frame.payload[: max(0, room)], frame.payload[max(0, room) :]
            if now or (not frame.payload and room >= 0):
                part = frame._replace(payload=now)
                side.sent.append(part)
                side.peer.send(self.to_node(part))
            if later or room < 0:
                held.append(frame._replace(payload=later))
        side.blocked = held

    # -- frames

    def got(self, side: Side) -> list[Frame]:
        """Everything the node has sent on this hop, in the recording's terms."""
        return [self.from_node(frame) for frame in side.peer.received]

    def credit(self, side: Side, frame: Frame) -> int:
        """Credit that the node gave for the stream to which a DATA frame of the peer belongs."""
        back = (frame.local, frame.remote, frame.lport, frame.rport)
        got = self.got(side)
        return sum(read_u32(item) for item in got if item.cmd == REWIND and item.key == back)

    def to_node(self, frame: Frame) -> Frame:
        """A recorded frame with the ids and ports of our node in it."""
        return _swap(frame, {self.recorded_id: self.mesh.node_id}, self.ports, self.addresses)

    def from_node(self, frame: Frame) -> Frame:
        """A frame of our node with the recorded ids and ports in it."""
        return _swap(
            frame,
            {self.mesh.node_id: self.recorded_id},
            {ours: recorded for recorded, ours in self.ports.items()},
            {ours: recorded for recorded, ours in self.addresses.items()},
        )

    # -- the applications' calls

    def _run_api(self, api: dict[str, Any]) -> None:
        if api.get("tag") in self.case.left_out:
            return
        if "call" in api:
            verb, *args = api["call"].split()
            self._CALLS[verb](self, api["tag"], *args)
        elif api.get("event") == "accepted":
            self._accept(api)
        elif "cmd" in api:
            check = self._CHECKS.get(api["cmd"])
            if check is not None:
                check(self, api)

    def _listen(self, tag: str, address: str) -> None:
        if self.case.config.get("advertise") == ():
            return
        listener = self.mesh.listen(("127.0.0.1", 0))
        recorded = self._recorded_follow() or address.encode()
        self.addresses[recorded] = str(listener.link_address).encode()

    def _recorded_follow(self) -> bytes | None:
        """The address that the node announced; the listen call names the proxy of the recorder."""
        for event in self.events:
            if event.frame.cmd == FOLLOW and event.frame.local == self.recorded_id:
                return event.frame.payload
        return None

    def _bind(self, tag: str, name: str, mode: str) -> None:
        listener = self.listeners[name] = self.mesh.bind(name)
        self.ports[int(self.results[tag]["addr"].split(":")[1])] = listener.port
        if mode == "echo":
            gevent.spawn(_serve_echo, listener)

    def _unbind(self, tag: str, name: str) -> None:
        self.listeners.pop(name).close()

    def _accept(self, api: dict[str, Any]) -> None:
        listener = self.listeners[api["name"]]
        listener.settimeout(DEADLINE)
        stream, (node_id, port) = listener.accept()
        host, recorded_port = api["remote"].split(":")
        assert (node_id, port) == (parse_id(host), int(recorded_port))
        self.streams[api["id"]] = stream
        self.hosts[api["id"]] = node_id

    def _dial(self, tag: str, network: str, target: str, timeout: str) -> None:
        self._settle()
        name = self.results[tag].get("id")
        fails = name is None or name in self.case.unanswered
        where: Any = target
        host, _, port = target.rpartition(":")
        if len(host) == 11:
            where = (parse_id(host), int(port))
        greenlet = gevent.spawn(outcome, self.mesh.dial, where, timeout=FAILING_DIAL if fails else DEADLINE)
        self.calls[tag] = greenlet
        if name is None:
            assert isinstance(greenlet.get(timeout=DEADLINE), AstraNetError)
        elif name in self.case.unanswered:
            self.streams[name] = None
        else:
            self.streams[name] = greenlet

    def stream(self, name: str) -> Any:
        """The stream with that recorded name; a dial is over when it is first used."""
        held = self.streams[name]
        if isinstance(held, gevent.Greenlet):
            held = held.get(timeout=DEADLINE)
            assert not isinstance(held, Exception), held
            self.streams[name] = held
            self.hosts[name] = held.getpeername()[0]
        return held

    def _start(self, tag: str, name: str, verb: str, *args: Any) -> None:
        """Make a call that may wait in a greenlet of its own; its result event looks at it."""
        if name in self.case.unanswered:
            return

        def call() -> Any:
            # In the original dial returns at once, and the first call waits; here it is the dial.
            return getattr(self.stream(name), verb)(*args)

        self.calls[tag] = gevent.spawn(outcome, call)

    def _write(self, tag: str, name: str, size: str) -> None:
        self._start(tag, name, "sendall", pattern(int(size)))

    def _write_hex(self, tag: str, name: str, content: str) -> None:
        self._start(tag, name, "sendall", bytes.fromhex(content))

    def _read(self, tag: str, name: str, size: str) -> None:
        self._start(tag, name, "recv", int(size))

    def _read_n(self, tag: str, name: str, size: str) -> None:
        self.calls[tag] = gevent.spawn(outcome, lambda: _read_exactly(self.stream(name), int(size)))

    def _close(self, tag: str, name: str) -> None:
        """Go's Close ends writing only; where the recorded program goes on reading, so do we."""
        if name in self.case.unanswered:
            return
        for earlier in self._calls_on(name, before=tag):
            # Close and the end of a read crossed in the recording; ours would end the read.
            if earlier in self.results and earlier in self.calls:
                self.calls[earlier].join(timeout=DEADLINE)
        stream = self.stream(name)
        if self._calls_on(name, after=tag):
            stream.shutdown(1)
        else:
            stream.close()

    def _calls_on(self, name: str, before: str = "", after: str = "") -> list[str]:
        tags = [event.api["tag"] for event in self.events if event.api.get("call", "").split()[1:2] == [name]]
        return tags[: tags.index(before)] if before else tags[tags.index(after) + 1 :]

    def _settle(self) -> None:
        """What the peers have said by now has to be known before the application asks."""
        for side in self.sides.values():
            if not side.peer.ended:
                side.fence()

    def _services(self, tag: str) -> None:
        self._settle()
        found = {
            (service.name, service.node_id, service.port, service.distance)
            for service in self.mesh.services()
            if service.node_id != self.mesh.node_id
        }
        recorded = {_parse_service(text) for text in self.results[tag]["services"]}
        wanted = {item for item in recorded if item[1] not in (self.recorded_id, *self.dead_hosts)}
        assert found == wanted

    def _routes(self, tag: str) -> None:
        self._settle()
        found = {route.node_id for route in self.mesh.routes() if route.distance == 0}
        recorded = {parse_id(text.split()[0]) for text in self.results[tag]["routes"]}
        assert found - {self.mesh.node_id} == recorded

    def _nothing(self, *args: Any) -> None:
        """Joining is done by attaching when the recorded link opens; deadlines are our own."""

    _CALLS: Mapping[str, Callable[..., None]] = {
        "listen": _listen,
        "join": _nothing,
        "bind": _bind,
        "unbind": _unbind,
        "dial": _dial,
        "write": _write,
        "writehex": _write_hex,
        "read": _read,
        "readn": _read_n,
        "rdl": _nothing,
        "wdl": _nothing,
        "close": _close,
        "services": _services,
        "routes": _routes,
    }

    # -- results

    def _result(self, api: dict[str, Any]) -> Any:
        """What our call came to; None if the recorded stream does not exist here."""
        greenlet = self.calls.get(api["tag"])
        if greenlet is None:
            return None
        outcome = greenlet.get(timeout=DEADLINE)
        if self._is_dead(self._name_of(api["tag"])):
            # The original hangs or reports success here; the rule is that the stream is broken.
            assert isinstance(outcome, ConnectionError), outcome
            return None
        return outcome

    def _name_of(self, tag: str) -> str:
        calls = (event.api for event in self.events if "call" in event.api)
        return str(next(call["call"].split()[1] for call in calls if call["tag"] == tag))

    def _is_dead(self, name: str) -> bool:
        return self.hosts.get(name) in self.dead_hosts

    def _check_read(self, api: dict[str, Any]) -> None:
        outcome = self._result(api)
        if outcome is None:
            return
        assert isinstance(outcome, bytes), outcome
        assert len(outcome) == api["n"]
        if "hex" in api:
            assert outcome.hex() == api["hex"]
        if "sha256" in api:
            assert hashlib.sha256(outcome).hexdigest() == api["sha256"]

    def _check_write(self, api: dict[str, Any]) -> None:
        greenlet = self.calls.get(api["tag"])
        if greenlet is None:
            return
        outcome = greenlet.get(timeout=DEADLINE)
        if api["err"] or self._is_dead(self._name_of(api["tag"])):
            assert isinstance(outcome, AstraNetError), outcome
            assert isinstance(outcome, OSError), outcome
        else:
            assert outcome is None, outcome

    _CHECKS: Mapping[str, Callable[..., None]] = {
        "read": _check_read,
        "readn": _check_read,
        "write": _check_write,
        "writehex": _check_write,
    }

    # -- the end

    def verify(self) -> None:
        """Everything was said, nothing else was, and no call is left hanging."""
        self._await_announcements()
        for side in self.sides.values():
            if not side.peer.ended:
                self.verify_frames(side)
        self._verify_calls()

    def _await_announcements(self) -> None:
        """Announcements come by timer, out of reach of a fence: one more shows that none is left."""
        if not self.mesh.config.role.announces:
            return
        self.mesh.bind(MARKER.decode())
        for side in self.sides.values():
            if not side.peer.ended:
                side.wait_until(lambda: any(map(_marked, side.peer.received)), MARKER)  # noqa: B023

    def verify_frames(self, side: Side) -> None:
        """Compare all that the node has sent on a hop with all that was recorded."""
        side.wait_until(lambda: not side.blocked, "credit")
        side.fence()
        got = self.got(side)
        for _ in range(side.fences):
            got.remove(Frame(PONG))
        got = [frame for frame in got if not _marked(frame)]
        _verify_order(got)
        self._verify_handshake(side)
        extra, missing = _difference(_compact(got), _compact(side.expected))
        wrong = [frame for frame in extra if not freedoms.may_be_extra(self, side, frame)]
        assert not wrong, f"on {side.hop}, not in the recording: {wrong}"
        lacking = [frame for frame in missing if not freedoms.may_be_missing(self, side, frame)]
        assert not lacking, f"on {side.hop}, only in the recording: {lacking}"

    def _verify_handshake(self, side: Side) -> None:
        first, *others = side.peer.received
        assert first.cmd == HANDSHAKE
        assert isinstance(json.loads(first.payload)["RAddr"], str)
        assert all(frame.cmd != HANDSHAKE for frame in others)

    def _verify_calls(self) -> None:
        for tag, greenlet in self.calls.items():
            if self.over and not greenlet.ready():
                continue
            outcome = greenlet.get(timeout=DEADLINE)
            name = self.results.get(tag, {}).get("id")
            if name in self.case.unanswered:
                assert isinstance(outcome, DialTimeout), outcome
            elif tag not in self.results:
                # It hung in the original; it must have ended here, and the stream with it.
                assert isinstance(outcome, ConnectionError), outcome


def _marked(frame: Frame) -> bool:
    return frame.cmd == SERVICE and frame.payload.startswith(MARKER)


def _swap(frame: Frame, ids: dict[int, int], ports: dict[int, int], addresses: dict[bytes, bytes]) -> Frame:
    cmd, remote, local, rport, lport, payload = frame
    if remote in ids:
        remote, rport = ids[remote], ports.get(rport, rport)
    if local in ids:
        local, lport = ids[local], ports.get(lport, lport)
    if cmd == FOLLOW:
        payload = addresses.get(payload, payload)
    return Frame(cmd, remote, local, rport, lport, payload)


def _data(frames: list[Frame], like: Frame) -> int:
    """Bytes of data sent on the stream to which ``like`` belongs."""
    return sum(len(item.payload) for item in frames if item.cmd == DATA and item.key == like.key)


def _compact(frames: list[Frame]) -> list[Frame]:
    """One DATA and one REWIND per stream, with all the bytes and all the credit of it.

    How data is cut into frames and credit into lumps is free; the sums are not.
    """
    compact = []
    data: dict[tuple[int, ...], list[bytes]] = {}
    credit: Counter[tuple[int, ...]] = Counter()
    for frame in frames:
        if frame.cmd == DATA:
            data.setdefault(frame.key, []).append(frame.payload)
        elif frame.cmd == REWIND:
            credit[frame.key] += read_u32(frame)
        elif frame.cmd == HANDSHAKE:
            compact.append(frame._replace(payload=b""))
        else:
            compact.append(frame)
    compact += [Frame._make((DATA, *key, b"".join(parts))) for key, parts in data.items()]
    return compact + [Frame._make((REWIND, *key, u32(total))) for key, total in credit.items()]


def _difference(one: list[Frame], two: list[Frame]) -> tuple[list[Frame], list[Frame]]:
    first, second = Counter(one), Counter(two)
    return list((first - second).elements()), list((second - first).elements())


def _verify_order(frames: list[Frame]) -> None:
    reached: dict[tuple[int, ...], int] = {}
    for frame in frames:
        rank = RANKS.get(frame.cmd)
        if rank is not None:
            assert rank >= reached.get(frame.key, 0), f"{frame} comes too late in {frames}"
            reached[frame.key] = rank
        elif frame.cmd == REWIND:
            assert reached.get(frame.key, 0) >= 1, f"{frame} before the stream was open"


def _read_exactly(stream: Any, size: int) -> bytes:
    parts = []
    while size:
        part = stream.recv(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _serve_echo(listener: Any) -> None:
    while True:
        try:
            stream, _ = listener.accept()
        except AstraNetError:
            return
        gevent.spawn(outcome, _echo, stream)


def _echo(stream: Any) -> None:
    with stream:
        while data := stream.recv(65536):
            stream.sendall(data)


def _parse_service(text: str) -> tuple[str, int, int, int]:
    name, address, distance = text.rsplit(" ", 2)
    host, port = address.split(":")
    return name, parse_id(host), int(port), int(distance.removeprefix("prio="))
