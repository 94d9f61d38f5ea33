"""Roles: who announces, who passes on, who follows; and following: direct links to nodes behind a relay, by a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent import socket
from wire.peer import DISCOVER, FOLLOW, NO_SERVICE, OTHER_ID, PEER_ID, SERVICE, THIRD_ID, Frame, RawPeer

from astranet_gevent import AstraNet, Role
from astranet_gevent.errors import ServiceNotFoundError

from .tools import DEADLINE, Bench, check_echo, echo_once, free_port

Eventually = Callable[..., None]


# -- roles


def test_a_client_announces_nothing(bench: Bench) -> None:
    mesh, other = bench.node(role=Role.CLIENT), bench.node()
    peer, _ = bench.raw(mesh)
    bench.connect(mesh, other)
    listener = bench.echo(mesh, "mine:7000")
    mesh.listen(("127.0.0.1", 0))
    bench.echo(other, "theirs")
    check_echo(mesh, "theirs")
    # It is there all the same, for who knows its id.
    check_echo(other, (mesh.node_id, listener.port))
    peer.send(Frame(DISCOVER, mesh.node_id, PEER_ID))
    assert {frame.cmd for frame in peer.fence()} & {SERVICE, FOLLOW} == set()
    with pytest.raises(ServiceNotFoundError):
        other.dial("mine", timeout=0.1)


@pytest.mark.parametrize("role", [Role.SERVER, Role.BOTH, Role.ROUTER])
def test_the_others_announce(bench: Bench, role: Role) -> None:
    mesh = bench.node(role=role)
    peer, _ = bench.raw(mesh)
    mesh.bind("mine")
    assert peer.wait_for(SERVICE).payload == b"mine"
    address = mesh.listen(("127.0.0.1", 0)).address
    assert peer.wait_for(FOLLOW).payload == f"127.0.0.1:{address[1]}".encode()


def test_variants() -> None:
    mesh = AstraNet(backlog=7)
    for variant, role in ((mesh.client(), Role.CLIENT), (mesh.server(), Role.SERVER), (mesh.router(), Role.ROUTER)):
        assert variant.closed
        assert (variant.config.role, variant.config.backlog) == (role, 7)


@pytest.mark.parametrize("role", list(Role))
def test_only_a_router_tells_on(bench: Bench, role: Role) -> None:
    middle = bench.node(role=role, follow=False, announce_interval=0.01)
    origin, _ = bench.raw(middle, PEER_ID)
    hearer, _ = bench.raw(middle, OTHER_ID)
    origin.announce("theirs", 5000)
    middle.service_map.wait_for("theirs", DEADLINE)
    late, _ = bench.raw(middle, THIRD_ID)
    # The node's own announcement comes behind what it had to tell on.
    middle.bind("zz-own")
    told = {}
    for name, peer in (("hearer", hearer), ("late", late), ("origin", origin)):
        if role is Role.CLIENT:
            peer.fence()
        else:
            peer.wait_for(SERVICE, payload=b"zz-own")
        told[name] = {(frame.payload, frame.local) for frame in peer.received if frame.cmd == SERVICE and frame.payload != b"zz-own"}
    expected = {(b"theirs", PEER_ID)} if role is Role.ROUTER else set()
    assert told == {"hearer": expected, "late": expected, "origin": set()}
    if role is Role.ROUTER:
        origin.close()
        for peer in (hearer, late):
            assert peer.wait_for(NO_SERVICE) == Frame(NO_SERVICE, 0, PEER_ID, 0, 5000, b"theirs")


def test_a_router_does_not_tell_what_it_was_told_on(bench: Bench) -> None:
    router = bench.node(role=Role.ROUTER, follow=False, announce_interval=0.01)
    other_router, _ = bench.raw(router, PEER_ID)
    hearer, _ = bench.raw(router, OTHER_ID)
    other_router.announce("far", 5000, local=THIRD_ID)
    router.service_map.wait_for("far", DEADLINE)
    router.bind("zz-own")
    hearer.wait_for(SERVICE, payload=b"zz-own")
    assert [frame.payload for frame in hearer.received if frame.cmd == SERVICE] == [b"zz-own"]


def test_own_services_come_back(bench: Bench) -> None:
    """A router of the original sends them back to their owner, who must not take them for somebody else's."""
    mesh = bench.node()
    router, _ = bench.raw(mesh)
    mesh.bind("mine:7000")
    frame = router.wait_for(SERVICE)
    router.send(frame)
    router.fence()
    assert mesh.services() == [("mine", mesh.node_id, 7000, 0)]
    with pytest.raises(ServiceNotFoundError):
        mesh.dial("mine", timeout=0.01)


