"""Peerings: joining what is not there yet, staying joined, back-off, oneself, and each other at once."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from astranet_gevent import AstraNet
from astranet_gevent.errors import ConfigError, PeeringTimeout, SelfJoinError, StreamClosedError

from .tools import DEADLINE, Bench, check_echo, echo_once, free_port, pattern

Eventually = Callable[..., None]

# Back-off for tests that want to be joined again soon.
QUICK: dict[str, Any] = {"rejoin_min": 0.02, "rejoin_max": 0.1}


def test_join_before_the_listener_exists(bench: Bench) -> None:
    client, server = bench.node(**QUICK), bench.node()
    address = ("127.0.0.1", free_port())
    peering = client.join(address)
    assert not peering.ready
    with pytest.raises(PeeringTimeout, match="refused") as caught:
        peering.wait_ready(0.2)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert peering.attempts > 1
    server.listen(address)
    peering.wait_ready(DEADLINE)
    assert peering.ready
    assert peering.error is None


def test_join_a_unix_socket_before_it_exists(bench: Bench, tmp_path: Path) -> None:
    client, server = bench.node(**QUICK), bench.node()
    peering = client.join(f"unix:{tmp_path}/mesh.sock")
    with pytest.raises(PeeringTimeout, match="No such file"):
        peering.wait_ready(0.1)
    server.listen(f"unix:{tmp_path}/mesh.sock")
    peering.wait_ready(DEADLINE)


def test_stays_joined_over_restarts(bench: Bench, eventually: Eventually) -> None:
    client = bench.node(**QUICK)
    address = ("127.0.0.1", free_port())
    peering = client.join(address)
    for _ in range(4):
        server = bench.node(listen=[address])
        bench.echo(server)
        eventually(lambda: peering.ready and peering.node_id == server.node_id, "joined to the new server")  # noqa: B023
        check_echo(client)
        server.close()
        eventually(lambda: not peering.ready, "noticed the end of the server")
        assert client.links() == []


def test_backoff(bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    """Doubled each time from half a second to 30 s, and half of it is chance."""
    asked: list[tuple[float, float]] = []

    def note(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr("astranet_gevent.joining.random.uniform", note)
    peering = bench.node().join(("127.0.0.1", free_port()))
    eventually(lambda: len(asked) >= 12, "twelve attempts")
    peering.close()
    assert [high for _, high in asked[:12]] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30]
    assert all(low == high / 2 for low, high in asked)


def test_backoff_begins_anew_after_a_good_link(bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    monkeypatch.setattr("astranet_gevent.joining._GOOD_LINK", 0.0)
    ceilings: list[float] = []

    def note(low: float, high: float) -> float:
        ceilings.append(high)
        return 0.01

    monkeypatch.setattr("astranet_gevent.joining.random.uniform", note)
    address = ("127.0.0.1", free_port())
    peering = bench.node().join(address)
    eventually(lambda: len(ceilings) >= 3, "three attempts")
    server = bench.node(listen=[address])
    peering.wait_ready(DEADLINE)
    ceilings.clear()
    server.close()
    eventually(lambda: len(ceilings) >= 2, "two more attempts")
    assert ceilings[:2] == [0.5, 1]


def test_backoff_goes_on_while_links_do_not_hold(bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    """A listener that hangs up at once must not be dialled in a loop."""
    ceilings: list[float] = []

    def note(low: float, high: float) -> float:
        ceilings.append(high)
        return 0.0

    monkeypatch.setattr("astranet_gevent.joining.random.uniform", note)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        bench.spawn(hang_up)
        peering = bench.node().join(server.getsockname())
        eventually(lambda: len(ceilings) >= 4, "four attempts")
        peering.close()
    assert ceilings[:4] == [0.5, 1, 2, 4]


def test_attempts_are_apart(bench: Bench, eventually: Eventually) -> None:
    """With the real clock: no attempt sooner than half of its back-off."""
    peering = bench.node(rejoin_min=0.1, rejoin_max=0.2).join(("127.0.0.1", free_port()))
    start = gevent.get_hub().loop.now()
    eventually(lambda: peering.attempts >= 4, "four attempts")
    # The three pauses are at least 0.05, 0.1 and 0.1 s.
    assert gevent.get_hub().loop.now() - start >= 0.24


def test_a_name_that_does_not_resolve_yet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = bench.node(), bench.node(**QUICK)
    host, port = server.listen(("127.0.0.1", 0)).address
    known = False
    getaddrinfo = socket.getaddrinfo

    def resolve(name: str, *args: Any) -> Any:
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *args)

    monkeypatch.setattr("gevent.socket.getaddrinfo", resolve)
    peering = client.join(("router.invalid", port))
    with pytest.raises(PeeringTimeout, match=r"router\.invalid:\d+ within .*Name or service not known"):
        peering.wait_ready(0.1)
    known = True
    peering.wait_ready(DEADLINE)
    assert peering.node_id == server.node_id


def test_joining_oneself(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    mesh = bench.node()
    listener = mesh.listen(("127.0.0.1", 0))
    with caplog.at_level(logging.WARNING, "astranet_gevent"):
        peering = mesh.join(listener.address)
        with pytest.raises(SelfJoinError, match="this very node"):
            peering.wait_ready(DEADLINE)
    assert not peering.ready
    assert "this very node" in caplog.text
    assert "this very node" in repr(peering)
    assert mesh.links() == []
    # It stays a peering: asked again, it says the same, and it can be closed.
    with pytest.raises(SelfJoinError):
        peering.wait_ready(0)
    peering.close()


def test_joining_oneself_is_no_loopback(bench: Bench) -> None:
    mesh = bench.node(loopback=True)
    with pytest.raises(SelfJoinError):
        mesh.join(mesh.listen(("127.0.0.1", 0)).address).wait_ready(DEADLINE)
    bench.echo(mesh)
    check_echo(mesh)


def test_what_cannot_be_joined(bench: Bench) -> None:
    mesh = bench.node()
    for address in (("127.0.0.1", 0), "host", ("host", 70000), "unix:", 5):
        with pytest.raises(ConfigError):
            mesh.join(address)


@pytest.mark.parametrize("host", ["\ufffd", "a" * 70, "a..b", "nul\0"])
def test_a_host_that_is_no_name(bench: Bench, host: str) -> None:
    peering = bench.node(**QUICK).join((host, 1))
    with pytest.raises(PeeringTimeout, match=r"(?i)name"):
        peering.wait_ready(0.3)
    assert peering.attempts > 1


def test_closing_a_peering(bench: Bench, eventually: Eventually, hold: Callable[[float], bool]) -> None:
    server, client = bench.node(), bench.node(**QUICK)
    peering = client.join(server.listen(("127.0.0.1", 0)).address)
    peering.wait_ready(DEADLINE)
    eventually(lambda: len(server.links()) == 1, "the link")
    link = peering.link
    assert link is client.links()[0]
    peering.close()
    peering.close()
    assert link.wait(DEADLINE)
    assert not peering.ready
    with pytest.raises(StreamClosedError):
        peering.wait_ready(DEADLINE)
    assert peering.ended.wait(DEADLINE)
    attempts = peering.attempts
    hold(0.15)
    assert peering.attempts == attempts
    assert client.links() == []


@pytest.mark.parametrize("state", ["refused", "connecting", "handshake"])
def test_closing_a_peering_that_is_not_joined(bench: Bench, eventually: Eventually, state: str) -> None:
    mesh = bench.node()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if state != "refused":
            silent.listen(5)
        peering = mesh.join(silent.getsockname())
        if state == "handshake":
            eventually(lambda: len(mesh.links()) == 1, "the connection")
        elif state == "refused":
            eventually(lambda: peering.error is not None, "the refusal")
        peering.close()
        assert peering.ended.wait(DEADLINE)
        assert mesh.links() == []


def test_a_listener_that_says_nothing(bench: Bench) -> None:
    mesh = bench.node(handshake_timeout=0.1, **QUICK)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        peering = mesh.join(silent.getsockname())
        with pytest.raises(PeeringTimeout, match=r"no handshake"):
            peering.wait_ready(0.5)
        assert peering.attempts > 1


def test_joining_twice_makes_one_link(bench: Bench, eventually: Eventually) -> None:
    """A second peering with a node sees that the first one's link is enough, and takes over when that one is closed."""
    server, client = bench.node(), bench.node(**QUICK)
    address = server.listen(("127.0.0.1", 0)).address
    first = client.join(address)
    first.wait_ready(DEADLINE)
    second = client.join(address)
    second.wait_ready(DEADLINE)
    eventually(lambda: len(client.links()) == len(server.links()) == 1, "one link left")
    assert first.ready
    assert second.ready
    bench.echo(server)
    check_echo(client)
    holder = first if first.link is client.links()[0] else second
    other = second if holder is first else first
    holder.close()
    eventually(lambda: other.ready and len(client.links()) == 1, "the other peering joined instead")
    check_echo(client)


