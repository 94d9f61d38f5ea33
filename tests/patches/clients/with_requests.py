"""requests: sessions, bodies, TLS, errors, proxies."""

import os

import pytest
import requests
from bodies import HELLO, move_bodies
from control import accepted, cut
from gevent.server import StreamServer
from urllib3.exceptions import NameResolutionError

CA = os.environ["CA_FILE"]


def check_connections_are_reused():
    before = accepted("web")
    with requests.Session() as session:
        for _ in range(3):
            reply = session.get("http://web.mesh/hello", timeout=10)
            assert (reply.status_code, reply.content) == (200, HELLO)
        assert accepted("web") == before + 1
        assert session.get("http://web.mesh/moved", timeout=10).url == "http://web.mesh/hello"
        assert accepted("web") == before + 1
        # The server ends it while it is idle: noticed before the next request, and replaced.
        assert cut("web") == 1
        assert session.get("http://web.mesh/hello", timeout=10).content == HELLO
        assert accepted("web") == before + 2


def check_bodies_plain():
    with requests.Session() as session:
        move_bodies(
            lambda path, body: session.put(f"http://web.mesh{path}", data=body, timeout=30).raise_for_status(),
            lambda path: session.get(f"http://web.mesh{path}", stream=True, timeout=30).iter_content(1 << 18),
        )


def check_tls():
    before = accepted("web")
    with requests.Session() as session:
        session.verify = CA
        for _ in range(2):
            assert session.get("https://web.mesh/hello", timeout=10).content == HELLO
        assert accepted("web") == before + 1
        move_bodies(
            lambda path, body: session.put(f"https://web.mesh{path}", data=body, timeout=30).raise_for_status(),
            lambda path: session.get(f"https://web.mesh{path}", stream=True, timeout=30).iter_content(1 << 18),
        )
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        requests.get("https://web.mesh/hello", timeout=10)


def check_unknown_name():
    with pytest.raises(requests.exceptions.ConnectionError) as caught:
        requests.get("http://nobody.mesh/", timeout=10)
    assert isinstance(caught.value.args[0].reason, NameResolutionError), caught.value


def check_refused():
    with pytest.raises(requests.exceptions.ConnectionError, match="offered with port"):
        requests.get("http://web.mesh:81/", timeout=10)


def check_proxies_are_not_asked():
    asked = []

    def proxy(sock, address):
        asked.append(sock.recv(1000))
        sock.sendall(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\n\r\n")

    server = StreamServer(("127.0.0.1", 0), proxy)
    server.start()
    os.environ["HTTP_PROXY"] = os.environ["http_proxy"] = f"http://127.0.0.1:{server.server_port}"
    try:
        assert requests.get("http://web.mesh/hello", timeout=10).content == HELLO
        assert asked == []
        assert requests.get("http://elsewhere.invalid/hello", timeout=10).status_code == 502
        assert len(asked) == 1
    finally:
        del os.environ["HTTP_PROXY"], os.environ["http_proxy"]
        server.stop()
