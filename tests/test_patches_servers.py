"""Servers that know nothing of the mesh, each in a process of its own started by the runner, and clients that know nothing of it either."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import subprocess
from integration.tools import free_port, script_environment

from astranet_gevent import AstraNet, Role

# A server process starts within a second; three workers of gunicorn beside other tests within a few.
STARTING = 20.0

RUNNER = (sys.executable, "-m", "astranet_gevent.patches")

# What every server of HTTP serves: says which process answered, and what was sent.
APPLICATION = """
import hashlib, os

def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {environ['HTTP_HOST']} {environ['PATH_INFO']} {hashlib.sha256(body).hexdigest()}".encode()]

def echo(sock, address):
    while data := sock.recv(65536):
        sock.sendall(data)
"""

# Two requests on one connection, a megabyte each way.
HTTP_CLIENT = """
import hashlib, http.client, os
connection = http.client.HTTPConnection("site", timeout=15)
for path in ("/one", "/two"):
    body = os.urandom(1_000_000)
    connection.request("POST", path, body)
    answer = connection.getresponse().read().decode().split()
    assert answer[1:] == ["site", path, hashlib.sha256(body).hexdigest()], answer
"""

ECHO_CLIENT = """
import os, socket, threading
with socket.create_connection(("site", 80), 15) as sock:
    data = os.urandom(1_000_000)
    writer = threading.Thread(target=sock.sendall, args=(data,))
    writer.start()
    back = bytearray()
    while len(back) < len(data):
        part = sock.recv(65536)
        assert part
        back += part
    writer.join()
    assert back == data
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
"""

LISTING_CLIENT = """
import urllib.request
assert b"Directory listing" in urllib.request.urlopen("http://site/", timeout=15).read()
"""

# Servers of HTTP/1.0 close after each request.
ONE_REQUEST_CLIENT = HTTP_CLIENT.replace('("/one", "/two")', '("/one",)')

XMLRPC_CLIENT = """
import xmlrpc.client
proxy = xmlrpc.client.ServerProxy("http://site/")
assert [proxy.pow(2, n) for n in (3, 10)] == [8, 1024]
"""

WEBSOCKET_CLIENT = """
import websocket
connection = websocket.create_connection("ws://site/", timeout=15)
for text in ("one", "two" * 50000):
    connection.send(text)
    assert connection.recv() == text.upper()
connection.close()
"""

SOCKETIO_CLIENT = """
import socketio
for transport in ("polling", "websocket"):
    client = socketio.Client()
    client.connect("http://site", transports=[transport], wait_timeout=15)
    assert client.transport() == transport
    assert client.call("shout", "loud", timeout=15) == "LOUD"
    client.disconnect()
"""

# name: (the server's program or command line, the client's program)
SERVERS: dict[str, tuple[str | list[str], str]] = {}

SERVERS["gevent StreamServer, tuple"] = (
    """
from gevent.server import StreamServer
StreamServer(("site", 80), echo).serve_forever()
""",
    ECHO_CLIENT,
)
SERVERS["gevent StreamServer, text, pool"] = (
    """
from gevent.server import StreamServer
StreamServer("site:80", echo, spawn=2).serve_forever()
""",
    ECHO_CLIENT,
)
SERVERS["gevent StreamServer, listener"] = (
    """
import socket
from gevent.server import StreamServer
StreamServer(socket.create_server(("site", 80)), echo).serve_forever()
""",
    ECHO_CLIENT,
)
SERVERS["gevent StreamServer, listener that does not block"] = (
    """
import socket
from gevent.server import StreamServer
listener = socket.socket()
listener.bind(("site", 80))
listener.listen(50)
listener.setblocking(False)
StreamServer(listener, echo).serve_forever()
""",
    ECHO_CLIENT,
)
SERVERS["gevent WSGIServer, tuple"] = (
    """
from gevent.pywsgi import WSGIServer
WSGIServer(("site", 80), application, log=None).serve_forever()
""",
    HTTP_CLIENT,
)
SERVERS["gevent WSGIServer, its own listener"] = (
    """
import socket
from gevent.pywsgi import WSGIServer
listener = WSGIServer.get_listener(("site", 80), family=socket.AF_INET)
WSGIServer(listener, application, log=None).serve_forever()
""",
    HTTP_CLIENT,
)
SERVERS["accept in a loop"] = (
    """
import socket, threading
listener = socket.create_server(("site.mesh", 80))
while True:
    threading.Thread(target=echo, args=listener.accept(), daemon=True).start()
""",
    ECHO_CLIENT,
)
SERVERS["socketserver with threads"] = (
    """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        echo(self.request, None)
socketserver.ThreadingTCPServer(("site", 80), Echo).serve_forever()
""",
    ECHO_CLIENT,
)
SERVERS["http.server"] = (["-m", "http.server", "80", "--bind", "site"], LISTING_CLIENT)
SERVERS["wsgiref"] = (
    """
from wsgiref.simple_server import make_server
make_server("site", 80, application).serve_forever()
""",
    ONE_REQUEST_CLIENT,
)
SERVERS["xmlrpc.server"] = (
    """
from xmlrpc.server import SimpleXMLRPCServer
server = SimpleXMLRPCServer(("site", 80), logRequests=False)
server.register_function(pow)
server.serve_forever()
""",
    XMLRPC_CLIENT,
)
SERVERS["werkzeug's run_simple"] = (
    """
from werkzeug.serving import run_simple
run_simple("site", 80, application, threaded=True)
""",
    ONE_REQUEST_CLIENT,
)
SERVERS["Flask's run"] = (
    """
