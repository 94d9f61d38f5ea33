"""Many streams, one after the other and at once: what is left of them is nothing."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from astranet_gevent import AstraNet
from astranet_gevent.protocol.stream import StreamCore

from .tools import DEADLINE, Bench, check_echo, deadline, pattern, receive_exactly, tcp_pair

Eventually = Callable[..., None]

# 100,000 take 6 s here. On a machine where that is too long, some less show the same.
OPENS = int(os.environ.get("ASTRANET_TEST_OPENS", "100000"))


def count_streams() -> int:
    """Streams in memory, in a table or not."""
    return sum(isinstance(item, StreamCore) for item in gc.get_objects())


@pytest.mark.timeout(600)
def test_open_and_close(bench: Bench, eventually: Eventually) -> None:
    """By all the ways in which a stream can end, a hundred at a time."""
    one, other = bench.node(), bench.node()
    ends = tcp_pair()
    links = one.attach(ends[0]), other.attach(ends[1])
    links[0].wait_ready(DEADLINE)
    listener = other.bind("svc:7000")
    one.service_map.wait_for("svc", DEADLINE)
    before = count_streams()
    bench.spawn(_serve, listener)

    def use(number: int) -> None:
        kind = number % 5
        if kind == 4:
            with pytest.raises(ConnectionRefusedError):
                one.dial((other.node_id, 7001), timeout=DEADLINE)
            return
        stream = one.dial("svc", timeout=DEADLINE)
        stream.sendall(b"x" * 10)
        if kind == 1:
            receive_exactly(stream, 10)
        elif kind == 2:
            stream.shutdown(1)
            while stream.recv(100):
                pass
        elif kind == 3:
            stream.abort()
        stream.close()

    def worker(first: int) -> None:
        for number in range(first, OPENS, 100):
            use(number)

    started = time.monotonic()
    workers = [bench.spawn(worker, first) for first in range(100)]
    for task in workers:
        task.get(timeout=500)
    print(f"{OPENS} streams in {time.monotonic() - started:.1f} s")
    eventually(lambda: [link.stream_count for link in links] == [0, 0], "empty tables")
    assert not links[0].dialing
    assert not links[0].blocked
    assert not links[1].blocked
    assert [len(link.paths) for link in links] == [1, 1]
    assert [link.queue.size for link in links] == [0, 0]
    workers.clear()
    bench._greenlets.clear()
    gc.collect()
    assert count_streams() <= before + 5
    listener.close()
    check = bench.echo(other)
    check_echo(one)
    check.close()


def _serve(listener: Any) -> None:
    for stream, _ in listener:
        gevent.spawn(_answer, stream)


def _answer(stream: Any) -> None:
    try:
        with stream:
            while data := stream.recv(100):
                stream.sendall(data)
    except OSError:
        return


def test_many_at_once(bench: Bench, eventually: Eventually) -> None:
    """Ten thousand idle ones, and each of them works."""
    one, other = bench.node(), bench.node()
    ends = tcp_pair()
    links = one.attach(ends[0]), other.attach(ends[1])
    listener = other.bind("svc", backlog=100_000)
    one.service_map.wait_for("svc", DEADLINE)
    dialled: list[Any] = []

    def dial() -> None:
        for _ in range(500):
            dialled.append(one.dial("svc", timeout=30))

    for task in [bench.spawn(dial) for _ in range(20)]:
        task.get(timeout=30)
    accepted = {}
    for _ in dialled:
        stream, address = listener.accept()
        accepted[address] = stream
    assert len(accepted) == 10_000
    assert [link.stream_count for link in links] == [10_000, 10_000]
    with deadline(30):
        for stream in dialled[::50]:
            data = pattern(100, stream.getsockname()[1])
            stream.sendall(data)
            assert receive_exactly(accepted[stream.getsockname()], 100) == data
    links[0].close()
    eventually(lambda: [link.stream_count for link in links] == [0, 0], "all are gone with their link")
    for stream in dialled[:100]:
        with pytest.raises(ConnectionResetError):
            stream.recv(1)


def test_links_come_and_go(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(), bench.node()
    address = server.listen(("127.0.0.1", 0)).address
    bench.echo(server)
    for _ in range(100):
        peering = client.join(address)
        peering.wait_ready(DEADLINE)
        check_echo(client, size=1000)
        peering.close()
    eventually(lambda: not server.links() and not client.links(), "no link is left")
    assert client.services() == []
    assert client.routes() == server.routes() == []


def test_nodes_come_and_go(bench: Bench) -> None:
    """Closed nodes are garbage: nothing holds them."""
    seen: list[weakref.ref[Any]] = []
    for _ in range(20):
        with AstraNet() as server, AstraNet() as client:
            client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(DEADLINE)
            client.route_map.wait_for(server.node_id, DEADLINE)
            seen += [weakref.ref(server._node), weakref.ref(client._node)]
    del server, client
    gevent.idle()
    gc.collect()
    gevent.idle()
    gc.collect()
    assert sum(ref() is not None for ref in seen) == 0


def test_a_node_that_nobody_closed(no_leaks: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Without links it is garbage as anything else; with listeners bound too."""
    mesh = AstraNet().start()
    mesh.bind("svc")
    mesh.service_map.watch()
    ref = weakref.ref(mesh._node)
    del mesh
    gc.collect()
    assert ref() is None
    assert capsys.readouterr().err == ""


def test_a_linked_node_that_nobody_closed(bench: Bench) -> None:
    """It lives on, as its links do: a program may keep nothing but a stream."""
    server = bench.node()
    ends = tcp_pair()
    server.attach(ends[0])
    bench.echo(server)
    mesh = AstraNet().start()
    mesh.attach(ends[1]).wait_ready(DEADLINE)
    stream = mesh.dial("echo", timeout=DEADLINE)
    del mesh
    gc.collect()
    stream.sendall(b"x")
    assert receive_exactly(stream, 1) == b"x"
    stream.close()
    link = server.links()[0]
    server.close()
    assert link.wait(0)


def test_streams_that_nobody_closed(bench: Bench, eventually: Eventually) -> None:
    """They stay open, as their table holds them; the end of the link ends them."""
    one, other = bench.node(), bench.node()
    cable = bench.connect(one, other)
    listener = other.bind("svc")
    one.dial("svc", timeout=DEADLINE).sendall(b"left alone")
    gc.collect()
    accepted, _ = listener.accept()
    assert accepted.recv(100) == b"left alone"
    assert cable.links[0].stream_count == 1
    cable.cut()
    eventually(lambda: cable.links[0].stream_count == 0, "gone with the link")
