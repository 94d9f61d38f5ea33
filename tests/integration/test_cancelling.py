"""gevent.Timeout and kill, at every point of every call that waits: afterwards nothing is left, and nothing is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from wire.peer import DIAL, FIN1, FIN2, SYN

from astranet_gevent import AstraNet, Listener, Role

from .tools import DEADLINE, Bench, check_echo, deadline, echo_once, pattern, receive_all, receive_exactly, tcp_pair

Eventually = Callable[..., None]

# Turns of the loop after which the call is cancelled. A dial over a socket takes about ten.
TURNS = range(25)


class Interruption(Exception):
    """What a test throws into a greenlet."""


def interrupt(task: Any, how: str) -> Any:
    """End a greenlet the way an application would; what it returned if it was faster, else None."""
    error = {"kill": gevent.GreenletExit, "timeout": gevent.Timeout, "error": Interruption}[how]
    task.kill(error, timeout=DEADLINE)
    assert task.dead
    return None if isinstance(task.value, gevent.GreenletExit) else task.value


def turns(count: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(count):
        gevent.sleep(0)


@pytest.fixture(params=["kit", "tcp", "relay"])
def pair(bench: Bench, request: pytest.FixtureRequest) -> tuple[AstraNet, AstraNet]:
    """Two nodes that reach each other."""
    one, other = bench.node(follow=False), bench.node(follow=False)
    if request.param == "kit":
        bench.connect(one, other)
    elif request.param == "tcp":
        ends = tcp_pair()
        for mesh, end in zip((one, other), ends):
            mesh.attach(end)
        for mesh in (one, other):
            mesh.links()[0].wait_ready(DEADLINE)
    else:
        router = bench.node(role=Role.ROUTER)
        bench.connect(one, router)
        bench.connect(router, other)
    return one, other


@pytest.fixture(params=["kill", "timeout", "error"])
def how(request: pytest.FixtureRequest, hub_errors: list[Any]) -> Iterator[str]:
    """How calls are cancelled. What is thrown in comes out again, and the hub reports it: that is no fault."""
    yield request.param
    hub_errors[:] = [
        entry for entry in hub_errors if not (isinstance(entry, tuple) and issubclass(entry[1], (gevent.Timeout, Interruption)))
    ]


def assert_empty(eventually: Eventually, *nodes: AstraNet) -> None:
    """No stream is left in any table, no dial and no waiter."""

    def empty() -> bool:
        links = [link for mesh in nodes for link in mesh.links()]
        return not any(
            link.stream_count or link.dialing or link.blocked or any(p.stream_count for p in link.paths.values()) for link in links
        )

    eventually(empty, "all tables are empty")
    for mesh in nodes:
        node: Any = mesh._node
        assert not node.service_watchers
        assert not node.route_watchers


def test_dial(bench: Bench, pair: tuple[AstraNet, AstraNet], how: str, eventually: Eventually) -> None:
    one, other = pair
    bench.echo(other, "echo:7000")
    one.service_map.wait_for("echo", DEADLINE)
    for target in ("echo", (other.node_id, 7000)):
        for count in TURNS:
            task = gevent.spawn(one.dial, target, DEADLINE)
            turns(count)
            stream = interrupt(task, how)
            if stream is not None:
                stream.close()
    assert_empty(eventually, one, other)
    check_echo(one)


def test_dial_a_name_that_is_not_there(bench: Bench, pair: tuple[AstraNet, AstraNet], how: str, eventually: Eventually) -> None:
    """While it waits, and while the name appears."""
    one, other = pair
    for count in TURNS:
        task = gevent.spawn(one.dial, f"late-{count}", DEADLINE)
        gevent.idle()
        listener = bench.echo(other, f"late-{count}")
        turns(count)
        stream = interrupt(task, how)
        if stream is not None:
            stream.close()
        listener.close()
    assert_empty(eventually, one, other)


def test_dial_where_nobody_answers(bench: Bench, how: str, eventually: Eventually) -> None:
    """A node of the original that is slow: its SYN comes when the dial is long given up, and has to be answered."""
    mesh = bench.node()
    peer, link = bench.raw(mesh)
    for late in (False, True):
        task = gevent.spawn(mesh.dial, (peer.node_id, 5000), DEADLINE)
        frame = peer.wait_for(DIAL)
        interrupt(task, how)
        assert (link.stream_count, len(link.dialing)) == (0, 0)
        if late:
            peer.send(peer.frame(SYN, frame.lport, 5000))
            assert {peer.wait_for(command).lport for command in (FIN2, FIN1)} == {frame.lport}
    assert_empty(eventually, mesh)


def test_a_dial_that_times_out(bench: Bench, eventually: Eventually) -> None:
    mesh = bench.node()
    peer, _ = bench.raw(mesh)
    with pytest.raises(TimeoutError):
        mesh.dial((peer.node_id, 5000), timeout=0.02)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        mesh.dial((peer.node_id, 5000), timeout=DEADLINE)
    assert_empty(eventually, mesh)


def test_accept(bench: Bench, pair: tuple[AstraNet, AstraNet], how: str, eventually: Eventually) -> None:
    """A stream meant for a greenlet that is gone goes to the next one: none is lost."""
    one, other = pair
    listener = other.bind("svc")
    one.service_map.wait_for("svc", DEADLINE)
    for count in TURNS:
        tasks = [gevent.spawn(listener.accept) for _ in range(3)]
        gevent.idle()
        dial = gevent.spawn(one.dial, "svc", DEADLINE)
        turns(count)
        accepted = [pair[0] for pair in [interrupt(task, how) for task in tasks] if pair is not None]
        stream = dial.get(timeout=DEADLINE)
        if not accepted:
            listener.settimeout(DEADLINE)
            accepted.append(listener.accept()[0])
            listener.settimeout(None)
        assert len(accepted) == 1
        stream.sendall(b"x")
        assert receive_exactly(accepted[0], 1) == b"x"
        stream.close()
        accepted[0].close()
    assert_empty(eventually, one, other)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def _connected(one: AstraNet, listener: Listener) -> tuple[Any, Any]:
    stream = one.dial(listener.name, timeout=DEADLINE)
    return stream, listener.accept()[0]


def test_recv(bench: Bench, pair: tuple[AstraNet, AstraNet], how: str, eventually: Eventually) -> None:
    """Bytes that a cancelled reader did not get are the next one's."""
    one, other = pair
    stream, accepted = _connected(one, other.bind("svc"))
    data = pattern(200_000)
    received = bytearray()

    def read() -> None:
        while True:
            received.extend(accepted.recv(997))

    writer = bench.spawn(stream.sendall, data)
    count = 0
    with deadline():
        while len(received) < len(data):
            task = gevent.spawn(read)
            turns(count % 7)
            count += 1
            interrupt(task, how)
    assert bytes(received) == data
    writer.get(timeout=DEADLINE)
    assert accepted.recv_waiter is None
    accepted.settimeout(0.01)
    with pytest.raises(TimeoutError):
        accepted.recv(1)
    stream.close()
    accepted.close()
    assert_empty(eventually, one, other)


