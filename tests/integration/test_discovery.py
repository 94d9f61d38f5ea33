"""Discovery: who offers what, who hears of it, and what a dial makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from wire.peer import DIAL, NO_SERVICE, SERVICE

from astranet_gevent import AstraNet, HashRing, Role, RoundRobin
from astranet_gevent.address import format_node_id
from astranet_gevent.errors import ConfigError, LimitError, NameInUseError, NoRouteError, ServiceNotFoundError, StreamClosedError

from .tools import DEADLINE, Bench, check_echo, check_script, deadline, echo_once

Eventually = Callable[..., None]


@pytest.fixture
def pair(bench: Bench) -> tuple[AstraNet, AstraNet]:
    """Two linked nodes."""
    one, other = bench.node(), bench.node()
    bench.connect(one, other)
    return one, other


Pair = tuple[AstraNet, AstraNet]


# -- announce and withdraw


def test_announce_and_withdraw(pair: Pair) -> None:
    one, other = pair
    with other.service_map.watch() as events:
        listener = one.bind("web")
        change = events.get(DEADLINE)
        assert change is not None
        assert (change.kind, change.service) == ("added", ("web", one.node_id, listener.port, 0))
        assert other.services() == [change.service]
        assert other.service_map["web"] == (change.service,)
        listener.close()
        change = events.get(DEADLINE)
        assert change is not None
        assert (change.kind, change.service[:3]) == ("removed", ("web", one.node_id, listener.port))
    assert other.services() == []
    assert "web" not in other.service_map


def test_what_was_bound_before_the_link_is_announced_too(bench: Bench) -> None:
    one, other = bench.node(), bench.node()
    one.bind("web")
    bench.connect(one, other)
    other.service_map.wait_for("web", DEADLINE)


def test_own_services_are_listed(bench: Bench) -> None:
    mesh = bench.node()
    listener = mesh.bind("web")
    assert mesh.services() == [("web", mesh.node_id, listener.port, 0)]
    listener.close()
    assert mesh.services() == []


def test_bound_and_closed_at_once_is_never_announced(bench: Bench) -> None:
    mesh = bench.node()
    peer, _ = bench.raw(mesh)
    mesh.bind("gone").close()
    stays = mesh.bind("stays")
    frame = peer.wait_for(SERVICE)
    assert (frame.payload, frame.lport, frame.local, frame.remote) == (b"stays", stays.port, mesh.node_id, 0)
    # Closed and bound again within one interval: nothing has changed.
    stays.close()
    again = mesh.bind(f"stays:{stays.port}")
    mesh.bind("last")
    frames = [peer.wait_for(SERVICE, payload=b"last")]
    assert [frame for frame in peer.received if frame.cmd == NO_SERVICE] == []
    assert len([frame for frame in peer.received if frame.cmd == SERVICE]) == len(frames) + 1
    again.close()
    peer.wait_for(NO_SERVICE, payload=b"stays")
    peer.fence()
    assert b"gone" not in {frame.payload for frame in peer.received}


def test_announcements_come_in_batches(bench: Bench) -> None:
    """At most one batch per interval: with a long one, everything of a second comes together and sorted."""
    mesh = bench.node(announce_interval=0.2)
    peer, _ = bench.raw(mesh)
    mesh.bind("first")
    peer.wait_for(SERVICE)
    for name in ("c", "a", "b"):
        mesh.bind(name)
    assert [peer.wait_for(SERVICE).payload for _ in range(3)] == [b"a", b"b", b"c"]


def test_services_are_sorted_and_told_apart(bench: Bench) -> None:
    nodes = [bench.node() for _ in range(3)]
    for mesh in nodes[1:]:
        bench.connect(nodes[0], mesh)
        mesh.bind("b")
        mesh.bind("a")
    bench.eventually(lambda: len(nodes[0].services()) == 4, "all services")
    services = nodes[0].services()
    assert services == sorted(services)
    assert Counter(service.name for service in services) == {"a": 2, "b": 2}
    assert list(nodes[0].service_map) == ["a", "b"]
    assert len(nodes[0].service_map) == 2
    assert {service.node_id for service in nodes[0].service_map["a"]} == {mesh.node_id for mesh in nodes[1:]}


def test_services_go_with_their_link(bench: Bench, pair: Pair) -> None:
    one, other = pair
    one.bind("web")
    other.service_map.wait_for("web", DEADLINE)
    with other.service_map.watch() as events, other.route_map.watch() as routes:
        assert [change.kind for change in (events.get(DEADLINE), routes.get(DEADLINE)) if change] == ["added", "added"]
        bench.cables[0].cut()
        removed = events.get(DEADLINE), routes.get(DEADLINE)
    assert [change.kind for change in removed if change] == ["removed", "removed"]
    assert (other.services(), other.routes()) == ([], [])


def test_ten_thousand_services(bench: Bench) -> None:
    one, other = bench.node(announce_interval=0.01), bench.node()
    for number in range(10_000):
        one.bind(f"service-{number:05}")
    bench.connect(one, other)
    with deadline(), other.service_map.watch() as events:
        for _ in range(10_000):
            change = events.get()
            assert change is not None
            assert change.kind == "added"
    assert [service.name for service in other.services()] == [f"service-{number:05}" for number in range(10_000)]
    bench.cables[0].cut()
    with deadline():
        other.links()[0].wait() if other.links() else None
    assert other.services() == []


# -- waiting and watching


def test_wait_for(pair: Pair) -> None:
    one, other = pair
    waiting = gevent.spawn(other.service_map.wait_for, "late", DEADLINE)
    gevent.idle()
    listener = one.bind("late")
    assert waiting.get(timeout=DEADLINE) == (("late", one.node_id, listener.port, 0),)
    assert other.service_map.wait_for("late", 0)


def test_wait_for_gives_up(pair: Pair) -> None:
    with pytest.raises(ServiceNotFoundError, match=r"'nothing' within 0\.05 s"):
        pair[0].service_map.wait_for("nothing", 0.05)


def test_a_watch_tells_first_what_is_there(pair: Pair) -> None:
    one, other = pair
    first = one.bind("first")
    other.service_map.wait_for("first", DEADLINE)
    seen = []
    with other.service_map.watch() as events:
        second = one.bind("second")
        other.service_map.wait_for("second", DEADLINE)
        first.close()
        for event in events:
            seen.append((event.kind, event.service.name))
            if len(seen) == 3:
                second.close()
            if len(seen) == 4:
                break
    assert seen == [("added", "first"), ("added", "second"), ("removed", "first"), ("removed", "second")]


@pytest.mark.parametrize("end", ["watch", "node"])
def test_a_watch_ends(bench: Bench, end: str) -> None:
    mesh = bench.node()
    for view in (mesh.service_map, mesh.route_map):
        watch: Any = view.watch()
        waiting = bench.spawn(list, watch)
        gevent.idle()
        if end == "watch":
            watch.close()
        else:
            bench.spawn(mesh.close)
        assert waiting.get(timeout=DEADLINE) == []
        watch.close()
        if end == "node":
            with pytest.raises(StreamClosedError):
                view.watch()
            return


def test_a_watch_that_nobody_reads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astranet_gevent.views._MAX_PENDING", 10)
    mesh = bench.node()
    watch = mesh.service_map.watch()
    for _ in range(5):
        mesh.bind("on and off").close()
    watch_in_time = mesh.service_map.watch()
    mesh.bind("one too many")
    with pytest.raises(LimitError, match="10 changes"):
        watch.get(0)
    assert watch_in_time.get(0) is not None
    watch_in_time.close()
    assert not mesh._node.service_watchers  # type: ignore[union-attr]


def test_route_map(bench: Bench, pair: Pair) -> None:
    one, other = pair
    assert one.route_map[other.node_id] == ((other.node_id, 0, other.node_id),)
    assert list(one.route_map) == [other.node_id]
    assert len(one.route_map) == 1
    assert one.routes() == [(other.node_id, 0, other.node_id)]
    late = bench.node()
    with pytest.raises(KeyError):
        one.route_map[late.node_id]
    with pytest.raises(NoRouteError):
        one.route_map.wait_for(late.node_id, 0.01)
    waiting = gevent.spawn(one.route_map.wait_for, late.node_id, DEADLINE)
    gevent.idle()
    bench.connect(one, late)
    assert waiting.get(timeout=DEADLINE) == ((late.node_id, 0, late.node_id),)


# -- environments


def test_environments_do_not_see_each_other(bench: Bench) -> None:
    hub = bench.node(role=Role.ROUTER)
    staging = [bench.node(env="staging") for _ in range(2)]
    deep = [bench.node(env=("x", "y")) for _ in range(2)]
    for mesh in staging + deep:
        bench.connect(hub, mesh)
    bench.echo(staging[0], "web")
    bench.echo(deep[0], "web")
    bench.eventually(lambda: len(hub.services()) == 2, "both services")
    # As in the original: a node without an environment sees the names as they are on the wire.
    assert [service.name for service in hub.services()] == ["web.staging", "web.x.y"]
    for offering, dialling in (staging, deep):
        dialling.service_map.wait_for("web", DEADLINE)
        assert [service.node_id for service in dialling.services()] == [offering.node_id]
        check_echo(dialling, "web")
        with pytest.raises(ServiceNotFoundError):
            dialling.dial("web.staging", timeout=0)
    check_echo(hub, "web.staging")


def test_an_environment_as_a_variant(bench: Bench) -> None:
    plain = bench.node()
    with plain.with_env("x", "y") as mesh:
        assert mesh.config.env == ("x", "y")
        bench.connect(plain, mesh)
        bench.echo(mesh, "web")
        check_echo(plain, "web.x.y")
        bench.echo(plain, "db.x.y")
        check_echo(mesh, "db")
        # A name with a port of its own in an environment is found in the same ways.
        bench.echo(mesh, "site:8080")
        check_echo(plain, "site.x.y:8080")


# -- dialling by name


def test_a_dial_waits_for_the_name(bench: Bench, pair: Pair) -> None:
    one, other = pair
    dial = gevent.spawn(other.dial, "late", DEADLINE)
    gevent.idle()
    assert not dial.ready()
    bench.echo(one, "late")
    with dial.get(timeout=DEADLINE) as stream:
        echo_once(stream)


def test_a_dial_waits_for_the_first_link(bench: Bench) -> None:
    one, other = bench.node(), bench.node()
    bench.echo(one)
    dial = gevent.spawn(other.dial, "echo", DEADLINE)
    gevent.idle()
    bench.connect(one, other)
    with dial.get(timeout=DEADLINE) as stream:
        echo_once(stream)


def test_a_name_that_nobody_offers(pair: Pair) -> None:
    with pytest.raises(socket.gaierror) as caught:
        pair[0].dial("nobody", timeout=0.05)
    assert isinstance(caught.value, ServiceNotFoundError)
    assert caught.value.errno == socket.EAI_NONAME
    assert "'nobody'" in str(caught.value)


@pytest.mark.parametrize("target", ["", ":80", None, 5, ("a", 1), (1, 0), (0, 1), (1, 2, 3), "x" * 129, "web:0", "web:4294967296"])
def test_what_cannot_be_dialled(bench: Bench, target: Any) -> None:
    with pytest.raises(ConfigError):
        bench.node().dial(target)


@pytest.mark.parametrize("service", ["", "x" * 129, "é" * 65, "web:0", "web:4294967296", None])
def test_what_cannot_be_bound(bench: Bench, service: Any) -> None:
    with pytest.raises(ConfigError):
        bench.node().bind(service)


def test_a_port_is_bound_once(bench: Bench) -> None:
    mesh = bench.node()
    mesh.bind("web:80")
    with pytest.raises(NameInUseError, match="'web'"):
        mesh.bind("other:80")
    # A name may be bound again: on another port.
    assert mesh.bind("web").port != 80


NAMES = [
    "a",
    "hello-world",
    "ABCDEFGHIJK",
    "with space",
    "Grüße",
    "日本",
    "é" * 64,
    "x" * 128,
    "😀" * 32,
    "dots.and-dashes_and/slashes",
    "[::1]",
    "a:b",
    "colon:",
]


def test_names(bench: Bench, pair: Pair) -> None:
    """Any UTF-8 up to 128 bytes; what looks like a node id or an address too."""
    one, other = pair
    for name in NAMES:
        bench.echo(one, name)
    for name in NAMES:
        assert [service.name for service in other.service_map.wait_for(name, DEADLINE)] == [name]
        check_echo(other, name, size=100)


def test_a_name_with_a_port(bench: Bench, pair: Pair) -> None:
    one, other = pair
    bench.echo(one, "site:8080")
    for target in ("site", "site:8080", (one.node_id, 8080), f"{format_node_id(one.node_id)}:8080"):
        check_echo(other, target, size=100)
    assert other.service_map["site"] == other.service_map["site:8080"]
    with pytest.raises(ServiceNotFoundError):
        other.dial("site:8081", timeout=0.01)


def test_a_name_without_a_port_is_not_found_with_one(bench: Bench, pair: Pair) -> None:
    one, other = pair
    listener = bench.echo(one, "site")
    check_echo(other, "site", size=100)
    check_echo(other, f"site:{listener.port}", size=100)
    with pytest.raises(ServiceNotFoundError):
        other.dial("site:80", timeout=0.01)


def test_a_bare_port_is_found_by_node_id_only(bench: Bench, pair: Pair) -> None:
    one, other = pair
    bench.echo(one, ":7000")
    check_echo(other, (one.node_id, 7000), size=100)
    assert other.services() == one.services() == []


def test_a_port_in_the_very_name(bench: Bench) -> None:
    """As nodes of the original bind "web:80": the port belongs to the name there."""
    mesh = bench.node()
    peer, _ = bench.raw(mesh)
    peer.announce("web:80", 5000)
    mesh.service_map.wait_for("web:80", DEADLINE)
    dial = bench.spawn(mesh.dial, "web:80", DEADLINE)
    assert peer.wait_for(DIAL).rport == 5000
    dial.kill()


def test_an_eleven_letter_name_wins_over_a_node_id(bench: Bench, pair: Pair) -> None:
    one, other = pair
    name = format_node_id(other.node_id)
    bench.echo(one, f"{name}:9")
    other.service_map.wait_for(name, DEADLINE)
    check_echo(other, f"{name}:9", size=100)


def test_names_that_are_not_utf8(bench: Bench) -> None:
    """They can be dialled by those who know them, and a router passes them on as they are."""
    router, behind = bench.node(role=Role.ROUTER), bench.node(follow=False)
    peer, _ = bench.raw(router)
    bench.connect(router, behind)
    peer.announce(b"\xff\xfe", 5000)
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert behind.service_map.wait_for(name, DEADLINE)[0].port == 5000
    dial = bench.spawn(behind.dial, name, DEADLINE)
    assert peer.wait_for(DIAL).local == behind.node_id
    dial.kill()


# -- choosing


def _servers(bench: Bench, count: int) -> tuple[AstraNet, list[AstraNet]]:
    """A client, and servers that say who they are."""
    client = bench.node()
    servers = []

    def answer(mesh: AstraNet, listener: Any) -> None:
        for stream, _ in listener:
            stream.sendall(mesh.node_id.to_bytes(8, "big"))
            stream.close()

    for _ in range(count):
        server = bench.node()
        bench.connect(client, server)
        bench.spawn(answer, server, server.bind("who"))
        servers.append(server)
    bench.eventually(lambda: len(client.services()) == count, "all servers")
    return client, servers


def _who(client: AstraNet, selector: Any = None) -> int:
    with client.dial("who", timeout=DEADLINE, selector=selector) as stream:
        return int.from_bytes(stream.recv(8), "big")


def test_the_default_choice_is_random(bench: Bench) -> None:
    client, servers = _servers(bench, 3)
    seen = Counter(_who(client) for _ in range(90))
    # That one of three is chosen less than 10 times of 90 happens once in 100,000 runs.
    assert set(seen) == {server.node_id for server in servers}
    assert min(seen.values()) >= 10


def test_round_robin(bench: Bench) -> None:
    client, servers = _servers(bench, 3)
    turns = RoundRobin()
    seen = [_who(client, turns) for _ in range(9)]
    assert seen[:3] == seen[3:6] == seen[6:]
    assert set(seen) == {server.node_id for server in servers}


def test_hash_ring(bench: Bench, eventually: Eventually) -> None:
    client, servers = _servers(bench, 4)
    keys = [f"user-{number}" for number in range(60)]
    before = {key: _who(client, HashRing(key)) for key in keys}
    assert before == {key: _who(client, HashRing(key)) for key in keys}
    assert set(before.values()) == {server.node_id for server in servers}
    servers[0].close()
    eventually(lambda: len(client.services()) == 3, "the server has gone")
    after = {key: _who(client, HashRing(key)) for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == servers[0].node_id}


def test_a_selector_that_chooses_somebody_else(bench: Bench) -> None:
    """It may return only one of those that it was given."""
    client, servers = _servers(bench, 2)
    given: list[Any] = []

    def stranger(candidates: Any) -> Any:
        given.extend(candidates)
        return candidates[0]._replace(node_id=1)

    with pytest.raises(ConfigError, match=r"chose .*not one of the 2 candidates"):
        client.dial("who", timeout=DEADLINE, selector=stranger)
    assert {candidate.node_id for candidate in given} == {server.node_id for server in servers}
    _who(client)


def test_the_hash_ring_is_the_same_in_every_process() -> None:
    source = """
