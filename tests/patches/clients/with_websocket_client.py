"""websocket-client: the simple socket and the application with its callbacks, plain and with TLS."""

import os

import pytest
import websocket
from control import accepted, cut

URLS = {"ws://socket.mesh:8000/": {}, "wss://socket.mesh:8001/": {"ca_certs": os.environ["CA_FILE"]}}


def check_messages():
    before = accepted("socket")
    for url, options in URLS.items():
        connection = websocket.create_connection(url, timeout=10, sslopt=options)
        body = os.urandom(3_000_000)
        for size in (10, len(body)):
            connection.send_binary(body[:size])
            assert connection.recv() == body[:size]
        connection.ping("x")
        connection.settimeout(0.2)
        with pytest.raises(websocket.WebSocketTimeoutException):
            connection.recv()
        connection.close()
    assert accepted("socket") == before + 2


def check_the_application():
    for url, options in URLS.items():
        heard = []

        def hear(app, message, heard=heard):
            heard.append(message)
            app.close()

        app = websocket.WebSocketApp(url, on_open=lambda app: app.send("hello"), on_message=hear)
        app.run_forever(sslopt=options, ping_interval=5, ping_timeout=2)
        assert heard == ["hello"]


def check_errors():
    connection = websocket.create_connection("ws://socket.mesh:8000/", timeout=10)
    assert cut("socket", "reset") == 1
    with pytest.raises((ConnectionResetError, websocket.WebSocketConnectionClosedException)):
        connection.recv()
    with pytest.raises(websocket.WebSocketAddressException, match="nobody"):
        websocket.create_connection("ws://nobody.mesh/", timeout=10)
    with pytest.raises(ConnectionRefusedError):
        websocket.create_connection("ws://socket.mesh:1/", timeout=10)
