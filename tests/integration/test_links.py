"""Links: listen, join, attach and close, over everything that bytes can travel on."""

from __future__ import annotations

import errno
import math
import os
import socket as stdlib_socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.fileobject import FileObject
from wire.peer import DATA, DIAL, GOODBYE, SYN, SYN_ACK, WND_SIZE, Frame, RawPeer, RawStream

from astranet_gevent import AstraNet, Config, Link, Role, Stream
from astranet_gevent.errors import (
    ConfigError,
    LinkLostError,
    LocalProtocolError,
    PeeringTimeout,
    RemoteProtocolError,
    ServiceNotFoundError,
    StreamClosedError,
)
from astranet_gevent.testing import memory_pair

from .tools import (
    DEADLINE,
    OWN_KIND,
    Bench,
    check_echo,
    deadline,
    echo_once,
    free_port,
    pattern,
    receive_exactly,
    receive_until_error,
    tcp_pair,
)

Eventually = Callable[..., None]


# -- listen and join


@pytest.mark.parametrize("kind", ["ipv4", "ipv6", "unix"])
def test_listen_and_join(bench: Bench, tmp_path: Path, eventually: Eventually, kind: str) -> None:
    address = {"ipv4": ("127.0.0.1", 0), "ipv6": ("::1", 0), "unix": f"unix:{tmp_path}/mesh.sock"}[kind]
    server, client = bench.node(), bench.node()
    listener = server.listen(address)
    if kind == "unix":
        assert listener.address == address
    else:
        assert listener.address[0] == address[0]
        assert listener.address[1] > 0
    peering = client.join(listener.address)
    peering.wait_ready(DEADLINE)
    assert peering.ready
    assert peering.node_id == server.node_id
    assert [link.peer_id for link in client.links()] == [server.node_id]
    eventually(lambda: [link.peer_id for link in server.links()] == [client.node_id], "the link at the other end")
    bench.echo(server)
    check_echo(client)
    bench.echo(client, "back")
    check_echo(server, "back")
    link = server.links()[0]
    client.close()
    assert link.wait(DEADLINE)
    assert server.links() == []


