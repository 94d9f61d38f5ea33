"""Our node between two peers."""

from __future__ import annotations

import pytest

from astranet_gevent import Role

from .conftest import PORT, Bench, known_services
from .peer import (
    DATA,
    DIAL,
    DISCOVER,
    FOLLOW,
    MAX_PAYLOAD,
    NO_SERVICE,
    OTHER_ID,
    PEER_ID,
    PING,
    PONG,
    RESET,
    SERVICE,
    THIRD_ID,
    Frame,
)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_forwards_unchanged(bench: Bench, role: Role) -> None:
    mesh = bench.node(role=role)
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    sent = [
        Frame(DIAL, OTHER_ID, PEER_ID, 1, 2),
        Frame(99, OTHER_ID, PEER_ID, 3, 4, b"any cmd"),
        Frame(DISCOVER, OTHER_ID, PEER_ID),
        Frame(FOLLOW, OTHER_ID, PEER_ID, 0, 0, b"127.0.0.1:9"),
        Frame(RESET, OTHER_ID, PEER_ID),
    ]
    for frame in sent:
        one.send(frame)
        assert two.expect(frame.cmd, skip=()) == frame
    for size in (0, 1, MAX_PAYLOAD):
        frame = Frame(DATA, PEER_ID, OTHER_ID, 2, 1, bytes(size))
        two.send(frame)
        assert one.expect(DATA) == frame
    one.assert_quiet()
    two.assert_quiet()


def test_frame_for_an_unknown_node_is_answered_by_reset(bench: Bench) -> None:
    mesh = bench.node()
    peer = bench.peer(mesh)
    peer.send(Frame(DATA, 0x4242, PEER_ID, PORT, 999, b"x"))
    peer.expect(RESET, remote=PEER_ID, local=0x4242, rport=0, lport=0, payload=b"")
    peer.assert_quiet()
    # A RESET that finds no way is not answered: two nodes would go on for ever.
    peer.send(Frame(RESET, 0x4242, PEER_ID))
    peer.assert_quiet()


def test_frame_with_a_forged_source_is_not_forwarded(bench: Bench) -> None:
    mesh = bench.node()
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    three = bench.peer(mesh, THIRD_ID)
    # One peer speaks in the name of another that has a link of its own here.
    one.send(Frame(DIAL, OTHER_ID, THIRD_ID, 1, 2))
    one.send(Frame(99, OTHER_ID, THIRD_ID, 1, 2, b"spoofed"))
    one.fence()
    two.assert_quiet()
    three.assert_quiet()


def test_ping_is_never_forwarded(bench: Bench) -> None:
    mesh = bench.node()
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    one.send(Frame(PING, OTHER_ID, PEER_ID), Frame(PONG, OTHER_ID, PEER_ID))
    assert one.expect(PONG) == Frame(PONG)
    one.assert_quiet()
    two.assert_quiet()


def test_relay_resets_the_pair_of_a_lost_link(bench: Bench) -> None:
    mesh = bench.node(role=Role.ROUTER)
    one, two = bench.peer(mesh), bench.peer(mesh, OTHER_ID)
    three = bench.peer(mesh, THIRD_ID)
    two.announce("far", 9)
    one.wait_for(SERVICE, payload=b"far")
    three.wait_for(SERVICE, payload=b"far")
    one.send(Frame(DIAL, OTHER_ID, PEER_ID, 9, 1))
    two.expect(DIAL)
    two.close()
    got: dict[int, Frame] = {}
    while set(got) != {NO_SERVICE, RESET}:
        frame = one.receive()
        got[frame.cmd] = frame
    assert got[RESET] == Frame(RESET, PEER_ID, OTHER_ID)
    assert got[NO_SERVICE] == Frame(NO_SERVICE, 0, OTHER_ID, 0, 9, b"far")
    three.expect(NO_SERVICE, skip=(), local=OTHER_ID, lport=9)
    # A node that never spoke with the lost one need not hear of it.
    three.assert_quiet()


def test_service_from_behind_another_router(bench: Bench) -> None:
    """The original's routers pass on what they hear at first hand only; to more is our freedom."""
    mesh = bench.node(role=Role.ROUTER)
    router = bench.peer(mesh)
    client = bench.peer(mesh, OTHER_ID)
    router.announce("deep", 9, local=THIRD_ID)
    router.announce("shallow", 10)
    client.wait_for(SERVICE, payload=b"shallow", local=PEER_ID)
    assert ("deep", THIRD_ID, 9, 1) in known_services(mesh)
    # Never back to where it came from: two routers would keep each other's services alive.
    again = bench.peer(mesh)
    client.announce("later", 11)
    for link in (router, again):
        link.wait_for(SERVICE, payload=b"later", local=OTHER_ID)
        assert [frame.payload for frame in link.received if frame.cmd == SERVICE] == [b"later"]
