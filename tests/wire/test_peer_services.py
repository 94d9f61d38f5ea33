"""What a peer says about services, its own and those of others; and following them."""

from __future__ import annotations

import pytest
from gevent import socket

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import (
    ServiceNotFoundError,
)

from .conftest import Bench, Spawn, known_services
from .peer import (
    ACK,
    DATA,
    DEADLINE,
    DIAL,
    DISCOVER,
    FOLLOW,
    NO_SERVICE,
    OTHER_ID,
    PEER_ID,
    SERVICE,
    SYN,
    THIRD_ID,
    Frame,
    RawPeer,
)

# -- services


def test_services_named_twice_empty_or_binary(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    for name, port in [(b"py", 9), (b"py", 9), (b"", 10), (b"\xff\xfe\n", 11)]:
        peer.announce(name, port)
    peer.assert_quiet()
    odd = b"\xff\xfe\n".decode("utf-8", "surrogateescape")
    assert known_services(mesh) >= {("py", PEER_ID, 9, 0), (odd, PEER_ID, 11, 0)}
    assert len([item for item in known_services(mesh) if item[0] == "py"]) == 1
    peer.send(Frame(NO_SERVICE, 0, PEER_ID, 0, 9, b"py"))
    peer.send(Frame(NO_SERVICE, 0, PEER_ID, 0, 99, b"nope"))
    peer.assert_quiet()
    assert not [item for item in known_services(mesh) if item[0] == "py"]
    assert (odd, PEER_ID, 11, 0) in known_services(mesh)
    with pytest.raises(ServiceNotFoundError):
        mesh.dial("py", timeout=0.02)


def test_more_services_than_allowed(bench: Bench) -> None:
    mesh = bench.node(services_per_link=10)
    peer = bench.peer(mesh)
    other = bench.peer(mesh, OTHER_ID)
    for number in range(100):
        peer.announce(f"s{number}", 100 + number)
    other.announce("mine", 9)
    other.assert_quiet()
    other.assert_quiet()
    assert len([item for item in known_services(mesh) if item[1] == PEER_ID]) <= 10
    assert ("mine", OTHER_ID, 9, 0) in known_services(mesh)


def test_service_of_another_node_is_behind_the_peer(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.announce("far", 9, local=THIRD_ID)
    peer.assert_quiet(skip=())
    assert ("far", THIRD_ID, 9, 1) in known_services(mesh)
    dial = spawn(mesh.dial, "far")
    frame = peer.wait_for(DIAL, remote=THIRD_ID, rport=9)
    peer.send(Frame(SYN, mesh.node_id, THIRD_ID, frame.lport, 9))
    stream = dial.get(timeout=DEADLINE)
    assert stream.getpeername() == (THIRD_ID, 9)
    peer.expect(ACK, remote=THIRD_ID, rport=9)


def test_service_of_another_node_announced_twice_is_withdrawn_once(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    for _ in range(2):
        peer.announce("far", 9, local=THIRD_ID)
    peer.fence()
    assert THIRD_ID in {route.node_id for route in mesh.routes()}
    peer.send(Frame(NO_SERVICE, 0, THIRD_ID, 0, 9, b"far"))
    peer.fence()
    assert known_services(mesh) == set()
    assert {route.node_id for route in mesh.routes()} == {PEER_ID}


def test_service_of_another_node_is_followed_up(bench: Bench) -> None:
    mesh = bench.node(follow=True)
    peer = bench.peer(mesh)
    peer.announce("far", 9, local=THIRD_ID)
    peer.announce("far too", 10, local=THIRD_ID)
    asked = [frame for frame in peer.fence() if frame.cmd == DISCOVER]
    # Once per node, where the original asks once per service.
    assert asked == [Frame(DISCOVER, THIRD_ID, mesh.node_id)]


def test_services_and_routes_go_with_the_link(bench: Bench) -> None:
    mesh = bench.node()
    peer, link = bench.linked(mesh)
    peer.announce("near", 9)
    peer.announce("far", 9, local=THIRD_ID)
    mesh.service_map.wait_for("near", DEADLINE)
    mesh.service_map.wait_for("far", DEADLINE)
    assert PEER_ID in {route.node_id for route in mesh.routes()}
    with mesh.service_map.watch() as events:
        peer.close()
        link.wait(DEADLINE)
        gone = {next(events).service.name for _ in range(2)}
    assert gone == {"near", "far"}
    assert not [item for item in known_services(mesh) if item[1] != mesh.node_id]
    assert not [route for route in mesh.routes() if route.node_id != mesh.node_id]


def test_service_name_that_looks_like_a_node_id(bench: Bench, spawn: Spawn) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.announce("hello-world", 9)
    dial = spawn(mesh.dial, "hello-world")
    peer.accept(9)
    dial.get(timeout=DEADLINE)


@pytest.mark.parametrize("target", ["web", "web:8080"])
def test_name_with_a_port_is_found_both_ways(bench: Bench, spawn: Spawn, target: str) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.announce("web", 8080)
    dial = spawn(mesh.dial, target)
    peer.accept(8080)
    dial.get(timeout=DEADLINE)
    bench.listener(mesh, "own:8081")
    assert peer.expect(SERVICE, skip=()).payload == b"own"


# -- following


def behind(bench: Bench, mesh: AstraNet, *nodes: int) -> RawPeer:
    """A relay that has announced a service of each of the nodes."""
    relay = bench.peer(mesh)
    for node_id in nodes:
        relay.announce("far", 9, local=node_id)
    relay.fence()
    return relay


def text_of(listener: socket.socket) -> bytes:
    """A listener's address as FOLLOW carries it."""
    return b"127.0.0.1:%d" % listener.getsockname()[1]


def assert_nobody_came(listener: socket.socket) -> None:
    """No connection waits at the listener."""
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_follow_only_from_its_owner(bench: Bench, listeners: list[socket.socket]) -> None:
    mesh = bench.node(follow=True)
    relay = behind(bench, mesh, THIRD_ID)
    own, unknown, right = listeners[:3]
    # In the relay's own name (there is a link already), in that of a node that it does not lead to,
    # and in that of the node behind it.
    relay.send(Frame(FOLLOW, 0, PEER_ID, 0, 0, text_of(own)))
    relay.send(Frame(FOLLOW, mesh.node_id, OTHER_ID, 0, 0, text_of(unknown)))
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(right)))
    peer = bench.adopt(right.accept()[0], THIRD_ID)
    peer.handshake()
    peer.assert_quiet()
    assert (THIRD_ID, 0) in {(route.node_id, route.distance) for route in mesh.routes()}
    assert_nobody_came(own)
    assert_nobody_came(unknown)


def test_follow_ends_when_another_node_answers(bench: Bench, listeners: list[socket.socket]) -> None:
    mesh = bench.node(follow=True)
    relay = behind(bench, mesh, THIRD_ID)
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(listeners[0])))
    stranger = bench.adopt(listeners[0].accept()[0], OTHER_ID)
    stranger.handshake()
    stranger.wait_end()