def test_addresses_of_a_link(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(), bench.node()
    listener = server.listen(("::1", 0))
    client.join(listener.address).wait_ready(DEADLINE)
    eventually(lambda: len(server.links()) == 1 and server.links()[0].state == "ready", "the link")
    assert client.links()[0].remote_address == f"[::1]:{listener.address[1]}"
    assert client.links()[0].local_address == server.links()[0].remote_address


@pytest.mark.parametrize(("network", "host"), [("tcp", "0.0.0.0"), ("tcp4", "0.0.0.0"), ("tcp6", "::")])
def test_listen_as_in_the_original(bench: Bench, network: str, host: str) -> None:
    server, client = bench.node(), bench.node()
    listener = server.listen(network, ":0")
    assert listener.address[0] == host
    client.join(network, f"{'[::1]' if host == '::' else '127.0.0.1'}:{listener.address[1]}").wait_ready(DEADLINE)


def test_listen_and_join_from_the_configuration(bench: Bench, tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/a"
    server = bench.node(listen=[path])
    client = bench.node(config=Config(join=(path,)))  # type: ignore[arg-type]
    client.route_map.wait_for(server.node_id, DEADLINE)


def test_a_port_that_is_taken(bench: Bench) -> None:
    first, second = bench.node(), bench.node()
    listener = first.listen(("127.0.0.1", 0))
    with pytest.raises(OSError) as caught:
        second.listen(listener.address)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_node_that_cannot_listen_does_not_start(bench: Bench) -> None:
    taken = bench.node().listen(("127.0.0.1", 0)).address
    mesh = AstraNet(listen=[("127.0.0.1", 0), taken])
    with pytest.raises(OSError) as caught:
        mesh.start()
    assert caught.value.errno == errno.EADDRINUSE
    assert mesh.closed


def test_closing_a_listener_leaves_its_links(bench: Bench) -> None:
    server, client = bench.node(), bench.node()
    listener = server.listen(("127.0.0.1", 0))
    client.join(listener.address).wait_ready(DEADLINE)
    listener.close()
    listener.close()
    bench.echo(server)
    check_echo(client)
    with pytest.raises(ConnectionRefusedError), socket.socket() as sock:
        sock.connect(listener.address)


# -- unix sockets


def test_the_file_goes_with_the_listener(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "mesh.sock"
    mesh = bench.node()
    listener = mesh.listen(f"unix:{path}")
    assert path.is_socket()
    listener.close()
    assert not path.exists()
    mesh.listen(f"unix:{path}")
    assert path.is_socket()
    mesh.close()
    assert not path.exists()


def test_a_stale_file_is_replaced(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "mesh.sock"
    with stdlib_socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    server, client = bench.node(), bench.node()
    server.listen(f"unix:{path}")
    client.join(f"unix:{path}").wait_ready(DEADLINE)


def test_a_living_listener_is_not_replaced(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "mesh.sock"
    first, second, client = bench.node(), bench.node(), bench.node()
    first.listen(f"unix:{path}")
    with pytest.raises(OSError) as caught:
        second.listen(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    peering = client.join(f"unix:{path}")
    peering.wait_ready(DEADLINE)
    assert peering.node_id == first.node_id


def test_a_file_that_is_no_socket_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError) as caught:
        bench.node().listen(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    assert path.read_text() == "data"


def test_a_file_of_somebody_else_is_not_removed(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "mesh.sock"
    first, second, client = bench.node(), bench.node(), bench.node()
    old = first.listen(f"unix:{path}")
    path.unlink()
    second.listen(f"unix:{path}")
    old.close()
    peering = client.join(f"unix:{path}")
    peering.wait_ready(DEADLINE)
    assert peering.node_id == second.node_id


def test_a_folder_that_is_not_there(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bench.node().listen(f"unix:{tmp_path}/none/mesh.sock")


# -- attach


class SocketLike:
    """As little of a socket as attach() asks for."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv_into(self, view: memoryview) -> int:
        return self._sock.recv_into(view)

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)

    def close(self) -> None:
        # What waits in recv_into has to wake: closing a gevent socket does that.
        self._sock.close()


class FileLike:
    """As little of a file as attach() asks for."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, size: int) -> bytes:
        return self._sock.recv(size)

    def write(self, data: Any) -> None:
        self._sock.sendall(data)

    def close(self) -> None:
        self._sock.close()


def _pipes(buffering: int | None) -> tuple[Any, Any]:
    one_read, other_write = os.pipe()
    other_read, one_write = os.pipe()
    options = {} if buffering is None else {"buffering": buffering}
    one = (FileObject(one_read, "rb", **options), FileObject(one_write, "wb", **options))
    other = (FileObject(other_read, "rb", **options), FileObject(other_write, "wb", **options))
    return one, other


def _wrapped(wrap: Callable[[socket.socket], Any]) -> tuple[Any, Any]:
    one, other = socket.socketpair()
    return wrap(one), wrap(other)


def _makefile(sock: socket.socket) -> Any:
    file = sock.makefile("rwb", buffering=0)
    sock.close()
    return file


CONNECTIONS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gevent socketpair": socket.socketpair,
    "stdlib socketpair": stdlib_socket.socketpair,
    "tcp": tcp_pair,
    "tcp over ipv6": lambda: tcp_pair("::1"),
    "memory": memory_pair,
    "small memory": lambda: memory_pair(100),
    "socket-like": lambda: _wrapped(SocketLike),
    "file-like": lambda: _wrapped(FileLike),
    "unbuffered pipes": lambda: _pipes(0),
    "buffered pipes": lambda: _pipes(None),
    "makefile": lambda: _wrapped(_makefile),
}


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_attach(bench: Bench, kind: str) -> None:
    one, other = CONNECTIONS[kind]()
    server, client = bench.node(), bench.node()
    links = server.attach(one), client.attach(other)
    for link in links:
        link.wait_ready(DEADLINE)
    assert (links[0].peer_id, links[1].peer_id) == (client.node_id, server.node_id)
    bench.echo(server)
    check_echo(client)
    assert not links[0].wait(0)
    with deadline():
        links[1].close()
        assert links[0].wait()
    assert (server.links(), client.links()) == ([], [])
    assert links[0].error is None or isinstance(links[0].error, OSError)


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_attached_and_closed_at_once(bench: Bench, kind: str) -> None:
    """What was attached is closed, whether the handshake has begun or not."""
    one, other = CONNECTIONS[kind]()
    mesh = bench.node()
    mesh.attach(one).close(0)
    link = mesh.attach(other)
    with deadline():
        link.wait()


def test_attach_takes_the_socket_over(bench: Bench) -> None:
    one, other = stdlib_socket.socketpair()
    bench.node().attach(one)
    assert one.fileno() == -1
    # What its former owner does with it does not matter any more.
    one.close()
    bench.node().attach(other).wait_ready(DEADLINE)


def test_attach_a_stream_of_another_mesh(bench: Bench) -> None:
    """A mesh over a mesh: the outer stream is the inner link, and inner streams have the outer one's backpressure."""
    outer_server, outer_client = bench.node(), bench.node()
    bench.connect(outer_server, outer_client)
    tunnel = outer_server.bind("tunnel")
    dialled = outer_client.dial("tunnel", timeout=DEADLINE)
    accepted, _ = tunnel.accept()
    inner_server, inner_client = bench.node(), bench.node()
    inner_link = inner_server.attach(accepted)
    inner_client.attach(dialled).wait_ready(DEADLINE)
    bench.echo(inner_server)
    check_echo(inner_client, size=1_000_000)
    outer_client.close()
    assert inner_link.wait(DEADLINE)


@pytest.mark.parametrize("thing", [None, 5, "text", object(), (1, 2, 3)])
def test_what_cannot_be_attached(bench: Bench, thing: Any) -> None:
    mesh = bench.node()
    with pytest.raises(ConfigError, match="cannot attach"):
        mesh.attach(thing)
    assert mesh.links() == []


def test_a_datagram_socket_cannot_be_attached(bench: Bench) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ConfigError, match="SOCK_STREAM"):
        bench.node().attach(sock)


# -- handshake


def test_a_peer_that_says_nothing(bench: Bench) -> None:
    mesh = bench.node(handshake_timeout=0.2)
    peer, link = bench.silent(mesh)
    with pytest.raises(PeeringTimeout):
        link.wait_ready(0.05)
    with pytest.raises(RemoteProtocolError, match=r"handshake_timeout"):
        link.wait_ready(DEADLINE)
    assert [frame.local for frame in peer.wait_end()] == [mesh.node_id]
    assert mesh.links() == []


def test_a_peer_that_talks_but_does_not_shake_hands(bench: Bench) -> None:
    mesh = bench.node(handshake_timeout=0.3)
    peer, link = bench.silent(mesh)
    peer.send(Frame(DATA, payload=b"x"))
    with pytest.raises(RemoteProtocolError, match=r"handshake_timeout"):
        link.wait_ready(DEADLINE)
    peer.wait_end()


def test_a_peer_that_is_something_else(bench: Bench) -> None:
    """A web server's first words are no frame: their length field is beyond every limit."""
    mesh = bench.node()
    peer, link = bench.silent(mesh)
    peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    with pytest.raises(RemoteProtocolError):
        link.wait_ready(DEADLINE)
    peer.wait_end()


def test_a_peer_that_hangs_up(bench: Bench) -> None:
    peer, link = bench.silent(bench.node())
    peer.close()
    with pytest.raises(LinkLostError):
        link.wait_ready(DEADLINE)
    assert link.wait(0)


# -- loopback


def test_loopback(bench: Bench) -> None:
    mesh = bench.node(loopback=True)
    listener = bench.echo(mesh)
    check_echo(mesh)
    check_echo(mesh, (mesh.node_id, listener.port))
    assert mesh.links() == []
    assert mesh.routes() == []


def test_a_variant_with_loopback(bench: Bench) -> None:
    with AstraNet().with_loopback() as mesh:
        bench.echo(mesh)
        check_echo(mesh)


def test_without_loopback_a_node_does_not_dial_itself(bench: Bench) -> None:
    mesh = bench.node()
    bench.echo(mesh)
    with pytest.raises(ServiceNotFoundError):
        mesh.dial("echo", timeout=0.05)


# -- close


def test_bytes_written_before_close_arrive(bench: Bench, tmp_path: Path) -> None:
    server, client = bench.node(), bench.node()
    client.join(server.listen(f"unix:{tmp_path}/a").address).wait_ready(DEADLINE)
    listener = server.bind("sink")
    data = pattern(60_000)
    for finished in (False, True):
        stream = client.dial("sink", timeout=DEADLINE)
        stream.sendall(data)
        if finished:
            stream.close()
    client.close()
    open_stream, _ = listener.accept()
    closed_stream, _ = listener.accept()
    received, error = receive_until_error(open_stream)
    assert received == data
    assert error.errno == errno.ECONNRESET
    assert receive_exactly(closed_stream, len(data)) == data
    assert closed_stream.recv(1) == b""


def test_much_that_was_written_before_close_arrives(bench: Bench) -> None:
    """More than the kernel holds: close() waits until the peer has taken it."""
    server, client = bench.node(), bench.node()
    cable = bench.connect(client, server, rate=8_000_000)
    listener = server.bind("sink")
    data = pattern(60_000)
    for _ in range(40):
        stream = client.dial("sink", timeout=DEADLINE)
        stream.sendall(data)
        stream.close()
    client.close()
    for _ in range(40):
        stream, _ = listener.accept()
        assert receive_exactly(stream, len(data)) == data
        assert stream.recv(1) == b""
        stream.close()
    assert cable.links[1].wait(DEADLINE)


def _compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_answers_go_while_others_are_still_being_run(bench: Bench) -> None:
    """The peer can work on them meanwhile; the parts of one answer go together."""
    mesh = bench.node()
    listener = mesh.bind("svc:5000")
    peer, _ = bench.raw(mesh)
    seen: list[list[bytes]] = []

    def answer(stream: Any) -> None:
        data = stream.recv(10)
        # Both ends are in this process: what has been sent is there to be read.
        seen.append([frame.payload for frame in peer.pending()])
        stream.sendall(data.upper())
        # Longer than answers are kept back.
        _compute(5e-3)
        stream.sendall(data)

    theirs = [peer.dial(5000, 6000 + number) for number in range(4)]
    streams = [listener.accept()[0] for _ in theirs]
    tasks = [bench.spawn(answer, stream) for stream in streams]
    gevent.idle()
    peer.pending()
    peer.send(*(stream.frame(DATA, b"abcd"[number : number + 1]) for number, stream in enumerate(theirs)))
    for task in tasks:
        task.get(timeout=DEADLINE)
    assert seen == [[], [b"A", b"a"], [b"B", b"b"], [b"C", b"c"]]
    assert [peer.wait_for(DATA).payload for _ in "Dd"] == [b"D", b"d"]


def test_close_after_much_computing(bench: Bench) -> None:
    """What was written is sent early, while others still have to be run: close() must notice that there is nothing left to wait for."""
    mesh = bench.node()
    listener = mesh.bind("svc:5000")
    peer, link = bench.raw(mesh)
    theirs = peer.dial(5000)
    stream, _ = listener.accept()

    def compute_and_close() -> None:
        assert stream.recv(10) == b"go"
        stream.sendall(b"last words")
        _compute(0.01)
        link.close(timeout=600)

    closing = bench.spawn(compute_and_close)
    gevent.idle()
    theirs.send(DATA, b"go")
    assert peer.wait_for(DATA).payload == b"last words"
    peer.wait_end()
    peer.close()
    closing.get(timeout=DEADLINE)
    assert link.state == "closed"


def test_a_drained_link_ends_after_much_computing(bench: Bench) -> None:
    """As above, for the end that comes with the last stream after both sides have said GOODBYE."""
    mesh = bench.node()
    listener = mesh.bind("svc:5000")
    peer, link = bench.raw(mesh, payload=OWN_KIND)
    theirs = RawStream(peer, 5000, 6000)
    theirs.send(DIAL)
    stream, _ = listener.accept()
    peer.send(Frame(GOODBYE))
    peer.wait_for(GOODBYE)

    def close_and_compute() -> None:
        assert stream.recv(10) == b"go"
        stream.close()
        _compute(0.01)

    closing = bench.spawn(close_and_compute)
    gevent.idle()
    theirs.send(DATA, b"go")
    peer.wait_end()
    closing.get(timeout=DEADLINE)
    assert link.state == "closed"
    assert link.error is None


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_close_that_is_interrupted(bench: Bench, how: str) -> None:
    """Who gives up waiting for the peer has closed the link all the same."""
    mesh = bench.node()
    peer, link = bench.raw(mesh)
    interrupted = gevent.Timeout()

    def close() -> None:
        with pytest.raises(gevent.Timeout), interrupted:
            link.close(600)

    closing = bench.spawn(close)
    # The peer reads the end of what was sent, and does not end its own direction.
    peer.wait_end()
    assert link.state == "draining"
    if how == "kill":
        closing.kill(timeout=DEADLINE)
    else:
        gevent.kill(closing, interrupted)
        closing.get(timeout=DEADLINE)
    assert link.state == "closed"
    assert mesh.links() == []


def test_close_does_not_wait_for_ever(bench: Bench) -> None:
    mesh = bench.node()
    peer, _ = bench.raw(mesh)
    peer.announce("sink", 5000)
    for _ in range(20):
        dial = bench.spawn(mesh.dial, "sink", DEADLINE)
        frame = peer.wait_for(DIAL)
        peer.send(peer.frame(SYN, frame.lport, frame.rport), peer.frame(SYN_ACK, frame.lport, frame.rport))
        dial.get(timeout=DEADLINE).sendall(bytes(65536))
    with deadline(2):
        mesh.close(0.1)
    assert mesh.links() == []


def test_a_peer_that_does_not_answer_uses_up_nobody_else_s_time(bench: Bench) -> None:
    """Every link has the whole timeout of close() for what was written on it."""
    mesh, dead, slow = bench.node(), bench.node(), bench.node()
    cable = bench.connect(mesh, dead)
    bench.connect(mesh, slow, rate=1_000_000)
    streams = {}
    for name, other in (("dead", dead), ("slow", slow)):
        listener = other.bind(name)
        streams[name] = mesh.dial(name, timeout=DEADLINE), listener.accept()[0]
    cable.freeze()
    data = pattern(60_000)
    for dialled, _ in streams.values():
        dialled.sendall(data)
        dialled.close()
    with deadline(3):
        mesh.close(0.5)
    accepted = streams["slow"][1]
    assert receive_exactly(accepted, len(data)) == data
    assert accepted.recv(1) == b""


def test_streams_end_with_their_link(bench: Bench) -> None:
    server, client = bench.node(), bench.node()
    cable = bench.connect(client, server)
    listener = server.bind("svc")
    dialled = client.dial("svc", timeout=DEADLINE)
    accepted, _ = listener.accept()
    waiting = [gevent.spawn(receive_until_error, stream) for stream in (dialled, accepted)]
    gevent.idle()
    cable.links[0].close()
    for greenlet in waiting:
        data, error = greenlet.get(timeout=DEADLINE)
        assert data == b""
        assert isinstance(error, LinkLostError)
        assert error.errno == errno.ECONNRESET
    for stream in (dialled, accepted):
        with pytest.raises(BrokenPipeError):
            stream.sendall(b"x")
    assert (client.links(), server.links()) == ([], [])


def test_life_of_a_node(bench: Bench) -> None:
    mesh = AstraNet()
    assert mesh.closed
    for use in (lambda: mesh.node_id, mesh.links, lambda: mesh.bind("x"), lambda: mesh.dial("x"), mesh.services):
        with pytest.raises(LocalProtocolError, match="not started"):
            use()
    mesh.close()
    assert mesh.start() is mesh
    assert not mesh.closed
    with pytest.raises(LocalProtocolError, match="started before"):
        mesh.start()
    listener = mesh.bind("x")
    mesh.close()
    mesh.close()
    assert mesh.closed
    assert listener.closed
    for use in (lambda: mesh.bind("y"), lambda: mesh.dial("x"), lambda: mesh.listen(("127.0.0.1", 0)), lambda: mesh.join(("h", 1))):
        with pytest.raises(StreamClosedError):
            use()


def test_close_wakes_everybody(bench: Bench) -> None:
    server, client = bench.node(), bench.node()
    bench.connect(client, server)
    listener = server.bind("svc")
    stream = client.dial("svc", timeout=DEADLINE)

    def outcome(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:
            return error.errno

    tasks = [
        bench.spawn(outcome, stream.recv, 1),
        bench.spawn(outcome, client.dial, "nobody", DEADLINE),
        bench.spawn(outcome, client.service_map.wait_for, "nobody", DEADLINE),
        bench.spawn(outcome, client.links()[0].wait, DEADLINE),
        bench.spawn(outcome, client.serve_forever),
    ]
    accepting = bench.spawn(lambda: [listener.accept(), outcome(listener.accept)][1])
    gevent.idle()
    client.close()
    assert [task.get(timeout=DEADLINE) for task in tasks] == [errno.ECONNRESET, errno.EBADF, errno.EBADF, True, None]
    server.close()
    assert accepting.get(timeout=DEADLINE) == errno.EBADF


def test_serve_forever_closes_the_node_on_an_exception(bench: Bench) -> None:
    mesh = bench.node()
    serving = gevent.spawn(mesh.serve_forever)
    gevent.idle()
    serving.kill()
    assert mesh.closed


def test_a_port_is_free_again_after_close(bench: Bench) -> None:
    port = free_port()
    for _ in range(3):
        server, client = bench.node(listen=[("127.0.0.1", port)]), bench.node(join=[("127.0.0.1", port)])
        bench.echo(server)
        with client.dial("echo", timeout=DEADLINE) as stream:
            echo_once(stream)
            server.close()
        client.close()


# -- what waits where


def test_what_has_been_sent_is_let_go_of(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(), bench.node()
    listener = server.bind("sink")
    ours, theirs = socket.socketpair()
    # Less than a frame: what is sent has to wait.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    server.attach(theirs)
    client.attach(ours).wait_ready(DEADLINE)
    data = bytes(1_000_000)
    before = sys.getrefcount(data)
    with client.dial("sink", DEADLINE) as stream:
        accepted, _ = listener.accept()
        reader = bench.spawn(receive_until_end, accepted)
        stream.sendall(data)
    assert reader.get(timeout=DEADLINE) == len(data)
    accepted.close()
    del stream
    eventually(lambda: sys.getrefcount(data) == before, "nothing refers to the data that has been sent")


def receive_until_end(stream: Any) -> int:
    return sum(len(part) for part in iter(lambda: stream.recv(65536), b""))


def test_a_link_knows_its_round_trip(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(), bench.node()
    bench.connect(server, client, delay=0.02)
    (link,) = client.links()
    eventually(lambda: link.round_trip > 0, "the first PING has been answered")
    assert 0.04 <= link.round_trip < 1


def test_answers_are_not_taken_for_those_of_later_questions(bench: Bench, eventually: Eventually) -> None:
    server, client = bench.node(), bench.node()
    bench.connect(server, client, delay=0.02)
    (link,) = client.links()
    eventually(lambda: link.round_trip > 0, "the first PING has been answered")
    for _ in range(20):
        # Half of a round trip apart: an answer to one comes soon after the next has been sent.
        link.send_ping()
        assert not link.ended.wait(0.02)
    eventually(lambda: link._pings == 0, "all have been answered")
    assert link.round_trip >= 0.04


def dialled_over_tcp(bench: Bench) -> tuple[Link, RawPeer, Stream, RawStream]:
    """A node's link to a raw peer of our own kind, that peer, and both ends of a stream that the node has dialled."""
    node = bench.node()
    ours, theirs = tcp_pair()
    link = node.attach(ours)
    peer = bench.adopt(theirs)
    peer.handshake(OWN_KIND)
    peer.announce("sink", 7)
    node.service_map.wait_for("sink", DEADLINE)
    return link, peer, *dialled_from(bench, node, peer)


def dialled_from(bench: Bench, node: AstraNet, peer: RawPeer) -> tuple[Stream, RawStream]:
    """Both ends of another stream."""
    dialling = bench.spawn(node.dial, "sink", DEADLINE)
    raw = peer.receive_dial()
    raw.send(SYN)
    return dialling.get(timeout=DEADLINE), raw


def test_a_fault_while_reading_ends_the_link_and_wakes_who_waits(bench: Bench, hub_errors: list[Any], monkeypatch: Any) -> None:
    link, peer, stream, _ = dialled_over_tcp(bench)
    reader = bench.spawn(receive_until_error, stream)
    peer.fence()

    def fail(*args: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(link._owner, "receive", fail)
    peer.announce("other", 8)
    reader.get(timeout=DEADLINE)
    assert link.ended.is_set()
    assert [kind for _, kind, _ in hub_errors] == [ZeroDivisionError]
    hub_errors.clear()


def test_a_node_of_the_original_is_not_asked(bench: Bench) -> None:
    node = bench.node()
    peer, link = bench.raw(node)
    peer.assert_quiet()
    assert math.isnan(link.round_trip)


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_streams_of_a_short_path_share_a_budget(bench: Bench, delay: float) -> None:
    """Over a long path the windows grow as far as they may, over a short one together no further than fills it."""
    server, client = bench.node(), bench.node()
    bench.connect(server, client, delay=delay)
    listener = server.bind("sink")
    streams, accepted = [], []
    for _ in range(6):
        streams.append(client.dial("sink", DEADLINE))
        accepted.append(listener.accept()[0])
    data = bytes(16_000_000)
    senders = [bench.spawn(stream.sendall, data) for stream in streams]
    readers = [bench.spawn(receive_until_end, sink) for sink in accepted]
    gevent.joinall(senders, timeout=60, raise_error=True)
    granted = sorted(sink.receive_window - 65536 for sink in accepted)
    if delay:
        # How many times they have doubled by now depends on who was fast.
        assert granted[0] > 512 * 1024
        assert sum(granted) > 4 * 1024 * 1024
    else:
        assert sum(granted) <= 2 * 1024 * 1024 + 6 * (512 * 1024 - 65536)
        assert granted[-1] >= 512 * 1024 - 65536
    gevent.killall([*senders, *readers])


MIB = 1024 * 1024
HEADER_SIZE = 29


def window_after(bench: Bench, pieces: list[int], pause: Callable[[], object]) -> int:
    """What the window has grown to when pieces of so many bytes have been read over 100 ms, with a pause after each."""
    server, client = bench.node(), bench.node()
    cable = bench.connect(server, client, delay=0.05)
    for pipe in cable._pipes:
        # More than any window: only that is to hold the sender back.
        pipe._capacity = 64 * MIB
    listener = server.bind("sink")
    stream = client.dial("sink", DEADLINE)
    sink, _ = listener.accept()
    sender = bench.spawn(stream.sendall, bytes(sum(pieces)))
    for piece in pieces:
        receive_exactly(sink, piece)
        pause()
    sender.get(timeout=DEADLINE)
    window = sink.receive_window
    sink.close()
    assert not any(link._large for link in server.links())
    return window


def test_the_window_of_who_reads_quickly_grows_beyond_4_mib(bench: Bench) -> None:
    assert window_after(bench, [64 * MIB], lambda: None) == 8 * MIB


def test_the_window_of_who_reads_slowly_does_not(bench: Bench, hold: Callable[[float], bool]) -> None:
    """Half of a window takes it more than a round trip, and the sender never has to wait for anything else."""
    assert window_after(bench, [MIB // 2] * 24, lambda: hold(0.12)) == 4 * MIB


def test_a_round_trip_that_was_long_for_once_is_measured_again(bench: Bench) -> None:
    """Behind a relay nothing else asks for it: with the first answer late, whoever reads at all would seem to read quickly."""
    server, router, client = bench.node(), bench.node(role=Role.ROUTER), bench.node()
    bench.connect(server, router)
    bench.connect(client, router)
    listener = server.bind("sink")
    stream = client.dial("sink", DEADLINE)
    sink, _ = listener.accept()
    (link,) = server.links()
    bench.eventually(lambda: link.round_trip > 0, "the first PING has been answered")
    link.round_trip = 10.0
    sender = bench.spawn(stream.sendall, bytes(64 * MIB))
    receive_exactly(sink, 64 * MIB)
    sender.get(timeout=DEADLINE)
    assert sink.receive_window == 4 * MIB
    assert link.round_trip < 1
    sink.close()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_is_left_of_a_large_message_is_not_a_small_one(bench: Bench) -> None:
    """A length and a body of 64 KiB are a full frame and one of four bytes."""
    server, client = bench.node(), bench.node()
    client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(DEADLINE)
    listener = server.bind("sink")
    stream = client.dial("sink", DEADLINE)
    sink, _ = listener.accept()
    ((link,), most) = server.links(), int(Path("/proc/sys/net/core/rmem_max").read_text())

    def send_messages() -> None:
        while True:
            stream.sendall(bytes(65_536 + 4))

    def drain() -> None:
        while sink.recv(MIB):
            pass

    greenlets = [bench.spawn(send_messages), bench.spawn(drain)]
    bench.eventually(
        lambda: link._conn._raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * min(2 * MIB, most), "it counts as bulk that is alone"
    )
    gevent.killall(greenlets)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_relay_with_little_room_has_no_more_in_the_system(bench: Bench) -> None:
    """All that is under way when it asks a sender to pause still comes."""
    server, client = bench.node(relay_bytes=MIB), bench.node()
    client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(DEADLINE)
    listener = server.bind("sink")
    stream = client.dial("sink", DEADLINE)
    sink, _ = listener.accept()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        # Longer than after the frames of the dial bulk counts as alone.
        sending = bench.spawn(stream.sendall, bytes(8 * MIB))
        receive_exactly(sink, 8 * MIB)
        sending.get(timeout=DEADLINE)
    most = int(Path("/proc/sys/net/core/rmem_max").read_text())
    (link,) = server.links()
    assert link._conn._raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * min(768 * 1024, most)
    sink.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how fast a path is")
@pytest.mark.parametrize(
    ("rate", "is_alone", "unsent"),
    [
        (1000 * MIB, True, 256 * 1024),
        (1000 * MIB, False, 192 * 1024),
        (100 * MIB, True, 100 * MIB // 1000),
        (300 * MIB, False, 300 * MIB // 5000),
        (MIB, True, 64 * 1024),
        (100 * MIB, False, 32 * 1024),
    ],
)
def test_how_much_waits_unsent_in_the_system(bench: Bench, monkeypatch: Any, rate: int, is_alone: bool, unsent: int) -> None:
    """A path within a host that has taken so many bytes in a second during which there always were some."""
    conn = dialled_over_tcp(bench)[0]._conn
    look_at_path(conn, monkeypatch, is_alone, rate, 1_000_000, waiting=1)
    assert conn._raw.getsockopt(socket.IPPROTO_TCP, 25) == unsent
    assert conn.batch_bytes == unsent


def look_at_path(conn: Any, monkeypatch: Any, is_alone: bool, sent: int, microseconds: int, **told: int) -> None:
    """Another look, of which the system says that so much has been sent since the last one, in so long."""
    before = conn._acked, conn._busy_time, conn._rwnd_limited
    if not conn._look_due:
        # After a pause nothing is told from what was sent until then.
        monkeypatch.setattr(type(conn), "_tcp_info", lambda _, size: tcp_info(*before))
        conn.suit_path(time.monotonic(), is_alone)
    limited = before[2] + told.pop("limited", 0)
    monkeypatch.setattr(type(conn), "_tcp_info", lambda _, size: tcp_info(before[0] + sent, before[1] + microseconds, limited, **told))
    conn.suit_path(conn._look_due, is_alone)


def tcp_info(acked: int, busy: int, limited: int, waiting: int = 0, unacked: int = 0) -> bytes:
    """What of Linux's struct tcp_info is looked at, with a congestion window of 10 segments."""
    return struct.pack("=24xI52xI36xQ16xI20xQQ", unacked, 10, acked, waiting, busy, limited)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how fast a path is")
def test_a_process_that_is_busy_does_not_take_its_path_for_a_slow_one(bench: Bench, monkeypatch: Any) -> None:
    """It sends little at a time, so that the path seems slow; but nothing waits when it comes to send more, and nothing holds it back."""
    conn = dialled_over_tcp(bench)[0]._conn
    late: dict[str, int] = {}
    for told, sizes in (
        (late, [32, 32, 32]),
        ({"waiting": 1}, [32]),
        (late, [32, 32, 32]),
        ({"unacked": 10}, [32]),
        (late, [32, 32, 32]),
        ({"limited": 300_000}, [32]),
        (late, [32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 128, 192, 192]),
        ({"waiting": 1}, [192, 192, 192]),
        (late, [192]),
        ({"waiting": 1}, [192, 192, 192, 128, 128, 128, 128, 64, 64, 64, 64, 32, 32]),
    ):
        for size in sizes:
            look_at_path(conn, monkeypatch, False, MIB, 1_000_000, **told)
            assert conn.batch_bytes == size * 1024, (told, sizes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how fast a path is")
def test_few_bytes_and_times_before_a_pause_tell_nothing_of_the_path(bench: Bench, monkeypatch: Any) -> None:
    conn = dialled_over_tcp(bench)[0]._conn
    look_at_path(conn, monkeypatch, False, 50_000, 1_000_000, waiting=1)
    assert conn.batch_bytes == 256 * 1024
    look_at_path(conn, monkeypatch, False, 100_000, 1_000_000, waiting=1)
    assert conn.batch_bytes == 32 * 1024
    monkeypatch.setattr(type(conn), "_tcp_info", lambda _, size: tcp_info(1000 * MIB, 3_000_000, 0))
    conn.suit_path(conn._look_due + 10.0, False)
    assert conn.batch_bytes == 64 * 1024


@pytest.mark.parametrize("kind", ["memory", "tcp"])
def test_a_look_at_an_idle_link_leaves_its_reader_alone(bench: Bench, kind: str) -> None:
    """What is not a socket is read by a greenlet, which waits with a view of the memory that it reads into."""
    server, client = bench.node(), bench.node()
    ours, theirs = memory_pair() if kind == "memory" else tcp_pair()
    server.attach(theirs)
    link = client.attach(ours)
    link.wait_ready(DEADLINE)
    bench.echo(server)
    stream = client.dial("echo", DEADLINE)
    for size in (5, 70_000, 300_000):
        for _ in range(3):
            data = pattern(size)
            writer = bench.spawn(stream.sendall, data)
            assert receive_exactly(stream, size) == data
            writer.get(timeout=DEADLINE)
            for each in (*client.links(), *server.links()):
                each._look()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_system_holds_more_while_bulk_is_alone(bench: Bench) -> None:
    """And little again as soon as there are small messages, which must not wait behind it."""
    server, client = bench.node(), bench.node()
    client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(DEADLINE)
    ((reading,), (sending,)) = (node.links() for node in (server, client))
    bench.echo(server)
    listener = server.bind("sink")
    bulk, talk = client.dial("sink", DEADLINE), client.dial("echo", DEADLINE)
    sink, _ = listener.accept()
    most = int(Path("/proc/sys/net/core/rmem_max").read_text())

    def holds(size: int, alone: bool) -> bool:
        buffer = reading._conn._raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return bool(buffer == 2 * min(size * 1024, most) and sending._conn.bulk_is_alone is alone)

    def send_bulk() -> None:
        while True:
            bulk.sendall(bytes(MIB))

    def drain() -> None:
        while sink.recv(MIB):
            pass

    def chat() -> None:
        while True:
            echo_once(talk)
            gevent.sleep(0.01)

    greenlets = [bench.spawn(send_bulk), bench.spawn(drain)]
    for _ in range(2):
        bench.eventually(lambda: holds(2048, alone=True), "bulk that is alone has large buffers")
        chatting = bench.spawn(chat)
        bench.eventually(lambda: holds(768, alone=False), "beside small messages they are small")
        chatting.kill()
    gevent.killall(greenlets)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how fast a path is")
def test_less_waits_in_the_system_the_slower_the_path_is(bench: Bench, eventually: Eventually) -> None:
    link, peer, sender, stream = dialled_over_tcp(bench)
    stream.send(WND_SIZE, (2**31 - 1).to_bytes(4, "big"))
    sending = bench.spawn(sender.sendall, bytes(50_000_000))
    conn = link._conn
    assert conn.batch_bytes == 256 * 1024

    reader = bench.spawn(read_slowly, peer, bytearray())
    eventually(lambda: conn.batch_bytes == 64 * 1024, "a slow path gets small batches")
    assert conn._raw.getsockopt(socket.IPPROTO_TCP, 25) == 64 * 1024
    gevent.killall([reader, sending])


def read_slowly(peer: RawPeer, taken: bytearray) -> None:
    # Less at a time than the peer itself would read.
    peer._sock.settimeout(DEADLINE)
    while data := peer._sock.recv(50_000):
        taken += data
        gevent.sleep(0.002)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how fast a path is")
def test_what_is_large_stays_behind_beside_small_messages_on_a_slow_path(bench: Bench, eventually: Eventually) -> None:
    """It comes in smaller frames, and none of them goes into the system for the sole reason that a small one does."""
    link, peer, bulk, stream = dialled_over_tcp(bench)
    talk, _ = dialled_from(bench, bench.nodes[0], peer)
    stream.send(WND_SIZE, (2**31 - 1).to_bytes(4, "big"))
    taken = bytearray()
    reading, sending = bench.spawn(read_slowly, peer, taken), bench.spawn(bulk.sendall, bytes(50_000_000))

    def chat() -> None:
        while True:
            talk.send(b"small")
            gevent.sleep(0.001)

    chatting = bench.spawn(chat)
    eventually(lambda: link.turn_payload == link._conn.batch_bytes == 32 * 1024, "a slow path gets small batches and frames")
    settled = len(taken) + 4 * MIB
    eventually(lambda: len(taken) > settled, "what was queued or sent before that has gone")
    before = len(taken)
    eventually(lambda: len(taken) > before + 2 * MIB, "the frames of the time after that arrive")
    sizes = Counter(size for start, size in payloads_of(taken) if start >= settled)
    # Now and then nothing waits in the system, and then there may be larger ones for a moment.
    assert sizes[32 * 1024] > sum(sizes.values()) - sizes[32 * 1024] - sizes[5], sizes
    # As gevent does when Ctrl-C strikes in the watcher's callback.
    link._conn.stop_writing()
    before = len(taken)
    eventually(lambda: len(taken) > before + 2 * MIB, "the rest goes along with small messages")
    gevent.killall([sending, chatting])
    stayed = []
    while (waiting := link.queue.turn_bytes) > 64 * 1024:
        eventually(lambda left=waiting: link.queue.turn_bytes < left, "another batch is sent")
        waiting = link.queue.turn_bytes
        talk.send(b"small")
        # At once: the loop has not looked whether the system takes more.
        link._flush()
        stayed.append(link.queue.turn_bytes == waiting)
    # But when this process had the core for less than some milliseconds.
    assert stayed.count(True) > len(stayed) // 2, stayed
    eventually(lambda: not link.queue, "the rest is sent")
    reading.kill()


def payloads_of(frames: bytes) -> Iterator[tuple[int, int]]:
    """Where each whole frame begins, and the size of its payload."""
    start = 0
    while start + HEADER_SIZE <= len(frames):
        (size,) = struct.unpack_from(">I", frames, start + HEADER_SIZE - 4)
        yield start, size
        start += HEADER_SIZE + size