def test_the_older_of_two_links_is_replaced_when_it_is_dead(bench: Bench, eventually: Eventually) -> None:
    """As after a power cut: the peer comes back before the old link has been given up."""
    one, other = bench.node(handshake_timeout=0.3), bench.node(handshake_timeout=0.3)
    dead = bench.connect(one, other)
    dead.freeze()
    alive = bench.connect(one, other)
    # The node with the smaller id decides, after it has asked over the old link and got no answer.
    decider = 0 if one.node_id < other.node_id else 1
    assert dead.links[decider].wait(DEADLINE)
    assert "newer link" in str(dead.links[decider].error)
    dead.cut()
    eventually(lambda: one.links() == [alive.links[0]] and other.links() == [alive.links[1]], "the new link stays")
    bench.echo(one)
    check_echo(other)


@pytest.mark.parametrize("count", [3, 5])
def test_many_links_at_once_leave_a_living_one(bench: Bench, eventually: Eventually, hold: Callable[[float], bool], count: int) -> None:
    """Each newer link asks whether the oldest one lives; one answer must be enough for all who ask."""
    one, other = bench.node(handshake_timeout=0.3), bench.node(handshake_timeout=0.3)
    bench.echo(other, "echo:5000")
    oldest = bench.connect(one, other)
    with one.dial((other.node_id, 5000), timeout=DEADLINE) as stream:
        cables = [bench.connect(one, other, delay=0.01, timeout=None) for _ in range(count - 1)]
        for cable in cables:
            cable.links[0].wait_ready(DEADLINE)
        eventually(lambda: one.links() == [oldest.links[0]] and other.links() == [oldest.links[1]], "the oldest link is left")
        # Whoever still waits for an answer gives up after handshake_timeout.
        hold(0.5)
        assert [link.state for link in oldest.links] == ["ready", "ready"]
        echo_once(stream)


