"""urllib3: pools, retries, bodies, TLS, errors."""

import os

import gevent
import pytest
import urllib3
from bodies import HELLO, move_bodies
from control import accepted, cut
from urllib3 import exceptions

CA = os.environ["CA_FILE"]


def check_pools():
    before = accepted("web")
    with urllib3.HTTPConnectionPool("web.mesh", maxsize=2, block=True, timeout=10) as pool:
        replies = [gevent.spawn(pool.request, "GET", "/hello") for _ in range(20)]
        assert [reply.get(timeout=10).data for reply in replies] == [HELLO] * 20
        assert accepted("web") == before + 2 == before + pool.num_connections
        # Both are ended while they are idle: each is noticed and replaced, without a retry.
        assert cut("web") == 2
        replies = [gevent.spawn(pool.request, "GET", "/hello", retries=False) for _ in range(20)]
        assert [reply.get(timeout=10).data for reply in replies] == [HELLO] * 20
        assert accepted("web") == before + 4


def check_a_pool_after_a_reset():
    before = accepted("web")
    with urllib3.HTTPConnectionPool("web.mesh", maxsize=1, timeout=10) as pool:
        assert pool.request("GET", "/hello").data == HELLO
        assert cut("web", "reset") == 1
        assert pool.request("GET", "/hello", retries=False).data == HELLO
    assert accepted("web") == before + 2


def check_retries():
    with urllib3.PoolManager(timeout=10) as pool:
        # Two requests are answered with a reset: the third attempt is the last that is left.
        reply = pool.request("GET", "http://flaky.mesh:8080/fails/2/enough", retries=urllib3.Retry(2))
        assert (reply.status, reply.data) == (200, b"attempt 3")
        with pytest.raises(exceptions.MaxRetryError) as caught:
            pool.request("GET", "http://flaky.mesh:8080/fails/9/few", retries=urllib3.Retry(3))
        assert isinstance(caught.value.reason, exceptions.ProtocolError)
        assert isinstance(caught.value.reason.args[1], ConnectionResetError), caught.value.reason
        reply = pool.request("GET", "http://flaky.mesh:8080/fails/5/few", retries=urllib3.Retry(1))
        assert reply.data == b"attempt 6", reply.data
        with pytest.raises(exceptions.MaxRetryError, match="too many 503"):
            pool.request("GET", "http://web.mesh/busy", retries=urllib3.Retry(2, status_forcelist=[503]))
        refused = urllib3.Retry(connect=2)
        with pytest.raises(exceptions.MaxRetryError) as caught:
            pool.request("GET", "http://web.mesh:81/", retries=refused)
        assert isinstance(caught.value.reason, exceptions.NewConnectionError)
        assert isinstance(caught.value.reason.__cause__, ConnectionRefusedError)


def check_errors():
    with urllib3.PoolManager(retries=False) as pool:
        with pytest.raises(exceptions.NameResolutionError):
            pool.request("GET", "http://nobody.mesh/", timeout=10)
        with pytest.raises(exceptions.ReadTimeoutError):
            pool.request("GET", "http://flaky.mesh:8080/silent", timeout=0.3)
        with pytest.raises(exceptions.ProtocolError, match="IncompleteRead"):
            pool.request("GET", "http://flaky.mesh:8080/short", timeout=10)
        with pytest.raises(exceptions.ProtocolError, match="reset"):
            pool.request("GET", "http://flaky.mesh:8080/fails/1/error", timeout=10)


def check_bodies_plain():
    with urllib3.PoolManager(timeout=30) as pool:
        move_bodies(
            lambda path, body: pool.request("PUT", f"http://web.mesh{path}", body=body),
            lambda path: pool.request("GET", f"http://web.mesh{path}", preload_content=False).stream(1 << 18),
        )


def check_tls():
    before = accepted("web")
    with urllib3.PoolManager(ca_certs=CA, timeout=10) as pool:
        for _ in range(2):
            assert pool.request("GET", "https://web.mesh/hello").data == HELLO
        assert accepted("web") == before + 1
        assert cut("web") == 1
        assert pool.request("GET", "https://web.mesh/hello", retries=False).data == HELLO
        with pytest.raises(exceptions.SSLError, match="Hostname mismatch"):
            pool.request("GET", "https://flaky.mesh:8443/", retries=False)
