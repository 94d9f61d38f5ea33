"""Use from another thread: a clear error, and nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent._hub_local import get_hub_if_exists

from astranet_gevent import AstraNet
from astranet_gevent.errors import StreamClosedError, WrongThreadError

from .tools import DEADLINE, Bench, check_echo, check_script, echo_once


def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """What a call in another thread returned or raised; the hub of this thread runs meanwhile."""

    def run() -> Any:
        try:
            return function(*args)
        except Exception as error:  # noqa: BLE001 - the caller looks at it
            return error
        finally:
            hub = get_hub_if_exists()
            if hub is not None:
                hub.destroy(destroy_loop=True)

    return gevent.get_hub().threadpool.apply(run)


MESH_CALLS: dict[str, Callable[[AstraNet], Any]] = {
    "bind": lambda mesh: mesh.bind("other"),
    "dial": lambda mesh: mesh.dial("echo", timeout=0.1),
    "http_dial": lambda mesh: mesh.http_dial("echo", timeout=0.1),
    "listen": lambda mesh: mesh.listen(("127.0.0.1", 0)),
    "join": lambda mesh: mesh.join(("127.0.0.1", 1)),
    "attach": lambda mesh: mesh.attach((None, None)),
    "close": lambda mesh: mesh.close(),
    "serve_forever": lambda mesh: mesh.serve_forever(),
    "service_map.watch": lambda mesh: mesh.service_map.watch(),
    "service_map.wait_for": lambda mesh: mesh.service_map.wait_for("echo", 0.1),
    "route_map.watch": lambda mesh: mesh.route_map.watch(),
}


@pytest.mark.parametrize("call", MESH_CALLS)
def test_a_node(bench: Bench, call: str) -> None:
    one, other = bench.node(), bench.node()
    bench.connect(one, other)
    bench.echo(other)
    with one.dial("echo", timeout=DEADLINE) as stream:
        error = elsewhere(MESH_CALLS[call], one)
        assert isinstance(error, WrongThreadError), error
        assert "thread" in str(error)
        assert not one.closed
        assert (len(one.links()), len(one.services()), stream.fileno() >= 0) == (1, 1, True)
        echo_once(stream)
    check_echo(one)


STREAM_CALLS: dict[str, Callable[[Any], Any]] = {
    "recv": lambda stream: stream.recv(1),
    "recv of buffered data": lambda stream: stream.recv(1),
    "recv_into": lambda stream: stream.recv_into(bytearray(1)),
    "send": lambda stream: stream.send(b"x"),
    "sendall": lambda stream: stream.sendall(b"x" * 100_000),
    "sendmsg": lambda stream: stream.sendmsg([b"x"]),
    "shutdown": lambda stream: stream.shutdown(1),
    "close": lambda stream: stream.close(),
    "abort": lambda stream: stream.abort(),
    "fileno": lambda stream: stream.fileno(),
    "file": lambda stream: stream.makefile("rb").read(1),
}


@pytest.mark.parametrize("call", STREAM_CALLS)
def test_a_stream(bench: Bench, call: str) -> None:
    one, other = bench.node(), bench.node()
    bench.connect(one, other)
    bench.echo(other)
    stream = one.dial("echo", timeout=DEADLINE)
    if "buffered" in call:
        stream.sendall(b"data")
        gevent.idle()
        assert stream.buffered == 4
    error = elsewhere(STREAM_CALLS[call], stream)
    assert isinstance(error, WrongThreadError), error
    if "buffered" in call:
        assert stream.recv(10) == b"data"
    echo_once(stream)
    stream.close()


LISTENER_CALLS: dict[str, Callable[[Any], Any]] = {
    "accept": lambda listener: listener.accept(),
    "accept_nowait": lambda listener: listener.accept_nowait(),
    "close": lambda listener: listener.close(),
    "fileno": lambda listener: listener.fileno(),
}


@pytest.mark.parametrize("call", LISTENER_CALLS)
def test_a_listener(bench: Bench, call: str) -> None:
    one, other = bench.node(), bench.node()
    bench.connect(one, other)
    listener = other.bind("svc")
    stream = one.dial("svc", timeout=DEADLINE)
    error = elsewhere(LISTENER_CALLS[call], listener)
    assert isinstance(error, WrongThreadError), error
    accepted, _ = listener.accept()
    stream.sendall(b"x")
    assert accepted.recv(1) == b"x"


LINK_CALLS: dict[str, Callable[[Bench], Any]] = {
    "link.close": lambda bench: bench.nodes[0].links()[0].close(),
    "link_listener.close": lambda bench: bench.nodes[0]._node.link_listeners[0].close(),  # type: ignore[union-attr]
    "peering.close": lambda bench: bench.nodes[0]._node.peerings[0].close(),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("call", LINK_CALLS)
def test_links(bench: Bench, call: str) -> None:
    one, other = bench.node(rejoin_min=60, rejoin_max=60), bench.node()
    bench.connect(one, other)
    one.listen(("127.0.0.1", 0))
    one.join(("127.0.0.1", 1))
    error = elsewhere(LINK_CALLS[call], bench)
    assert isinstance(error, WrongThreadError), error
    bench.echo(other)
    check_echo(one)


def test_a_node_for_each_thread() -> None:
    """What the error message advises: a node of its own, linked to the others over a socket."""
    source = """