# -- following


@pytest.fixture
def star(bench: Bench) -> Callable[..., tuple[AstraNet, AstraNet, AstraNet]]:
    """A and C, joined to R over TCP; C listens."""

    def make(a: dict[str, Any] | None = None, c: dict[str, Any] | None = None) -> tuple[AstraNet, AstraNet, AstraNet]:
        router = bench.node(role=Role.ROUTER)
        address = router.listen(("127.0.0.1", 0)).address
        one, other = bench.node(**(a or {})), bench.node(**(c or {}))
        other.listen(("127.0.0.1", 0))
        for mesh in (one, other):
            mesh.join(address).wait_ready(DEADLINE)
        return one, router, other

    return make


def _direct(mesh: AstraNet) -> set[int]:
    return {link.peer_id for link in mesh.links() if link.state == "ready"}


def test_follow(bench: Bench, eventually: Eventually, star: Callable[..., tuple[AstraNet, AstraNet, AstraNet]]) -> None:
    """A direct link as soon as C offers something; what was dialled before stays where it is."""
    one, router, other = star()
    bench.echo(other)
    stream = one.dial("echo", timeout=DEADLINE)
    one.route_map.wait_for(other.node_id, DEADLINE)
    eventually(lambda: one.service_map["echo"][0].distance == 0, "the service over the direct link")
    eventually(lambda: _direct(one) == {router.node_id, other.node_id}, "a direct link")
    check_echo(one)
    echo_once(stream)
    stream.close()
    # No second link to the router, and none back from C, which does not need one.
    eventually(lambda: [len(mesh.links()) for mesh in (one, router, other)] == [2, 2, 2], "three links in all")


def test_a_followed_link_comes_back(bench: Bench, eventually: Eventually, star: Callable[..., tuple[AstraNet, AstraNet, AstraNet]]) -> None:
    one, _, other = star({"rejoin_min": 0.02, "rejoin_max": 0.1})
    bench.echo(other)
    eventually(lambda: other.node_id in _direct(one), "a direct link")
    next(link for link in one.links() if link.peer_id == other.node_id).close()
    assert other.node_id not in _direct(one)
    eventually(lambda: other.node_id in _direct(one), "a direct link again")
    check_echo(one)


@pytest.mark.parametrize("setting", [{"follow": False}, {"max_followed": 0}, {"role": Role.SERVER}])
def test_following_is_off(bench: Bench, setting: dict[str, Any]) -> None:
    mesh = bench.node(**setting)
    peer, _ = bench.raw(mesh)
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen(1)
        _offer(peer, mesh, trap.getsockname())
        assert DISCOVER not in {frame.cmd for frame in peer.fence()}
        trap.settimeout(0.1)
        with pytest.raises(TimeoutError):
            trap.accept()


def _offer(peer: RawPeer, mesh: AstraNet, address: tuple[str, int], node_id: int = OTHER_ID, name: str = "svc") -> None:
    """A node behind the peer offers a service, and says where it listens."""
    peer.announce(name, 5000, local=node_id)
    peer.send(Frame(FOLLOW, mesh.node_id, node_id, payload=f"{address[0]}:{address[1]}".encode()))


def test_only_who_offers_something_is_followed(bench: Bench) -> None:
    """Neither an address for the peer itself, nor for a node of which nothing is known, nor what is none."""
    mesh = bench.node()
    peer, _ = bench.raw(mesh)
    own = mesh.listen(("127.0.0.1", 0)).address
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen(5)
        text = f"127.0.0.1:{trap.getsockname()[1]}".encode()
        peer.send(Frame(FOLLOW, mesh.node_id, OTHER_ID, payload=text), Frame(FOLLOW, 0, PEER_ID, payload=text))
        peer.send(Frame(FOLLOW, 0, mesh.node_id, payload=text))
        peer.announce("svc", 5000, local=THIRD_ID)
        for wrong in (b"", b"nonsense", b":80", b"host:0", b"unix:/x", f"{own[0]}:{own[1]}".encode()):
            peer.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, payload=wrong))
        assert DISCOVER in {frame.cmd for frame in peer.fence()}
        trap.settimeout(0.1)
        with pytest.raises(TimeoutError):
            trap.accept()
        # And now the right one.
        peer.send(Frame(FOLLOW, mesh.node_id, THIRD_ID, payload=text))
        trap.settimeout(DEADLINE)
        trap.accept()[0].close()