def _talk(mesh: AstraNet, other: AstraNet, stop: gevent.event.Event, streams: list[Any]) -> None:
    """Dial while the links are being sorted out; every stream is used over and over."""
    while not stop.is_set():
        stream = mesh.dial((other.node_id, 5000), timeout=DEADLINE)
        streams.append(stream)
        for open_stream in streams:
            echo_once(open_stream, b"x" * 100)


def test_two_nodes_that_join_each_other_at_once(bench: Bench, eventually: Eventually) -> None:
    """One link is left, the same at both ends, and no stream notices."""
    for _ in range(30):
        nodes = bench.node(**QUICK), bench.node(**QUICK)
        addresses = [mesh.listen(("127.0.0.1", 0)).address for mesh in nodes]
        for mesh in nodes:
            bench.echo(mesh, "echo:5000")
        peerings = nodes[0].join(addresses[1]), nodes[1].join(addresses[0])
        nodes[0].route_map.wait_for(nodes[1].node_id, DEADLINE)
        nodes[1].route_map.wait_for(nodes[0].node_id, DEADLINE)
        stop = gevent.event.Event()
        streams: tuple[list[Any], list[Any]] = [], []
        talking = [
            bench.spawn(_talk, nodes[0], nodes[1], stop, streams[0]),
            bench.spawn(_talk, nodes[1], nodes[0], stop, streams[1]),
        ]
        for peering in peerings:
            peering.wait_ready(DEADLINE)
        eventually(lambda: all(streams), "streams from both sides")  # noqa: B023
        stop.set()
        for task in talking:
            task.get(timeout=DEADLINE)
        for stream in streams[0] + streams[1]:
            echo_once(stream, pattern(1000))
            stream.close()
        eventually(lambda: [len(mesh.links()) for mesh in nodes] == [1, 1], "one link is left")  # noqa: B023
        ends = [mesh.links()[0] for mesh in nodes]
        assert ends[0].local_address == ends[1].remote_address
        assert all(peering.ready for peering in peerings)
        for mesh in nodes:
            mesh.close()


def test_a_peering_whose_link_lost_takes_over(bench: Bench, eventually: Eventually) -> None:
    """When the link that won is lost, both nodes are joined again."""
    nodes = bench.node(**QUICK), bench.node(**QUICK)
    addresses = [mesh.listen(("127.0.0.1", 0)).address for mesh in nodes]
    peerings = nodes[0].join(addresses[1]), nodes[1].join(addresses[0])
    for _ in range(3):
        for peering in peerings:
            peering.wait_ready(DEADLINE)
        eventually(lambda: [len(mesh.links()) for mesh in nodes] == [1, 1], "one link is left")
        bench.echo(nodes[0])
        check_echo(nodes[1])
        nodes[0].links()[0].close()
        eventually(lambda: not any(mesh.links() for mesh in nodes) or True, "the end of the link")
        eventually(lambda: all(mesh.links() for mesh in nodes), "a new link")
        for mesh in nodes:
            for listener in list(mesh._node.listeners.values()):  # type: ignore[union-attr]
                listener.close()


def test_a_peering_is_garbage_after_its_end(bench: Bench) -> None:
    """Peerings that were closed do not pile up in their node."""
    mesh = bench.node()
    for _ in range(50):
        mesh.join(("127.0.0.1", 1)).close()
    gevent.idle()
    mesh.join(("127.0.0.1", 1)).close()
    gc.collect()
    assert len(mesh._node.peerings) < 50  # type: ignore[union-attr]
