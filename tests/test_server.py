"""gevent's servers over listeners of the mesh, with real streams, real TLS and real WSGI applications."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import socket as stdlib_socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import gevent
import gevent.pywsgi
import gevent.server
import gevent.socket
import pytest
import trustme
from gevent.event import Event
from gevent.pool import Pool

from astranet_gevent import (
    AstraNet,
    AstraNetError,
    Listener,
    LocalProtocolError,
    Stream,
    format_node_id,
)
from astranet_gevent.http import HTTPConnection, HTTPSConnection
from astranet_gevent.server import StreamServer, WSGIServer
from astranet_gevent.tls import wrap_stream

NAME = "site"
LARGE = bytes(range(256)) * 256 * 16
Nodes = tuple[AstraNet, AstraNet]
Start = Callable[..., Any]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A client's node and a server's node with a link between them."""
    with AstraNet() as near, AstraNet() as far:
        left, right = gevent.socket.socketpair()
        far.attach(right)
        near.attach(left).wait_ready(5)
        yield near, far


@pytest.fixture
def start(nodes: Nodes) -> Iterator[Start]:
    """``start(class, …)``: a started server for the service, with the first argument bound."""
    servers = []

    def begin(kind: type[Any], *args: Any, name: str = NAME, **kwargs: Any) -> Any:
        server = kind(nodes[1].bind(name), *args, **kwargs)
        servers.append(server)
        server.start()
        return server

    yield begin
    for server in servers:
        server.stop(timeout=0)


@pytest.fixture
def dial(nodes: Nodes) -> Iterator[Callable[..., Stream]]:
    """``dial()``: a stream to the service, with a time-out, closed at the end of the test."""
    with contextlib.ExitStack() as streams:

        def connect(name: str = NAME) -> Stream:
            stream = streams.enter_context(nodes[0].dial(name))
            stream.settimeout(10)
            return stream

        yield connect


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Certificate, key and authority as the files that gevent's servers take."""
    folder = tmp_path_factory.mktemp("certificates")
    certificate = authority.issue_cert(NAME)
    paths = {name: str(folder / name) for name in ("certfile", "keyfile", "ca_certs")}
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(paths["certfile"], append=True)
    certificate.private_key_pem.write_to_path(paths["keyfile"])
    authority.cert_pem.write_to_path(paths["ca_certs"])
    return paths


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def receive_all(stream: Any) -> bytes:
    parts = []
    while data := stream.recv(65536):
        parts.append(data)
    return b"".join(parts)


def echo(stream: Any, _address: Any) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


class Gate:
    """A handler that counts who is inside and lets go when told."""

    def __init__(self) -> None:
        self.open = Event()
        self.inside = 0
        self.most = 0
        self.done = 0

    def __call__(self, stream: Any, _address: Any) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            self.open.wait()
            stream.sendall(b"done")
            self.done += 1
        finally:
            self.inside -= 1


# -- StreamServer ------------------------------------------------------------------------------


def test_handler_gets_stream_and_address(nodes: Nodes, start: Start, dial: Any) -> None:
    seen = []

    def handle(stream: Any, address: Any) -> None:
        seen.append((stream, address))
        stream.sendall(b"hello")

    server = start(StreamServer, handle)
    client = dial()
    assert receive_all(client) == b"hello"
    stream, address = seen[0]
    assert isinstance(stream, Stream)
    assert address == client.getsockname()
    assert address[0] == nodes[0].node_id
    assert stream.fileno() == -1, "closed when the handler returns"
    assert server.started
    assert server.server_host == NAME
    assert server.server_port == client.getpeername()[1]
    assert isinstance(server, gevent.server.StreamServer)


def test_handler_as_a_method(start: Start, dial: Any) -> None:
    class Shouting(StreamServer):
        def handle(self, stream: Any, address: Any) -> None:
            stream.sendall(stream.recv(100).upper())

    start(Shouting)
    client = dial()
    client.sendall(b"hello")
    assert receive_all(client) == b"HELLO"


@pytest.mark.parametrize("listener", [("127.0.0.1", 0), ":8080", 8080, None, object()])
def test_only_a_listener_will_do(listener: Any) -> None:
    for kind in (StreamServer, WSGIServer):
        with pytest.raises(TypeError, match=r"expected a Listener, as AstraNet.bind\(\)"):
            kind(listener, echo)


