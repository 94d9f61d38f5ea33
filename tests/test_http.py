"""HTTP and HTTPS connections to services, against gevent's WSGI server on another node."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
import trustme

from astranet_gevent import (
    AstraNet,
    ConfigError,
    HashRing,
    ServiceNotFoundError,
    StreamTimeout,
)
from astranet_gevent.http import HTTPConnection, HTTPSConnection
from astranet_gevent.server import StreamServer, WSGIServer
from astranet_gevent.tls import wrap_stream

Nodes = tuple[AstraNet, AstraNet]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A client's node and a server's node with a link between them."""
    with AstraNet() as near, AstraNet() as far:
        left, right = gevent.socket.socketpair()
        far.attach(right)
        near.attach(left).wait_ready(5)
        yield near, far


@pytest.fixture
def serve(nodes: Nodes) -> Iterator[Callable[..., Any]]:
    """``serve(name, application=…, …)``: a WSGI server for the name."""
    with contextlib.ExitStack() as servers:

        def begin(name: str, application: Any = mirror, **more: Any) -> Any:
            server = servers.enter_context(WSGIServer(nodes[1].bind(name), application, log=None, **more))
            server.start()
            return server

        yield begin


@pytest.fixture
def connect(nodes: Nodes) -> Iterator[Callable[..., HTTPConnection]]:
    """``connect(service, …)``: an HTTP connection that is closed at the end of the test."""
    with contextlib.ExitStack() as opened:

        def make(service: str, kind: type[HTTPConnection] = HTTPConnection, **more: Any) -> HTTPConnection:
            more.setdefault("timeout", 10)
            connection = kind(nodes[0], service, **more)
            opened.callback(connection.close)
            return connection

        yield make


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("shop", "tunnelled.example").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def mirror(environ: dict[str, Any], start_response: Any) -> Any:
    """Answers with what it was asked, headers first."""
    body = environ["wsgi.input"].read()
    start_response(
        "200 OK",
        [
            ("Host-Was", environ.get("HTTP_HOST", "")),
            ("Server-Was", f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"),
            ("Encoding-Was", environ.get("HTTP_ACCEPT_ENCODING", "")),
            ("Path-Was", environ["PATH_INFO"]),
        ],
    )
    return [body]


def closing(environ: dict[str, Any], start_response: Any) -> Any:
    """Ends the connection after each response."""
    start_response("200 OK", [("Connection", "close")])
    return [b"bye"]


def ask(connection: http.client.HTTPConnection, path: str = "/", **more: Any) -> Any:
    connection.request(more.pop("method", "GET"), path, **more)
    return connection.getresponse()


def test_request_and_response(serve: Any, connect: Any) -> None:
    serve("shop:8080")
    connection = connect("shop")
    assert isinstance(connection, http.client.HTTPConnection)
    body = os.urandom(3_000_000)
    response = ask(connection, "/path", method="POST", body=body)
    assert response.status == 200
    assert response.headers["Path-Was"] == "/path"
    assert response.read() == body
    stream = connection.sock
    assert ask(connection).read() == b""
    assert connection.sock is stream


@pytest.mark.parametrize(
    ("bound", "asked", "host"),
    [
        ("shop", "shop", "shop"),
        ("shop:8080", "shop", "shop"),
        ("shop:8080", "shop:8080", "shop:8080"),
        ("shop", "shop:80", "shop:80"),
        ("läden/2", "läden/2", "läden/2"),
        ("a:b", "a:b", "a:b"),
        ("x" * 128, "x" * 128, "x" * 128),
        ("CaseMatters", "CaseMatters", "CaseMatters"),
    ],
)
def test_host_is_the_service_as_given(bound: str, asked: str, host: str, serve: Any, connect: Any) -> None:
    serve(bound)
    headers = ask(connect(asked)).headers
    assert headers.get_all("Host-Was") == [host.encode().decode("latin-1")]
    assert headers["Encoding-Was"] == "identity"
    assert ask(connect(asked), headers={"Host": "mine"}).headers["Host-Was"] == "mine"


def test_absolute_url_names_its_own_host(serve: Any, connect: Any) -> None:
    serve("proxy")
    headers = ask(connect("proxy"), "http://elsewhere.example/").headers
    assert headers["Host-Was"] == "elsewhere.example"


def test_standard_port_is_preferred(nodes: Nodes, serve: Any, connect: Any, eventually: Any) -> None:
    for name in ("shop:80", "shop:443", "shop:8080"):
        serve(name)
    eventually(lambda: len(nodes[0].services()) == 3, "all three services")
    for _ in range(10):
        assert ask(connect("shop")).headers["Server-Was"] == "shop:80"


def test_reconnects_as_http_client_does(serve: Any, connect: Any) -> None:
    serve("shop", closing)
    connection = connect("shop")
    for _ in range(3):
        assert ask(connection).read() == b"bye"
        assert connection.sock is None
    connection.auto_open = 0
    with pytest.raises(http.client.NotConnected):
        ask(connection)


def test_server_that_went_away(nodes: Nodes, serve: Any, connect: Any, eventually: Any) -> None:
    server = serve("shop", spawn=5)
    connection = connect("shop")
    ask(connection).read()
    server.stop(timeout=0)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(connection)
    connection.close()
    eventually(lambda: not nodes[0].services(), "the service's withdrawal")
    serve("shop")
    assert ask(connection).status == 200


def test_selector_chooses_for_each_connection(nodes: Nodes, serve: Any, connect: Any, eventually: Any) -> None:
    for port in (8001, 8002, 8003):
        serve(f"shop:{port}")
    eventually(lambda: len(nodes[0].services()) == 3, "all three services")

    def server_of(key: str) -> str:
        answers = {ask(connect("shop", selector=HashRing(key))).headers["Server-Was"] for _ in range(5)}
        assert len(answers) == 1
        return str(answers.pop())

    assert len({server_of(f"customer {number}") for number in range(20)}) > 1


def test_errors_of_the_dial(connect: Any) -> None:
    connection = connect("nobody", timeout=0.05)
    with pytest.raises(ServiceNotFoundError):
        ask(connection)
    with pytest.raises(ConfigError):
        connect("")
    with pytest.raises(http.client.InvalidURL):
        connect("two words")


def test_timeout_is_for_reading_too(nodes: Nodes, connect: Any) -> None:
    with nodes[1].bind("slow"), pytest.raises(StreamTimeout):
        ask(connect("slow", timeout=0.05))


def test_no_timeout_given(nodes: Nodes, serve: Any) -> None:
    serve("shop")
    for more in ({}, {"timeout": None}):
        with contextlib.closing(HTTPConnection(nodes[0], "shop", **more)) as connection:  # type: ignore[arg-type]
            assert ask(connection).status == 200
            assert connection.sock.gettimeout() is None


def test_hundred_at_once(serve: Any, connect: Any, spawn: Any) -> None:
    serve("shop")

    def visit(number: int) -> None:
        body = bytes([number]) * 100_000
        connection = connect("shop")
        for _ in range(3):
            assert ask(connection, method="POST", body=body).read() == body

    visits = [spawn(visit, number) for number in range(100)]
    gevent.joinall(visits, timeout=30, raise_error=True)
    assert all(visiting.successful() for visiting in visits)


def test_https(serve: Any, connect: Any, server_context: Any, trusting: Any) -> None:
    serve("shop", ssl_context=server_context)
    connection = connect("shop", HTTPSConnection, context=trusting)
    body = os.urandom(1_000_000)
    response = ask(connection, method="POST", body=body)
    assert response.read() == body
    assert response.headers["Host-Was"] == "shop"
    assert connection.sock.version() == "TLSv1.3"
    assert ask(connection, "/again").headers["Path-Was"] == "/again"


def test_https_reconnects(serve: Any, connect: Any, server_context: Any, trusting: Any) -> None:
    serve("shop", closing, ssl_context=server_context)
    connection = connect("shop", HTTPSConnection, context=trusting)
    for _ in range(3):
        assert ask(connection).read() == b"bye"


def test_https_wrong_certificate(serve: Any, connect: Any, server_context: Any, trusting: Any, capfd: Any) -> None:
    serve("shop", ssl_context=server_context)
    serve("other", ssl_context=server_context)
    stranger = connect("shop", HTTPSConnection)
    for _ in range(2):
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(stranger)
        assert stranger.sock is None
        stranger.close()
    misnamed = connect("other", HTTPSConnection, context=trusting)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname mismatch"):
        ask(misnamed)
    named = connect("other", HTTPSConnection, context=trusting, server_hostname="shop")
    assert ask(named).status == 200


def test_https_to_plain_http_and_back(serve: Any, connect: Any, server_context: Any, trusting: Any, capfd: Any) -> None:
    serve("plain", error_log=None)
    with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number"):
        ask(connect("plain", HTTPSConnection, context=trusting))
    serve("shop", ssl_context=server_context)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(connect("shop"))


def test_https_prefers_443(nodes: Nodes, serve: Any, connect: Any, server_context: Any, trusting: Any, eventually: Any) -> None:
    serve("shop:80")
    serve("shop:443", ssl_context=server_context)
    eventually(lambda: len(nodes[0].services()) == 2, "both services")
    connection = connect("shop", HTTPSConnection, context=trusting)
    assert ask(connection).headers["Server-Was"] == "shop:443"


def test_tunnel_through_a_service(nodes: Nodes, connect: Any, server_context: Any, trusting: Any) -> None:
    asked = []

    def proxy(stream: Any, _address: Any) -> None:
        file = stream.makefile("rb", buffering=0)
        asked.append(file.readline())
        while file.readline() != b"\r\n":
            pass
        stream.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        tls = wrap_stream(stream, server_context, server_side=True)
        request = tls.recv(10_000)
        asked.append(request.split(b"\r\n")[1])
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        tls.close()

    with StreamServer(nodes[1].bind("proxy"), proxy) as server:
        server.start()
        connection = connect("proxy", HTTPSConnection, context=trusting)
        connection.set_tunnel("tunnelled.example", 443)
        assert ask(connection).read() == b"hi"
    assert asked[0].startswith(b"CONNECT tunnelled.example:443 HTTP/1.")
    assert asked[1] == b"Host: tunnelled.example"


@pytest.fixture
def served(serve: Any) -> None:
    """A service that is there before the leak check begins to look."""
    serve("shop")


@pytest.mark.usefixtures("served", "no_leaks")
def test_nothing_is_left_behind(nodes: Nodes) -> None:
    for _ in range(50):
        with contextlib.closing(HTTPConnection(nodes[0], "shop", timeout=10)) as connection:
            assert ask(connection).status == 200