def test_a_node_that_comes_back_is_asked_again(bench: Bench) -> None:
    """Its address may be another one by then. What was asked is forgotten with the last of its services."""
    mesh = bench.node()
    peer, _ = bench.raw(mesh)
    for _ in range(3):
        peer.announce("one", 5000, local=OTHER_ID)
        peer.announce("two", 5001, local=OTHER_ID)
        assert [frame.cmd for frame in peer.fence()].count(DISCOVER) == 1
        peer.send(Frame(NO_SERVICE, 0, OTHER_ID, 0, 5000, b"one"))
        peer.announce("three", 5002, local=OTHER_ID)
        assert DISCOVER not in {frame.cmd for frame in peer.fence()}
        peer.send(Frame(NO_SERVICE, 0, OTHER_ID, 0, 5001, b"two"), Frame(NO_SERVICE, 0, OTHER_ID, 0, 5002, b"three"))


def test_max_followed(bench: Bench, eventually: Eventually) -> None:
    mesh = bench.node(max_followed=2)
    peer, _ = bench.raw(mesh)
    others = [bench.node(role=Role.SERVER) for _ in range(4)]
    for number, other in enumerate(others):
        address = other.listen(("127.0.0.1", 0)).address
        _offer(peer, mesh, address, other.node_id, f"svc-{number}")
    eventually(lambda: len(_direct(mesh)) == 3, "two direct links")
    peer.fence()
    assert len(mesh.links()) == 3
    assert sum(bool(other.links()) for other in others) == 2


def test_a_wrong_node_at_the_address(bench: Bench, eventually: Eventually, caplog: pytest.LogCaptureFixture) -> None:
    mesh, wrong = bench.node(rejoin_min=30), bench.node()
    peer, link = bench.raw(mesh)
    with caplog.at_level("INFO", "astranet_gevent"):
        _offer(peer, mesh, wrong.listen(("127.0.0.1", 0)).address)
        eventually(lambda: "announced by" in caplog.text, "the refusal")
    eventually(lambda: wrong.links() == [], "the link is closed")
    assert mesh.links() == [link]


@pytest.mark.parametrize("text", [b"\xff\xfe:1", b"a..b:1", b"a" * 70 + b":1", b"[::1:1", b"nul\0:1"])
def test_an_address_that_is_none(bench: Bench, eventually: Eventually, text: bytes) -> None:
    """No bytes from outside do more than fail to be joined."""
    mesh = bench.node(rejoin_min=0.01, rejoin_max=0.02)
    peer, link = bench.raw(mesh)
    peer.announce("svc", 5000, local=OTHER_ID)
    peer.send(Frame(FOLLOW, mesh.node_id, OTHER_ID, payload=text))
    peer.fence()
    follower = mesh._node._follower  # type: ignore[union-attr]
    eventually(lambda: all(peering.error for peering in follower._peerings.values()), "an error")
    assert mesh.links() == [link]


def test_nobody_answers_at_the_address(bench: Bench, eventually: Eventually) -> None:
    """It is tried a few times, and then left alone; a service that is withdrawn ends it too."""
    mesh = bench.node(rejoin_min=0.01, rejoin_max=0.02)
    peer, _ = bench.raw(mesh)
    _offer(peer, mesh, ("127.0.0.1", free_port()))
    follower = mesh._node._follower  # type: ignore[union-attr]
    eventually(lambda: follower.count == 1, "an attempt")
    eventually(lambda: all(peering.ended.is_set() for peering in follower._peerings.values()), "the end of attempts")


def test_advertise(bench: Bench) -> None:
    """The configured addresses instead of those bound; none at all is possible too."""
    for advertise, expected in (((("example.org", 99),), [b"example.org:99"]), ((), [])):
        mesh = bench.node(advertise=advertise)
        mesh.listen(("127.0.0.1", 0))
        peer, _ = bench.raw(mesh)
        peer.send(Frame(DISCOVER, mesh.node_id, PEER_ID))
        peer.fence()
        got = {frame.payload for frame in peer.received if frame.cmd == FOLLOW}
        assert sorted(got) == expected


def test_a_wildcard_listener_is_announced_under_the_address_of_the_link(bench: Bench) -> None:
    mesh = bench.node()
    port = mesh.listen(("0.0.0.0", 0)).address[1]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        peer = bench.adopt(sock)
        peer.handshake()
        assert peer.wait_for(FOLLOW).payload == f"127.0.0.1:{port}".encode()