def test_a_socket_is_not_a_listener() -> None:
    with gevent.socket.socket() as listening:
        with pytest.raises(TypeError, match="expected a Listener"):
            StreamServer(listening, echo)  # type: ignore[arg-type]
        assert listening.fileno() != -1


def test_backlog_belongs_to_bind(nodes: Nodes) -> None:
    with pytest.raises(TypeError, match="backlog must be None"):
        StreamServer(nodes[1].bind(NAME), echo, backlog=10)


def test_more_streams_than_one_wake_up_takes(nodes: Nodes, dial: Any) -> None:
    listener = nodes[1].bind(NAME)
    waiting = [dial() for _ in range(250)]

    class Small(StreamServer):
        max_accept = 20

    with Small(listener, lambda stream, address: stream.sendall(b"served")) as server:
        server.start()
        for client in waiting:
            assert receive_all(client) == b"served"


@pytest.mark.parametrize("make_spawn", [lambda: 3, lambda: Pool(3)], ids=["int", "Pool"])
def test_pool_limits_and_backlog_waits(make_spawn: Callable[[], Any], start: Start, dial: Any, eventually: Any) -> None:
    gate = Gate()
    start(StreamServer, gate, spawn=make_spawn())
    clients = [dial() for _ in range(20)]
    eventually(lambda: gate.inside == 3, "three handlers")
    gevent.idle()
    assert gate.most == 3
    gate.open.set()
    for client in clients:
        assert receive_all(client) == b"done"
    assert (gate.done, gate.most) == (20, 3)


@pytest.mark.parametrize("spawn_as", ["raw", gevent.spawn_raw, gevent.spawn, "default"])
def test_ways_to_spawn(spawn_as: Any, start: Start, dial: Any) -> None:
    start(StreamServer, echo, spawn=spawn_as)
    for _ in range(3):
        client = dial()
        client.sendall(b"hello")
        client.shutdown(stdlib_socket.SHUT_WR)
        assert receive_all(client) == b"hello"


def test_handler_in_the_hub(start: Start, dial: Any) -> None:
    start(StreamServer, lambda stream, address: stream.sendall(b"quick"), spawn=None)
    assert [receive_all(dial()) for _ in range(3)] == [b"quick"] * 3


def test_handler_that_raises(start: Start, dial: Any, capfd: Any) -> None:
    def handle(stream: Any, _address: Any) -> None:
        stream.recv(4)
        raise RuntimeError("handler went wrong")

    start(StreamServer, handle)
    client = dial()
    client.sendall(b"read")
    assert client.recv(1) == b"", "everything was read: the end, not a reset"
    unread = dial()
    unread.sendall(b"read" + b"never read")
    with pytest.raises(ConnectionResetError):
        unread.recv(1)
    assert capfd.readouterr().err.count("RuntimeError: handler went wrong") == 2