def test_sendall(bench: Bench, pair: tuple[AstraNet, AstraNet], how: str, eventually: Eventually) -> None:
    """What arrives is what was written up to there, and the stream goes on behind it."""
    one, other = pair
    data = pattern(2_000_000)
    listener = other.bind("svc")
    for count in TURNS:
        stream, accepted = _connected(one, listener)
        reader = bench.spawn(receive_all, accepted)
        task = gevent.spawn(stream.sendall, data)
        turns(count * 3)
        if not task.ready():
            interrupt(task, how)
        assert stream.send_waiter is None
        stream.sendall(b"behind")
        stream.shutdown(socket.SHUT_WR)
        received = reader.get(timeout=DEADLINE)
        assert received.endswith(b"behind")
        assert data.startswith(received[:-6])
        stream.close()
        accepted.close()
    assert_empty(eventually, one, other)


def test_close_of_what_others_wait_for(bench: Bench, pair: tuple[AstraNet, AstraNet], how: str, eventually: Eventually) -> None:
    """close() from another greenlet, and from the one that is being cancelled."""
    one, other = pair
    listener = other.bind("svc")
    for _ in range(10):
        stream, accepted = _connected(one, listener)

        def use(stream: Any = stream) -> None:
            with stream:
                stream.recv(1)

        task = gevent.spawn(use)
        gevent.idle()
        interrupt(task, how)
        with deadline():
            assert accepted.recv(1) == b""
        accepted.close()
    assert_empty(eventually, one, other)