import sys
from astranet_gevent import HashRing
from astranet_gevent.protocol.registry import Service
servers = [Service("x", number * 7919, 5, 0) for number in range(1, 20)]
print([HashRing(f"key-{number}")(servers).node_id for number in range(50)])
"""
    assert check_script(source) == check_script(source)


def test_when_one_refuses_another_is_tried(bench: Bench) -> None:
    """Servers announce by name; one of them has no room."""
    client, full, free = bench.node(), bench.node(), bench.node()
    bench.connect(client, full)
    bench.connect(client, free)
    backlog = full.bind("web", backlog=1)
    bench.echo(free, "web")
    bench.eventually(lambda: len(client.services()) == 2, "both servers")
    first = client.dial((full.node_id, backlog.port), timeout=DEADLINE)
    for _ in range(10):
        check_echo(client, "web", size=10)
    first.close()


def test_direct_links_are_preferred(bench: Bench) -> None:
    one, router, other = bench.node(follow=False), bench.node(role=Role.ROUTER), bench.node(follow=False)
    bench.connect(one, router)
    bench.connect(router, other)
    bench.echo(other)
    assert one.service_map.wait_for("echo", DEADLINE)[0].distance == 1
    relayed = one.dial("echo", timeout=DEADLINE)
    assert one.links()[0].stream_count == 1
    cable = bench.connect(one, other)
    bench.eventually(lambda: one.service_map["echo"][0].distance == 0, "the direct offer")
    streams = [one.dial("echo", timeout=DEADLINE) for _ in range(10)]
    assert [link.stream_count for link in one.links()] == [1, 10]
    assert one.route_map[other.node_id] == ((other.node_id, 0, other.node_id), (other.node_id, 1, router.node_id))
    # The direct link goes: what was over the relay lives, and new dials take that way again.
    cable.cut()
    for stream in streams:
        with pytest.raises(ConnectionResetError):
            stream.recv(1)
    echo_once(relayed)
    check_echo(one)


def test_http_dial(bench: Bench, pair: Pair) -> None:
    one, other = pair
    bench.echo(one, "site")
    bench.echo(one, "other:443")
    for host in ("site", "site:80", "site:443", "other", "other:443", "other:80"):
        other.service_map.wait_for("other", DEADLINE)
        with other.http_dial(host, timeout=DEADLINE) as stream:
            echo_once(stream)
    with pytest.raises(ServiceNotFoundError):
        other.http_dial("site:8080", timeout=0.01)


def test_http_dial_decides_when_the_name_is_there(bench: Bench, pair: Pair) -> None:
    """Of two servers that appear while the dial waits, the one that is bound with the HTTP port is meant; else any will do."""
    one, other = pair
    dials = [bench.spawn(other.http_dial, "late:80", DEADLINE) for _ in range(10)]
    gevent.idle()
    for port in (8080, 80):
        one.bind(f"late:{port}")
    for dial in dials:
        with dial.get(timeout=DEADLINE) as stream:
            assert stream.getpeername() == (one.node_id, 80)
    plain = bench.spawn(other.http_dial, "plain:443", DEADLINE)
    gevent.idle()
    bench.echo(one, "plain:8443")
    with plain.get(timeout=DEADLINE) as stream:
        echo_once(stream)
    with other.http_dial(f"{format_node_id(one.node_id)}:80", timeout=DEADLINE) as stream:
        assert stream.getpeername() == (one.node_id, 80)
    for wrong in (-1, True, "1"):
        with pytest.raises(ConfigError, match="timeout"):
            other.http_dial("nobody:80", timeout=wrong)
    with pytest.raises(ServiceNotFoundError, match=r"'nobody:80' within 0\.05 s"):
        other.http_dial("nobody:80", timeout=0.05)
