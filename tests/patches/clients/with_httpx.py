"""httpx, over httpcore: pools, bodies, TLS, errors, proxies."""

import os
import ssl

import httpx
import pytest
from bodies import HELLO, move_bodies
from control import accepted, cut

TRUST = ssl.create_default_context(cafile=os.environ["CA_FILE"])


def check_connections_are_reused():
    before = accepted("web")
    with httpx.Client(timeout=10) as client:
        for _ in range(3):
            assert client.get("http://web.mesh/hello").content == HELLO
        assert accepted("web") == before + 1
        assert cut("web") == 1
        assert client.get("http://web.mesh/hello").content == HELLO
        assert accepted("web") == before + 2


def check_bodies_plain():
    with httpx.Client(timeout=30) as client:

        def get(path):
            with client.stream("GET", f"http://web.mesh{path}") as reply:
                yield from reply.iter_bytes(1 << 18)

        def put(path, body):
            client.put(f"http://web.mesh{path}", content=body).raise_for_status()

        def put_in_parts(path, body):
            parts = (body[start : start + 1_000_000] for start in range(0, len(body), 1_000_000))
            headers = {"Content-Length": str(len(body))}
            client.put(f"http://web.mesh{path}", content=parts, headers=headers).raise_for_status()

        # One large bytes object is cut anew for every send(), which takes longer the larger it is.
        move_bodies(put, get, size=10_000_000)
        move_bodies(put_in_parts, get)


def check_tls():
    before = accepted("web")
    with httpx.Client(timeout=10, verify=TRUST) as client:
        for _ in range(2):
            assert client.get("https://web.mesh/hello").content == HELLO
        assert accepted("web") == before + 1
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get("https://web.mesh/hello", timeout=10)


def check_errors():
    with pytest.raises(httpx.ConnectError, match="nobody"):
        httpx.get("http://nobody.mesh/", timeout=10)
    with pytest.raises(httpx.ConnectError, match="not with 81"):
        httpx.get("http://web.mesh:81/", timeout=10)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get("http://flaky.mesh:8080/silent", timeout=0.3)
    with pytest.raises(httpx.ReadError, match="reset"):
        httpx.get("http://flaky.mesh:8080/fails/1/httpx", timeout=10)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get("http://flaky.mesh:8080/short", timeout=10)


def check_proxies_are_not_asked():
    os.environ["HTTP_PROXY"] = "http://127.0.0.1:1"
    try:
        assert httpx.get("http://web.mesh/hello", timeout=10).content == HELLO
        with pytest.raises(httpx.ConnectError, match="refused"):
            httpx.get("http://elsewhere.invalid/", timeout=10)
    finally:
        del os.environ["HTTP_PROXY"]