def test_spawn_that_fails(nodes: Nodes, dial: Any, capfd: Any) -> None:
    failures = 3

    def spawn(function: Any, *args: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise MemoryError("no greenlet for you")
        return gevent.spawn(function, *args)

    class Impatient(StreamServer):
        min_delay = 0.001
        max_delay = 0.002

    with Impatient(nodes[1].bind(NAME), echo, spawn=spawn) as server:
        server.start()
        lost = [dial() for _ in range(3)]
        for client in lost:
            assert client.recv(1) == b""
        assert server.delay == server.max_delay
        client = dial()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert server.delay == server.min_delay
    assert capfd.readouterr().err.count("MemoryError: no greenlet") == 3


def test_stop_waits_for_the_pool(start: Start, dial: Any, spawn: Any, eventually: Any) -> None:
    gate = Gate()
    server = start(StreamServer, gate, spawn=2)
    clients = [dial(), dial()]
    left_over = dial()
    eventually(lambda: gate.inside == 2, "two handlers")
    stopping = spawn(server.stop, 10)
    with pytest.raises(ConnectionResetError):
        left_over.recv(1)
    assert not stopping.dead
    gate.open.set()
    stopping.get(timeout=10)
    assert [receive_all(client) for client in clients] == [b"done", b"done"]
    assert not server.started
    assert server.closed
    with pytest.raises((AstraNetError, OSError)):
        dial()


def test_stop_kills_what_does_not_end(start: Start, dial: Any, eventually: Any) -> None:
    gate = Gate()
    server = start(StreamServer, gate, spawn=10)
    client = dial()
    eventually(lambda: gate.inside == 1, "a handler")
    server.stop(timeout=0.01)
    assert gate.inside == 0
    assert client.recv(1) == b""


def test_stop_without_a_pool_leaves_handlers(start: Start, dial: Any, eventually: Any) -> None:
    gate = Gate()
    server = start(StreamServer, gate)
    client = dial()
    eventually(lambda: gate.inside == 1, "a handler")
    server.stop()
    gate.open.set()
    assert receive_all(client) == b"done"


def test_no_second_start(start: Start) -> None:
    server = start(StreamServer, echo)
    server.stop()
    with pytest.raises(LocalProtocolError, match="closed"):
        server.start()


@pytest.mark.parametrize("end", ["server", "listener", "node"])
def test_serve_forever_ends(end: str, nodes: Nodes, spawn: Any, capfd: Any) -> None:
    listener = nodes[1].bind(NAME)
    server = StreamServer(listener, echo, spawn=5)
    serving = spawn(server.serve_forever)
    with nodes[0].dial(NAME) as client:
        client.sendall(b"x")
        client.shutdown(stdlib_socket.SHUT_WR)
        assert receive_all(client) == b"x"
    {"server": server.stop, "listener": listener.close, "node": nodes[1].close}[end]()
    serving.get(timeout=10)
    assert server.closed
    assert listener.closed
    assert capfd.readouterr().err == ""


def test_repr_makes_no_descriptor(nodes: Nodes) -> None:
    server = StreamServer(nodes[1].bind("somebody"), echo)
    before = len(os.listdir("/dev/fd"))
    assert "somebody" in repr(server)
    assert "somebody" in str(server)
    assert len(os.listdir("/dev/fd")) == before
    server.close()
    assert "closed" in repr(server)
    site_server = WSGIServer(nodes[1].bind("somebody"), site)
    assert "its own" in repr(site_server)
    site_server.close()


def test_bound_by_port_only(nodes: Nodes) -> None:
    with StreamServer(nodes[1].bind(":4000"), echo) as server:
        assert server.address == (format_node_id(nodes[1].node_id), 4000)
        server.start()
        with nodes[0].dial((nodes[1].node_id, 4000)) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_nothing_is_left_behind(nodes: Nodes, no_leaks: Any) -> None:
    with StreamServer(nodes[1].bind(NAME), echo, spawn=10) as server:
        server.start()
        for _ in range(100):
            with nodes[0].dial(NAME) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"


# -- TLS ---------------------------------------------------------------------------------------


def test_tls_from_files(start: Start, dial: Any, files: dict[str, Any], trusting: Any) -> None:
    server = start(StreamServer, echo, certfile=files["certfile"], keyfile=files["keyfile"])
    assert server.ssl_enabled
    with wrap_stream(dial(), trusting, server_hostname=NAME) as client:
        client.sendall(b"secret")
        assert client.recv(10) == b"secret"
        assert client.version() == "TLSv1.3"


def test_tls_client_certificates(start: Start, dial: Any, files: dict[str, Any], trusting: Any, authority: Any, capfd: Any) -> None:
    names = []

    def handle(stream: Any, _address: Any) -> None:
        names.append(stream.getpeercert()["subjectAltName"])
        stream.sendall(b"welcome")

    start(StreamServer, handle, cert_reqs=ssl.CERT_REQUIRED, **files)
    with (
        wrap_stream(dial(), trusting, server_hostname=NAME) as nobody,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
    ):
        nobody.recv(1)
    assert "peer did not return a certificate" in capfd.readouterr().err
    authority.issue_cert("me@client.example").configure_cert(trusting)
    with wrap_stream(dial(), trusting, server_hostname=NAME) as somebody:
        assert receive_all(somebody) == b"welcome"
    assert names == [(("email", "me@client.example"),)]


@pytest.mark.skipif(
    bool(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).options & ssl.OP_IGNORE_UNEXPECTED_EOF),
    reason="this interpreter (before 3.11.4) takes an end without close_notify for a clean one, over sockets too",
)
def test_tls_context_and_arguments(start: Start, dial: Any, authority: trustme.CA, trusting: Any, eventually: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    ends: list[str] = []

    def handle(stream: Any, _address: Any) -> None:
        try:
            stream.recv(10)
        except ssl.SSLEOFError:
            ends.append("cut")

    start(StreamServer, handle, ssl_context=context, suppress_ragged_eofs=False)
    stream = dial()
    wrap_stream(stream, trusting, server_hostname=NAME)
    stream.close()
    eventually(lambda: ends == ["cut"], "the end without close_notify")


def test_tls_handlers_have_no_timeout(start: Start, dial: Any, files: dict[str, Any], trusting: ssl.SSLContext) -> None:
    timeouts = []
    start(StreamServer, lambda stream, address: timeouts.append(stream.gettimeout()), **files)
    with wrap_stream(dial(), trusting, server_hostname=NAME) as client:
        assert receive_all(client) == b""
    assert timeouts == [None], "handshake_timeout is for the handshake alone"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"certfil": "typo.pem"}, ValueError, "certfile must be specified"),
        ({"keyfile": "only.key"}, ValueError, "certfile must be specified"),
        ({"ssl_context": None}, TypeError, "must be an ssl.SSLContext"),
        ({"certfile": "/nowhere/at/all.pem"}, FileNotFoundError, "No such file"),
    ],
)
def test_tls_arguments_that_cannot_be_right(nodes: Nodes, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    for kind in (StreamServer, WSGIServer):
        with nodes[1].bind(NAME) as listener, pytest.raises(error, match=words):
            kind(listener, echo, **arguments)


def test_unknown_tls_argument(nodes: Nodes, files: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unknown TLS argument 'npn'"):
        StreamServer(nodes[1].bind(NAME), echo, npn=True, **files)


def test_broken_handshakes_do_not_stop_the_server(start: Start, dial: Any, files: dict[str, Any], trusting: Any, capfd: Any) -> None:
    class Impatient(StreamServer):
        handshake_timeout = 0.05

    stranger = ssl.create_default_context()
    # One place only: each of these gives it back.
    server = start(Impatient, echo, spawn=1, **files)
    silent = dial()
    half = dial()
    half.sendall(b"\x16\x03\x01\x02\x00\x01")
    assert receive_all(silent) == b""
    assert receive_all(half) == b""
    server.handshake_timeout = 10
    plain = dial()
    plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        receive_all(plain)
    with pytest.raises(ssl.SSLCertVerificationError):
        wrap_stream(dial(), stranger, server_hostname=NAME)
    with wrap_stream(dial(), trusting, server_hostname=NAME) as client:
        client.sendall(b"fine")
        assert client.recv(10) == b"fine"
    errors = capfd.readouterr().err
    assert errors.count("The handshake operation timed out") == 2
    assert "HTTP_REQUEST" in errors
    assert "UNKNOWN_CA" in errors


# -- WSGIServer --------------------------------------------------------------------------------


class Log:
    """What servers write their lines to."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def writelines(self, lines: list[str]) -> None:
        self.text += "".join(lines)

    def flush(self) -> None:
        pass


def site(environ: dict[str, Any], start_response: Any) -> Any:
    """Answers by path."""
    path = environ["PATH_INFO"]
    body: Any
    status = "200 OK"
    if path == "/environ":
        keys = ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme")
        body = [repr({key: environ[key] for key in keys}).encode()]
    elif path == "/chunks":
        body = (b"chunk %d " % number for number in range(100))
    elif path == "/digest":
        data = environ["wsgi.input"].read()
        body = [f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()]
    elif path == "/large":
        body = (LARGE[position : position + 65536] for position in range(0, len(LARGE), 65536))
    elif path == "/error":
        raise RuntimeError("application went wrong")
    else:
        status, body = "404 Not Found", [b"nothing here"]
    start_response(status, [("Content-Type", "text/plain")])
    return body


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def connect(nodes: Nodes) -> Iterator[Callable[..., HTTPConnection]]:
    with contextlib.ExitStack() as opened:

        def make(name: str = NAME) -> HTTPConnection:
            connection = HTTPConnection(nodes[0], name, timeout=10)
            opened.callback(connection.close)
            return connection

        yield make


def get(connection: Any, path: str, **more: Any) -> tuple[int, bytes]:
    connection.request(more.pop("method", "GET"), path, **more)
    response = connection.getresponse()
    return response.status, response.read()


def test_wsgi_environ(nodes: Nodes, start: Start, dial: Any, log: Log) -> None:
    server = start(WSGIServer, site, log=log, name="my site:8080")
    client = dial("my site")
    client.sendall(b"GET /environ HTTP/1.0\r\n\r\n")
    remote = client.getsockname()
    environ = ast.literal_eval(receive_all(client).split(b"\r\n\r\n", 1)[1].decode())
    assert environ == {
        "SERVER_NAME": "my site",
        "SERVER_PORT": "8080",
        "REMOTE_ADDR": format_node_id(nodes[0].node_id),
        "REMOTE_PORT": str(remote[1]),
        "wsgi.url_scheme": "http",
    }
    assert isinstance(server, gevent.pywsgi.WSGIServer)
    assert log.text.startswith(format_node_id(nodes[0].node_id) + " - - [")
    assert '"GET /environ HTTP/1.0" 200' in log.text


def test_wsgi_environ_argument_and_anonymous_name(nodes: Nodes, start: Start) -> None:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        seen.update(environ)
        start_response("204 No Content", [])
        return []

    start(WSGIServer, application, log=None, environ={"site.owner": "me"}, name=":81")
    with nodes[0].dial((nodes[1].node_id, 81)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        receive_all(client)
    assert seen["site.owner"] == "me"
    assert seen["SERVER_NAME"] == format_node_id(nodes[1].node_id)
    assert seen["SERVER_PORT"] == "81"


def test_wsgi_keep_alive_and_chunks(start: Start, connect: Any) -> None:
    start(WSGIServer, site, log=None)
    connection = connect()
    expected = b"".join(b"chunk %d " % number for number in range(100))
    assert get(connection, "/chunks") == (200, expected)
    stream = connection.sock
    for _ in range(10):
        assert get(connection, "/nothing") == (404, b"nothing here")
        assert get(connection, "/chunks") == (200, expected)
    assert connection.sock is stream, "one stream served them all"


def test_wsgi_is_valid(start: Start, connect: Any) -> None:
    start(WSGIServer, validator(site), log=None, error_log=io.StringIO())
    assert get(connect(), "/environ")[0] == 200


def test_wsgi_large_bodies(start: Start, connect: Any) -> None:
    start(WSGIServer, site, log=None)
    connection = connect()
    body = os.urandom(1 << 20) * 8
    expected = f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()
    assert get(connection, "/digest", method="POST", body=body) == (200, expected)
    blocks = (body[position : position + 100_000] for position in range(0, len(body), 100_000))
    assert get(connection, "/digest", method="PUT", body=blocks) == (200, expected)
    assert get(connection, "/large") == (200, LARGE)


@pytest.mark.parametrize("spawn_as", ["default", 7])
def test_wsgi_hundred_at_once(spawn_as: Any, start: Start, connect: Any, spawn: Any) -> None:
    inside = most = 0

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        gevent.idle()
        inside -= 1
        return site(environ, start_response)

    start(WSGIServer, application, log=None, spawn=spawn_as)
    expected = (200, LARGE)

    def fetch() -> Any:
        connection = connect()
        # A place in the pool belongs to a stream, not to a request.
        answer = get(connection, "/large")
        connection.close()
        return answer

    for fetching in [spawn(fetch) for _ in range(100)]:
        assert fetching.get(timeout=30) == expected
    assert most <= 7 if spawn_as == 7 else most > 7


def test_wsgi_application_error(start: Start, connect: Any, log: Log, capfd: Any) -> None:
    start(WSGIServer, site, log=log, error_log=log)
    connection = connect()
    assert get(connection, "/error") == (500, b"Internal Server Error")
    assert get(connection, "/nothing")[0] == 404, "the next request gets a new stream"
    assert "RuntimeError: application went wrong" in capfd.readouterr().err
    assert '"GET /error HTTP/1.1" 500' in log.text


def test_wsgi_bad_request_is_answered_in_full(start: Start, dial: Any, log: Log) -> None:
    start(WSGIServer, site, log=None, error_log=log)
    client = dial()
    # Far more than the server reads before it refuses: what is left must not reset the stream.
    client.sendall(b"NONSENSE\r\n" + b"x" * 10_000)
    assert receive_all(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert "Invalid HTTP method" in log.text
    assert "Stream" in log.text


def test_wsgi_hundred_continue(start: Start, dial: Any) -> None:
    start(WSGIServer, site, log=None)
    client = dial()
    client.sendall(b"POST /digest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    file = client.makefile("rb")
    assert file.readline() == b"HTTP/1.1 100 Continue\r\n"
    client.sendall(b"hello")
    rest = file.read()
    assert b"200 OK" in rest
    assert hashlib.sha256(b"hello").hexdigest().encode() in rest


def test_wsgi_request_kept_does_not_keep_the_stream(start: Start, dial: Any) -> None:
    kept = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        kept.append(environ)
        return site(environ, start_response)

    start(WSGIServer, application, log=None)
    client = dial()
    client.sendall(b"GET /nothing HTTP/1.0\r\n\r\n")
    assert receive_all(client).endswith(b"nothing here")
    assert kept


def test_wsgi_client_leaves(start: Start, dial: Any, capfd: Any, eventually: Any) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        while True:
            yield b"x" * 65536

    pool = Pool(10)
    start(WSGIServer, application, log=None, spawn=pool)
    client = dial()
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(100)
    client.close()
    eventually(lambda: len(pool) == 0, "the handler's end")
    assert capfd.readouterr().err == "", "a client that leaves is no error of ours"


def test_wsgi_stop_with_requests_under_way(start: Start, dial: Any, spawn: Any, eventually: Any) -> None:
    gate, entered = Event(), []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        entered.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        gate.wait()
        return [b"finished"]

    server = start(WSGIServer, application, log=None, spawn=10)
    clients = [dial() for _ in range(5)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    eventually(lambda: len(entered) == 5, "five requests")
    stopping = spawn(server.stop, 10)
    eventually(lambda: server.closed, "a closed server")
    gate.set()
    for client in clients:
        assert receive_all(client).endswith(b"finished")
    stopping.get(timeout=10)


def test_wsgi_over_tls(nodes: Nodes, start: Start, files: dict[str, Any], trusting: ssl.SSLContext, spawn: Any) -> None:
    start(WSGIServer, site, log=None, certfile=files["certfile"], keyfile=files["keyfile"])

    def visit() -> None:
        connection = HTTPSConnection(nodes[0], NAME, timeout=10, context=trusting)
        assert b"'wsgi.url_scheme': 'https'" in get(connection, "/environ")[1]
        body = os.urandom(1 << 20)
        expected = f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()
        assert get(connection, "/digest", method="POST", body=body) == (200, expected)
        assert get(connection, "/large") == (200, LARGE)
        connection.close()

    gevent.joinall([spawn(visit) for _ in range(5)], timeout=30, raise_error=True)


def test_wsgi_tls_bad_request(start: Start, dial: Any, files: Any, trusting: Any) -> None:
    start(WSGIServer, site, log=None, error_log=None, **files)
    with wrap_stream(dial(), trusting, server_hostname=NAME) as client:
        client.sendall(b"NONSENSE\r\n" + b"x" * 10_000)
        assert receive_all(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_lingering_client_gets_its_reset(start: Start, dial: Any, eventually: Any) -> None:
    errors: list[BaseException] = []

    def handle(stream: Any, _address: Any) -> None:
        try:
            stream.recv(1)
        except ConnectionResetError as error:
            errors.append(error)

    start(StreamServer, handle)
    client = dial()
    client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    eventually(lambda: len(errors) == 1, "a reset in the handler")


def test_wsgi_leaves_nothing_behind(nodes: Nodes, no_leaks: Any) -> None:
    listener: Listener = nodes[1].bind(NAME)
    with WSGIServer(listener, site, log=None) as server:
        server.start()
        for _ in range(50):
            connection = HTTPConnection(nodes[0], NAME, timeout=10)
            assert get(connection, "/chunks")[0] == 200
            connection.close()
