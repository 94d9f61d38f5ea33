"""Whatever a peer sends: its link or its stream may end, nothing else happens.

No exception leaves a greenlet or a callback (the fixture ``hub_errors`` fails the test if one
does), every application call ends in the library's own errors, and another link carries on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import AstraNetError

from .conftest import PORT, Bench, Pair, outcome
from .peer import (
    ACK,
    DATA,
    DEADLINE,
    DIAL,
    DISCOVER,
    FIN1,
    FIN2,
    FOLLOW,
    FORCE_CLOSED,
    HANDSHAKE,
    HEADER,
    MAX_PAYLOAD,
    NAMES,
    NO_SERVICE,
    OTHER_ID,
    PEER_ID,
    PEER_PORT,
    PING,
    RESET,
    REWIND,
    SERVICE,
    SYN,
    SYN_ACK,
    THIRD_ID,
    WND_SIZE,
    Frame,
    LinkEndedError,
    u32,
)

# The fixtures are shared by all examples on purpose: the witness has to live through every one.
# Three times as many as by default: an example takes 5 ms.
FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# A handshake of our own kind: what only such peers send is then taken seriously.
OWN_KIND = b'{"RAddr":"","astranet_gevent":{"version":1,"features":["reset","window","goodbye","pause"]}}'


class Target:
    """A node under fuzz, and a link whose stream must carry on."""

    def __init__(self, bench: Bench, **config: Any) -> None:
        # Nothing may be dialled, whatever address the fuzzer comes up with.
        self.mesh: AstraNet = bench.node(role=Role.ROUTER, follow=False, **config)
        self.bench = bench
        self.witness: Pair = bench.accepted(self.mesh, OTHER_ID)
        self.listener = self.mesh.bind("other:5001")
        self._accepting = gevent.spawn(self._serve)

    def _serve(self) -> None:
        """Read from every stream that a fuzzer opens, as an application would."""
        while True:
            try:
                stream, _ = self.listener.accept()
            except AstraNetError:
                return
            gevent.spawn(outcome, self._answer, stream)

    def _answer(self, stream: Any) -> None:
        stream.settimeout(DEADLINE)
        with stream:
            while stream.recv(1000):
                stream.send(b"answer")

    def check(self) -> None:
        """The node is whole: the other link answers and its stream carries data both ways."""
        self.witness.theirs.send(DATA, b"there")
        assert self.witness.stream.recv(100) == b"there"
        self.witness.stream.sendall(b"back")
        # Whatever else the fuzzer caused may come before: announcements, relayed frames, RESETs.
        frame = self.witness.peer.wait_for(DATA, local=self.mesh.node_id)
        while frame.payload != b"back":
            frame = self.witness.peer.wait_for(DATA, local=self.mesh.node_id)
        self.witness.theirs.send(REWIND, u32(4))
        # The log grows with each of some hundred examples, and nobody looks at it here.
        self.witness.peer.received.clear()


@pytest.fixture
def target(bench: Bench) -> Target:
    """A node and its witness."""
    return Target(bench)


ids = st.sampled_from([0, PEER_ID, OTHER_ID, THIRD_ID, 2**63, 2**64 - 1, -1])
ports = st.sampled_from([0, 1, PORT, 5001, PEER_PORT, PEER_PORT + 1, 2**32 - 1])
commands = st.one_of(st.sampled_from(sorted(NAMES)), st.integers(200, 215), st.integers(0, 255))
payloads = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1).map(u32),
    st.sampled_from([u32(0), u32(1), u32(MAX_PAYLOAD), u32(2**31), b"127.0.0.1:9", b"{}", b"svc"]),
    st.sampled_from([4, 65535, 65536]).map(bytes),
)
# An id of -1 stands for the node under test, which is not known before it is made.
frames = st.builds(Frame, commands, ids, ids, ports, ports, payloads)


def _resolve(frame: Frame, node_id: int) -> bytes:
    remote, local = (node_id if field == -1 else field for field in frame[1:3])
    return frame._replace(remote=remote, local=local).encode()


@FUZZ
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_instead_of_a_handshake(target: Target, data: bytes) -> None:
    peer, _ = target.bench.silent_peer(target.mesh)
    peer.send(data)
    peer.close()
    target.check()


@FUZZ
@given(payload=st.one_of(st.binary(max_size=100), st.text(max_size=50).map(str.encode)))
def test_arbitrary_handshakes(target: Target, payload: bytes) -> None:
    peer, link = target.bench.silent_peer(target.mesh)
    peer.send_handshake(payload)
    peer.send(Frame(PING))
    peer.close()
    link.wait(DEADLINE)
    target.check()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["version", "features", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@FUZZ
@given(capabilities=json_values, address=json_values)
def test_handshakes_of_wrong_shapes(target: Target, capabilities: Any, address: Any) -> None:
    peer, link = target.bench.silent_peer(target.mesh)
    value = {"RAddr": address, "astranet_gevent": capabilities}
    peer.send_handshake(json.dumps(value).encode())
    peer.send(Frame(DIAL, 0, PEER_ID, 5001, PEER_PORT))
    peer.close()
    link.wait(DEADLINE)
    target.check()


@FUZZ
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_after_the_handshake(target: Target, data: bytes) -> None:
    peer, link = target.bench.silent_peer(target.mesh)
    peer.handshake()
    peer.send(data)
    peer.close()
    link.wait(DEADLINE)
    target.check()


@FUZZ
@given(
    sent=st.lists(frames, max_size=30),
    own_kind=st.booleans(),
    segments=st.booleans(),
)
def test_well_formed_frames_that_make_no_sense(target: Target, sent: list[Frame], own_kind: bool, segments: bool) -> None:
    peer, link = target.bench.silent_peer(target.mesh)
    peer.handshake(OWN_KIND if own_kind else b"{}")
    encoded = [_resolve(frame, target.mesh.node_id) for frame in sent]
    for data in encoded if segments else [b"".join(encoded)]:
        peer.send(data)
    _drain(peer.fence)
    peer.close()
    link.wait(DEADLINE)
    target.check()


odd_payloads = [
    b"",
    b"\0",
    b"\0\0\0",
    u32(0),
    u32(1),
    u32(2**32 - 1),
    b"\0" * 5,
    b"{}",
    b"\xff\xfe:\x80",
    b"127.0.0.1:9",
    b"x" * 200,
    bytes(MAX_PAYLOAD),
]


@pytest.mark.parametrize("own_kind", [True, False])
@pytest.mark.parametrize("command", [*sorted(NAMES), 213, 0, 255], ids=lambda code: NAMES.get(code, str(code)))
def test_every_command_with_every_odd_payload(target: Target, command: int, own_kind: bool) -> None:
    """The systematic part: no luck needed. A link that this ends is made anew for the next frame."""
    node_id = target.mesh.node_id
    handshake = OWN_KIND if own_kind else b"{}"
    peer = target.bench.peer(target.mesh, payload=handshake)
    for payload, remote, local in itertools.product(odd_payloads, [node_id, 0], [PEER_ID, THIRD_ID, node_id, 0]):
        for rport, lport in ((0, 0), (5001, PEER_PORT)):
            peer.send(Frame(command, remote, local, rport, lport, payload))
        _drain(peer.fence)
        if peer.ended:
            peer = target.bench.peer(target.mesh, payload=handshake)
    peer.close()
    target.check()


stream_steps = st.lists(
    st.tuples(
        st.sampled_from([SYN, ACK, SYN_ACK, FIN1, FIN2, FORCE_CLOSED, DATA, WND_SIZE, REWIND, DIAL, 212]),
        payloads,
    ),
    max_size=20,
)
verbs = st.lists(st.sampled_from(["recv", "send", "sendall", "shutdown", "close", "fence"]), max_size=10)


@FUZZ
@given(steps=stream_steps, calls=verbs, own_kind=st.booleans(), dialled=st.booleans())
def test_stream_frames_in_any_order(
    target: Target,
    steps: list[tuple[int, bytes]],
    calls: list[str],
    own_kind: bool,
    dialled: bool,
) -> None:
    mesh = target.mesh
    peer, link = target.bench.silent_peer(mesh)
    peer.handshake(OWN_KIND if own_kind else b"{}")
    calling = None
    if dialled:
        calling = gevent.spawn(outcome, mesh.dial, (PEER_ID, PORT), timeout=DEADLINE)
        frame = peer.wait_for(DIAL)
        stream = Frame(SYN, mesh.node_id, PEER_ID, frame.lport, PORT)
    else:
        stream = Frame(DIAL, mesh.node_id, PEER_ID, 5001, PEER_PORT)
    peer.send(stream)
    worker = gevent.spawn(_use, calling, calls)
    for command, payload in steps:
        peer.send(stream._replace(cmd=command, payload=payload))
        gevent.idle()
    _drain(peer.fence)
    peer.close()
    link.wait(DEADLINE)
    worker.get(timeout=DEADLINE)
    assert link.stream_count == 0
    target.check()


def _use(calling: gevent.Greenlet[..., Any] | None, calls: list[str]) -> None:
    """What an application may do with the stream that it dialled, in any order."""
    if calling is None:
        return
    stream = calling.get()
    if isinstance(stream, AstraNetError):
        return
    actions: dict[str, Callable[[], Any]] = {
        "recv": lambda: stream.recv(1000),
        "send": lambda: stream.send(b"x" * 1000),
        "sendall": lambda: stream.sendall(b"x" * 100_000),
        "shutdown": lambda: stream.shutdown(1),
        "close": stream.close,
        "fence": gevent.idle,
    }
    stream.settimeout(0.01)
    for call in calls:
        outcome(actions[call])
    stream.close()


def _drain(fence: Callable[[], Any]) -> None:
    try:
        fence()
    except LinkEndedError:
        pass


@FUZZ
@given(
    command=st.sampled_from([DATA, SERVICE, NO_SERVICE, FOLLOW, DISCOVER, RESET, HANDSHAKE, 200]),
    size=st.integers(0, 2**32 - 1),
    cut=st.integers(0, 40),
)
def test_headers_that_lie_about_the_size(target: Target, command: int, size: int, cut: int) -> None:
    peer, link = target.bench.silent_peer(target.mesh)
    peer.handshake()
    header = HEADER.pack(command, target.mesh.node_id, PEER_ID, PORT, PEER_PORT, size)
    peer.send((header + bytes(20))[:cut])
    peer.close()
    link.wait(DEADLINE)
    target.check()


@pytest.mark.parametrize("own_kind", [True, False])
def test_a_peer_that_never_reads_loses_its_link_only(bench: Bench, own_kind: bool) -> None:
    """Every frame here asks for an answer, and none is ever read: the queue has a bound."""
    target = Target(bench, control_frames=1000)
    peer, link = bench.silent_peer(target.mesh)
    peer.handshake(OWN_KIND if own_kind else b"{}")
    block = Frame(PING).encode() * 1000
    for _ in range(1000):
        if peer.ended or link.wait(0):
            break
        peer.send(block)
    assert link.wait(DEADLINE)
    target.check()
