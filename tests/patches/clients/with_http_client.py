"""http.client and urllib.request of the standard library."""

import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request

import pytest
from bodies import HELLO, move_bodies
from control import accepted, cut

TRUST = ssl.create_default_context(cafile=os.environ["CA_FILE"])


def ask(connection, path="/hello"):
    connection.request("GET", path)
    return connection.getresponse().read()


def parts(reply):
    while part := reply.read(1 << 18):
        yield part


def check_connections_are_reused():
    before = accepted("web")
    connection = http.client.HTTPConnection("web.mesh", timeout=10)
    assert [ask(connection) for _ in range(3)] == [HELLO] * 3
    assert accepted("web") == before + 1
    # It has no pool: a connection that the server has ended is the caller's to replace.
    assert cut("web") == 1
    with pytest.raises(http.client.RemoteDisconnected):
        ask(connection)
    assert ask(connection) == HELLO
    assert accepted("web") == before + 2
    connection.close()


def move(connection):
    def put(path, body):
        connection.request("PUT", path, body=body)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 201, reply.status

    def get(path):
        connection.request("GET", path)
        yield from parts(connection.getresponse())

    move_bodies(put, get)
    connection.close()


def check_bodies_plain():
    move(http.client.HTTPConnection("web.mesh", timeout=30))


def check_tls():
    connection = http.client.HTTPSConnection("web.mesh", timeout=10, context=TRUST)
    assert [ask(connection) for _ in range(2)] == [HELLO] * 2
    connection.close()
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(http.client.HTTPSConnection("web.mesh", timeout=10))


def check_errors():
    for host, kind in (("nobody.mesh", socket.gaierror), ("web.mesh:81", ConnectionRefusedError)):
        with pytest.raises(kind):
            ask(http.client.HTTPConnection(host, timeout=10))
    for path, kind, timeout in (
        ("/silent", TimeoutError, 0.3),
        ("/fails/1/std", ConnectionResetError, 10),
        ("/short", http.client.IncompleteRead, 10),
    ):
        flaky = http.client.HTTPConnection("flaky.mesh", 8080, timeout=timeout)
        with pytest.raises(kind):
            ask(flaky, path)
        flaky.close()


def check_urllib():
    assert urllib.request.urlopen("http://web.mesh/moved", timeout=10).read() == HELLO
    assert urllib.request.urlopen("https://web.mesh/hello", timeout=10, context=TRUST).read() == HELLO
    with pytest.raises(urllib.error.URLError) as caught:
        urllib.request.urlopen("http://nobody.mesh/", timeout=10)
    assert isinstance(caught.value.reason, socket.gaierror)
    os.environ["http_proxy"] = "http://127.0.0.1:1"
    try:
        # A new one, because urlopen() knows the proxies of its first use.
        opener = urllib.request.build_opener()
        assert opener.open("http://web.mesh/hello", timeout=10).read() == HELLO
        with pytest.raises(urllib.error.URLError, match="refused"):
            opener.open("http://elsewhere.invalid/", timeout=10)
    finally:
        del os.environ["http_proxy"]
