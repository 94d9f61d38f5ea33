"""requests while nodes freeze, die and are cut off."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import control
import gevent
import pytest
import requests
from urllib3.exceptions import NameResolutionError, NewConnectionError

STAGE = Path(__file__).resolve().parent.parent / "stage.py"


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args):
        pass


def start_server():
    """A server of this very machine, and its port."""
    server = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def check_a_node_that_freezes_and_dies():
    port = start_server()
    node = subprocess.Popen([sys.executable, STAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        folder, *address = json.loads(node.stdout.readline())
        peering = control.mesh.join(tuple(address))
        node.stdin.write(json.dumps({"do": "offer", "service": "frozen", "port": port}) + "\n")
        node.stdin.flush()
        assert "result" in node.stdout.readline()
        control.mesh.service_map.wait_for("frozen", 10)
        assert requests.get("http://frozen.mesh/", timeout=10).content == b"hello"
        node.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(requests.exceptions.ConnectTimeout):
            requests.get("http://frozen.mesh/", timeout=0.5)
        assert 0.4 < time.monotonic() - started < 5
        killing = gevent.spawn_later(0.1, node.kill)
        with pytest.raises(requests.exceptions.ConnectionError, match="lost"):
            requests.get("http://frozen.mesh/", timeout=20)
        killing.get(timeout=10)
        with pytest.raises(requests.exceptions.ConnectionError) as caught:
            requests.get("http://frozen.mesh/", timeout=10)
        assert isinstance(caught.value.args[0].reason, (NameResolutionError, NewConnectionError)), caught.value
        peering.close()
    finally:
        node.kill()
        node.communicate(timeout=10)
        shutil.rmtree(folder)


def check_reset_and_time_out():
    with pytest.raises(requests.exceptions.ConnectionError, match="reset"):
        requests.get("http://flaky.mesh:8080/fails/1/requests", timeout=10)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.get("http://flaky.mesh:8080/silent", timeout=0.3)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        requests.get("http://flaky.mesh:8080/short", timeout=10)


def check_without_the_mesh():
    """The last check: nothing is reached through the mesh any more, and everything else as before."""
    port = start_server()
    session = requests.Session()
    assert session.get("http://web.mesh/hello", timeout=10).content == b"hello"
    control.peering.close()
    for host in ("web.mesh", "control.mesh"):
        started = time.monotonic()
        with pytest.raises(requests.exceptions.ConnectionError) as caught:
            session.get(f"http://{host}/hello", timeout=5)
        assert isinstance(caught.value.args[0].reason, NameResolutionError), caught.value
        assert time.monotonic() - started < 4
    for host in ("127.0.0.1", "localhost"):
        assert requests.get(f"http://{host}:{port}/", timeout=10).content == b"hello"