import threading
import gevent
from astranet_gevent import AstraNet

def run():
    with AstraNet(join=[address]) as mesh:
        stream = mesh.dial("svc", timeout=10)
        stream.sendall(b"hello")
        stream.close()

with AstraNet() as server:
    address = server.listen(("127.0.0.1", 0)).address
    listener = server.bind("svc")
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        stream, _ = listener.accept()
        print(stream.recv(5).decode(), repr(stream.recv(5)))
    while any(thread.is_alive() for thread in threads):
        # A closing node waits until its peer has read everything, so this one has to go on.
        gevent.sleep(0.01)
"""
    assert check_script(source) == "hello b''\n" * 3


def test_reading_what_a_node_knows(bench: Bench) -> None:
    """Values may be read from anywhere: nothing is changed by that."""
    mesh = bench.node()
    mesh.bind("svc:1")
    assert elsewhere(lambda: (mesh.node_id, mesh.services(), mesh.routes(), repr(mesh))) == (
        mesh.node_id,
        mesh.services(),
        [],
        repr(mesh),
    )


def test_closed_wins(bench: Bench) -> None:
    mesh = bench.node()
    mesh.close()
    with pytest.raises(StreamClosedError):
        mesh.bind("x")


PATCHED = """
import sys
if sys.argv[1] == "before":
    import astranet_gevent
from gevent import monkey
monkey.patch_all()
import threading, time
import gevent, gevent.threadpool
from astranet_gevent import AstraNet, WrongThreadError
from astranet_gevent.server import StreamServer

def echo(stream, address):
    while data := stream.recv(65536):
        stream.sendall(data)

with AstraNet() as server, AstraNet() as client:
    client.join(server.listen(("127.0.0.1", 0)).address)
    StreamServer(server.bind("echo"), echo).start()
    # A node, its streams and listeners are used from many greenlets, which are threads to a program that gevent has patched.
    done = []

    def talk():
        with client.dial("echo", timeout=10) as stream:
            stream.sendall(b"x" * 100000)
            size = 0
            while size < 100000:
                size += len(stream.recv(65536))
            done.append(size)

    threads = [threading.Thread(target=talk) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [100000] * 10, done

    def elsewhere():
        try:
            client.dial("echo")
        except WrongThreadError:
            return "done"

    print(gevent.get_hub().threadpool.apply(elsewhere))
"""


@pytest.mark.parametrize("imported", ["before", "after"])
def test_in_a_program_that_gevent_has_patched(imported: str) -> None:
    """Whichever came first: greenlets are not threads, and real threads are still told apart."""
    assert check_script(PATCHED, imported) == "done\n"