@pytest.mark.parametrize("what", ["wait_ready", "link.wait", "peering.wait_ready", "wait_for", "watch", "serve_forever"])
def test_other_waits(bench: Bench, how: str, what: str, eventually: Eventually) -> None:
    mesh = bench.node(rejoin_min=60, rejoin_max=60)
    _, link = bench.silent(mesh)
    peering = mesh.join(("127.0.0.1", 1))
    call: Any = {
        "wait_ready": link.wait_ready,
        "link.wait": link.wait,
        "peering.wait_ready": peering.wait_ready,
        "wait_for": lambda: mesh.service_map.wait_for("nothing"),
        "watch": lambda: list(mesh.route_map.watch()),
        "serve_forever": mesh.serve_forever,
    }[what]
    task = gevent.spawn(call)
    turns(3)
    interrupt(task, how)
    if what == "serve_forever":
        assert mesh.closed
    elif what != "watch":
        assert_empty(eventually, mesh)
        assert link.state == "handshake"


@pytest.mark.parametrize("count", range(6))
def test_closing_a_node(bench: Bench, how: str, count: int) -> None:
    """Cancelled while it waits for peers that do not read: the node is closed all the same."""
    mesh = bench.node()
    peers = []
    for node_id in (5, 6):
        peer, link = bench.raw(mesh, node_id)
        peers.append((peer, link))
        for _ in range(10):
            dial = bench.spawn(mesh.dial, (node_id, 5000), DEADLINE)
            frame = peer.wait_for(DIAL)
            peer.send(peer.frame(SYN, frame.lport, 5000), peer.frame(6, frame.lport, 5000))
            dial.get(timeout=DEADLINE).sendall(bytes(65536))
    listener = mesh.listen(("127.0.0.1", 0))
    task = gevent.spawn(mesh.close)
    turns(count)
    interrupt(task, how)
    assert mesh.closed or count == 0
    mesh.close(0)
    assert listener.closed
    assert mesh.links() == []
    for _, link in peers:
        assert link.wait(0)


def test_starting_a_node(bench: Bench, how: str) -> None:
    """Cancelled while it resolves where to listen: it is closed, and holds no port."""
    for count in range(6):
        mesh = AstraNet(listen=[("127.0.0.1", 0), ("localhost", 0)])
        task = gevent.spawn(mesh.start)
        turns(count)
        if not task.ready():
            interrupt(task, how)
        mesh.close()
        assert mesh.closed


def test_joining_and_listening(bench: Bench, how: str, eventually: Eventually) -> None:
    server, client = bench.node(), bench.node()
    address = server.listen(("127.0.0.1", 0)).address
    for count in range(20):
        peering = client.join(address)
        task = gevent.spawn(peering.wait_ready, DEADLINE)
        turns(count)
        interrupt(task, how)
        peering.close()
    eventually(lambda: not client.links() and not server.links(), "all links are gone")


def test_a_timeout_around_everything(bench: Bench, pair: tuple[AstraNet, AstraNet], eventually: Eventually) -> None:
    """As applications use it: one deadline for a dial, a request and its answer."""
    one, other = pair
    bench.echo(other)
    one.service_map.wait_for("echo", DEADLINE)
    finished = 0
    for number in range(150):
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(number * 0.00005):
            with one.dial("echo", timeout=DEADLINE) as stream:
                stream.sendall(pattern(20_000))
                receive_exactly(stream, 20_000)
            finished += 1
    assert_empty(eventually, one, other)
    with one.dial("echo", timeout=DEADLINE) as stream:
        echo_once(stream)