from flask import Flask, request
app = Flask("site")
@app.post("/<path:path>")
def answer(path):
    return f"{os.getpid()} {request.host} /{path} {hashlib.sha256(request.get_data()).hexdigest()}"
app.run("site", 80)
""",
    ONE_REQUEST_CLIENT,
)
SERVERS["waitress, host and port"] = (
    """
import waitress
waitress.serve(application, host="site", port=80, _quiet=True)
""",
    HTTP_CLIENT,
)
SERVERS["waitress, listen"] = (
    """
import waitress
waitress.serve(application, listen="site:80", _quiet=True)
""",
    HTTP_CLIENT,
)
SERVERS["websockets.sync"] = (
    """
from websockets.sync.server import serve
def answer(connection):
    for message in connection:
        connection.send(message.upper())
serve(answer, "site", 80).serve_forever()
""",
    WEBSOCKET_CLIENT,
)
SERVERS["flask-socketio"] = (
    """
from flask import Flask
from flask_socketio import SocketIO
app = Flask("site")
server = SocketIO(app, async_mode="gevent")
@server.on("shout")
def shout(text):
    return text.upper()
server.run(app, "site", 80)
""",
    SOCKETIO_CLIENT,
)


@pytest.fixture
def router() -> Iterator[AstraNet]:
    with AstraNet(role=Role.ROUTER) as mesh:
        yield mesh


def join_arguments(router: AstraNet) -> list[str]:
    host, port = router.listen(("127.0.0.1", 0)).address
    return ["--join", f"{host}:{port}"]


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[Any]:
    """A process, ended as a service manager ends it."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**script_environment(), **environment}, stdout=output, stderr=output, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pytest.fail(f"does not end when it is told to\n{log.read_text()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_client(arguments: list[str], source: str, folder: Path) -> str:
    """Run a client's program with the runner; what it printed."""
    script = folder / "client.py"
    script.write_text(source)
    done = subprocess.run(
        [*RUNNER, *arguments, str(script)], env=script_environment(), capture_output=True, text=True, timeout=40, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def await_service(router: AstraNet, name: str, servers: int, process: Any, log: Path) -> None:
    """Wait until so many nodes offer a service; fails at once when the process that should offer it has ended."""
    with router.service_map.watch() as changes:
        waiting = gevent.getcurrent()
        watching = gevent.spawn(lambda: waiting.throw(AssertionError(f"ended with {process.wait()}")))
        limit = gevent.Timeout.start_new(STARTING, AssertionError(f"not offered by {servers} within {STARTING:g} s"))
        try:
            while len(router.service_map.get(name, ())) < servers:
                changes.get()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}\n{log.read_text()}") from error
        finally:
            limit.close()
            watching.kill()


@pytest.mark.parametrize("name", SERVERS)
def test_server(name: str, router: AstraNet, tmp_path: Path) -> None:
    server, client = SERVERS[name]
    arguments = join_arguments(router)
    script = tmp_path / "server.py"
    if isinstance(server, str):
        script.write_text(APPLICATION + server)
        server = [str(script)]
    log = tmp_path / "log"
    with running([*RUNNER, *arguments, *server], log) as process:
        await_service(router, "site", 1, process, log)
        run_client(arguments, client, tmp_path)
    # Gone with the process, for whoever looks.
    with gevent.Timeout(10, AssertionError("still offered")), router.service_map.watch() as changes:
        while "site" in router.service_map:
            changes.get()


GUNICORN = [sys.executable, "-m", "gunicorn", "--worker-class", "gevent", "--workers", "3", "--log-level", "debug", "app:application"]

COUNTING_CLIENT = """
import urllib.request
pids = {urllib.request.urlopen("http://site.mesh/", timeout=15).read().split()[0] for _ in range(60)}
print(*sorted(map(int, pids)))
"""


@pytest.mark.parametrize("way", ["runner", "configuration file", "environment"])
def test_gunicorn(way: str, router: AstraNet, tmp_path: Path) -> None:
    """Several workers, each a node of its own; one that dies is replaced. The master offers nothing itself."""
    (tmp_path / "app.py").write_text(APPLICATION)
    arguments = join_arguments(router)
    environment = {"ASTRANET_PATCH": "1", "ASTRANET_JOIN": arguments[1]}
    port = 0
    command = [*GUNICORN, "--bind", "site:80"]
    if way == "runner":
        command = [*RUNNER, *arguments, *command[1:]]
        environment = {}
    elif way == "configuration file":
        (tmp_path / "gunicorn.conf.py").write_text("from gevent import monkey\nmonkey.patch_all()\n")
    else:
        # gevent patches the workers, after the master has bound its address.
        port = free_port()
        command[-1] = f"127.0.0.1:{port}"
        environment["ASTRANET_BINDINGS"] = f"127.0.0.1:{port}=site"
    log = tmp_path / "log"
    with running(command, log, **environment) as master:
        await_service(router, "site", 3, master, log)
        pids = set(map(int, run_client(arguments, COUNTING_CLIENT, tmp_path).split()))
        assert len(pids) == 3
        assert master.pid not in pids
        if way == "environment":
            # What the master still holds of TCP must not take connections that nobody accepts.
            with pytest.raises(ConnectionRefusedError):
                gevent.socket.create_connection(("127.0.0.1", port), 5)
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        with gevent.Timeout(STARTING, AssertionError("not replaced")):
            while victim in pids or len(pids) < 3:
                await_service(router, "site", 3, master, log)
                pids = set(map(int, run_client(arguments, COUNTING_CLIENT, tmp_path).split()))
        assert master.poll() is None
    assert "Traceback" not in log.read_text()
