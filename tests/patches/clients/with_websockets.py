"""websockets.sync, which reads in a thread (a greenlet, here), plain and with TLS."""

import os
import socket
import ssl

import pytest
from control import accepted, cut
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

URLS = {"ws://socket.mesh:8000/": None, "wss://socket.mesh:8001/": ssl.create_default_context(cafile=os.environ["CA_FILE"])}


def check_messages():
    before = accepted("socket")
    for url, context in URLS.items():
        with connect(url, ssl=context, max_size=None) as connection:
            body = os.urandom(3_000_000)
            for size in (10, len(body)):
                connection.send(body[:size])
                assert connection.recv(timeout=10) == body[:size]
            assert connection.ping().wait(10)
            with pytest.raises(TimeoutError):
                connection.recv(timeout=0.1)
    assert accepted("socket") == before + 2


def check_errors():
    with connect("ws://socket.mesh:8000/") as connection:
        assert cut("socket", "reset") == 1
        with pytest.raises(ConnectionClosedError):
            connection.recv(timeout=10)
    with pytest.raises(socket.gaierror, match="nobody"):
        connect("ws://nobody.mesh/")
    with pytest.raises(ConnectionRefusedError):
        connect("ws://socket.mesh:1/")
