"""geventhttpclient: its own pool and parser, on gevent's sockets without any monkey patch."""

import contextlib
import os
import socket
import sys

import gevent
import pytest
from bodies import HELLO, move_bodies
from control import accepted, cut
from geventhttpclient import HTTPClient
from geventhttpclient.useragent import UserAgent


def client(host="web.mesh", port=80, timeout=10.0, **more):
    return contextlib.closing(HTTPClient(host, port, connection_timeout=timeout, network_timeout=timeout, **more))


def check_connections_are_reused():
    before = accepted("web")
    with client(concurrency=2) as http:
        replies = [gevent.spawn(lambda: http.get("/hello").read()) for _ in range(10)]
        assert [bytes(reply.get(timeout=10)) for reply in replies] == [HELLO] * 10
        assert accepted("web") == before + 2
        assert cut("web") == 2
        assert [bytes(http.get("/hello").read()) for _ in range(3)] == [HELLO] * 3


def check_bodies_plain():
    with client(timeout=30) as http:

        def put(path, body):
            assert http.put(path, body=body).status_code == 201

        def get(path):
            reply = http.get(path)
            while part := reply.read(1 << 18):
                yield part

        move_bodies(put, get)


def check_tls():
    before = accepted("web")
    with client(port=443, ssl=True, ssl_options={"ca_certs": os.environ["CA_FILE"]}) as http:
        for _ in range(2):
            assert http.get("/hello").read() == HELLO
    assert accepted("web") == before + 1


if sys.version_info >= (3, 11):  # the last geventhttpclient for 3.10 sends the end of a body after a request that it repeats, over TCP too

    def check_user_agent():
        agent = UserAgent(max_retries=2, retry_delay=0)
        assert agent.urlopen("http://flaky.mesh:8080/fails/2/agent").read() == b"attempt 3"


def check_errors():
    with client("nobody.mesh") as http, pytest.raises(socket.gaierror):
        http.get("/")
    with client(port=81) as http, pytest.raises(ConnectionRefusedError):
        http.get("/")
    with client("flaky.mesh", 8080, timeout=0.3) as http, pytest.raises(TimeoutError):
        http.get("/silent")