def test_follow_tries_every_address_of_a_node(bench: Bench, listeners: list[socket.socket]) -> None:
    """A Go node announces each of its addresses with each of its ports; the first need not do."""
    mesh = bench.node(follow=True, rejoin_min=0.01, rejoin_max=0.02)
    relay = behind(bench, mesh, THIRD_ID)
    dead = text_of(listeners[0])
    listeners[0].close()
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, dead))
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(listeners[1])))
    peer = bench.adopt(listeners[1].accept()[0], THIRD_ID)
    peer.handshake()


def test_follow_is_limited(bench: Bench, listeners: list[socket.socket]) -> None:
    mesh = bench.node(follow=True, max_followed=2)
    nodes = [THIRD_ID + number for number in range(4)]
    relay = behind(bench, mesh, *nodes)
    for node_id, listener in zip(nodes, listeners, strict=True):
        relay.send(Frame(FOLLOW, mesh.node_id, node_id, 0, 0, text_of(listener)))
    for listener in listeners[:2]:
        bench.adopt(listener.accept()[0]).receive_handshake()
    for listener in listeners[2:]:
        assert_nobody_came(listener)


@pytest.mark.parametrize("off", [{"follow": False}, {"role": Role.SERVER, "follow": True}, {"max_followed": 0}])
def test_follow_can_be_off(bench: Bench, listeners: list[socket.socket], off: dict[str, object]) -> None:
    mesh = bench.node(**{"follow": True, **off})
    relay = behind(bench, mesh, THIRD_ID)
    assert not [frame for frame in relay.received if frame.cmd == DISCOVER]
    relay.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, 0, 0, text_of(listeners[0])))
    relay.fence()
    # A connection that the node does open, to the same place and later, is the first to arrive.
    mesh.join(listeners[0].getsockname())
    bench.adopt(listeners[0].accept()[0], OTHER_ID).handshake()
    assert_nobody_came(listeners[0])


@pytest.mark.parametrize(
    "payload",
    [b"garbage", b"", b":0", b"127.0.0.1:99999", b"\xff\xfe:1", b"[::1:80", b"a" * 60000, b"x:-1"],
)
def test_follow_garbage_is_ignored(bench: Bench, payload: bytes) -> None:
    mesh = bench.node(follow=True)
    pair = bench.accepted(mesh)
    pair.peer.send(Frame(FOLLOW, 0, PEER_ID, 0, 0, payload))
    pair.peer.send(Frame(FOLLOW, mesh.node_id, PEER_ID, 0, 0, payload))
    pair.peer.assert_quiet()
    pair.theirs.send(DATA, b"on")
    assert pair.stream.recv(100) == b"on"


def test_discover_is_answered_with_the_address(bench: Bench) -> None:
    mesh = bench.node()
    listener = mesh.listen(("127.0.0.1", 0))
    text = f"127.0.0.1:{listener.address[1]}".encode()
    peer = bench.peer(mesh)
    peer.fence()
    peer.send(Frame(DISCOVER, mesh.node_id, PEER_ID))
    answer = peer.expect(FOLLOW, skip=(SERVICE,), remote=PEER_ID)
    assert answer == Frame(FOLLOW, PEER_ID, mesh.node_id, 0, 0, text)
    # From behind a relay: the answer goes back the way it came.
    peer.send(Frame(DISCOVER, mesh.node_id, THIRD_ID))
    assert peer.expect(FOLLOW, skip=(SERVICE,), remote=THIRD_ID).payload == text


def test_raddr_does_not_decide_what_is_advertised(bench: Bench) -> None:
    mesh = bench.node()
    port = mesh.listen(("127.0.0.1", 0)).address[1]
    liar = bench.peer(mesh, payload=b'{"RAddr":"127.0.0.99:1"}')
    later = bench.peer(mesh, OTHER_ID, payload=b'{"RAddr":"127.0.0.98:1"}')
    for peer in (liar, later):
        peer.send(Frame(DISCOVER, mesh.node_id, peer.node_id))
        peer.fence()
        told = {frame.payload for frame in peer.received if frame.cmd == FOLLOW}
        assert told <= {f"127.0.0.1:{port}".encode()}
