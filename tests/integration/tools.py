"""What several integration tests need: nodes and raw peers that are closed again, echo servers, processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import gevent
from gevent import socket, subprocess
from wire.peer import PEER_ID, RawPeer

import astranet_gevent
from astranet_gevent import AstraNet, Listener, Stream
from astranet_gevent.testing import Network

# Nothing here takes longer than some hundred ms unless its test says so; only a failing test waits this long.
DEADLINE = 10.0

# The key in a handshake by which nodes of our own kind know each other.
OWN_KIND = b'{"RAddr":"","astranet_gevent":{"version":1,"features":["reset","window","goodbye","pause"]}}'

PEER_SCRIPT = os.path.join(os.path.dirname(__file__), "peer_process.py")


class Bench(Network):
    """Makes nodes, cables, raw peers and echo servers, and ends all of them."""

    def __init__(self, eventually: Callable[..., None]) -> None:
        super().__init__()
        self.eventually = eventually
        self._raw: list[RawPeer] = []
        self._greenlets: list[gevent.Greenlet[..., Any]] = []
        self._stack = contextlib.ExitStack()

    def silent(self, mesh: AstraNet, node_id: int = PEER_ID) -> tuple[RawPeer, Any]:
        """A raw peer that has not said anything yet, and the node's link to it."""
        ours, theirs = socket.socketpair()
        peer = RawPeer(theirs, node_id)
        self._raw.append(peer)
        return peer, mesh.attach(ours)

    def raw(self, mesh: AstraNet, node_id: int = PEER_ID, payload: bytes = b'{"RAddr":""}') -> tuple[RawPeer, Any]:
        """A raw peer that has shaken hands as a node of the original does, and the node's link to it."""
        peer, link = self.silent(mesh, node_id)
        peer.handshake(payload)
        peer.fence()
        return peer, link

    def adopt(self, sock: socket.socket, node_id: int = PEER_ID) -> RawPeer:
        """A raw peer over a connection that was made in another way."""
        peer = RawPeer(sock, node_id)
        self._raw.append(peer)
        return peer

    def spawn(self, function: Any, *args: Any) -> gevent.Greenlet[..., Any]:
        """A greenlet that is gone when the test is over."""
        greenlet = gevent.spawn(function, *args)
        self._greenlets.append(greenlet)
        return greenlet

    def enter(self, manager: Any) -> Any:
        """Enter a context manager that is left when the test is over."""
        return self._stack.enter_context(manager)

    def echo(self, mesh: AstraNet, service: str = "echo") -> Listener:
        """A service that sends back what it reads."""
        listener = mesh.bind(service)
        self.spawn(serve_echo, listener, self.spawn)
        return listener

    def close(self) -> None:
        """End everything."""
        self._stack.close()
        for peer in self._raw:
            peer.close()
        super().close()
        gevent.killall(self._greenlets, timeout=DEADLINE)


def serve_echo(listener: Listener, spawn: Any = gevent.spawn) -> None:
    """Answer every stream of a listener, each in a greenlet of its own."""
    for stream, _ in listener:
        spawn(echo_one, stream)


def echo_one(stream: Stream) -> None:
    """Send back what comes, until the end."""
    with stream, contextlib.suppress(OSError):
        while data := stream.recv(65536):
            stream.sendall(data)


def receive_exactly(stream: Any, size: int) -> bytes:
    """Exactly so many bytes; fails at an early end."""
    parts = bytearray()
    while len(parts) < size:
        part = stream.recv(min(size - len(parts), 65536))
        assert part, f"end of stream after {len(parts)} of {size} bytes"
        parts += part
    return bytes(parts)


def receive_all(stream: Any) -> bytes:
    """Everything up to the end of the stream."""
    parts = bytearray()
    while part := stream.recv(65536):
        parts += part
    return bytes(parts)


def receive_until_error(stream: Any) -> tuple[bytes, OSError]:
    """Everything up to an error, and the error; fails at a clean end."""
    parts = bytearray()
    try:
        while part := stream.recv(65536):
            parts += part
    except OSError as error:
        return bytes(parts), error
    raise AssertionError(f"clean end after {len(parts)} bytes, an error was expected")


def echo_once(stream: Stream, data: bytes = b"ping") -> None:
    """One round trip on a stream to an echo service."""
    stream.settimeout(DEADLINE)
    writer = gevent.spawn(stream.sendall, data)
    try:
        assert receive_exactly(stream, len(data)) == data
    finally:
        writer.join(DEADLINE)


def check_echo(mesh: AstraNet, target: Any = "echo", size: int = 300_000, timeout: float = DEADLINE) -> None:
    """Dial an echo service, send some, get it back, and see the clean end."""
    with mesh.dial(target, timeout=timeout) as stream:
        echo_once(stream, pattern(size))
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, so that a lost, doubled or moved part shows."""
    return random.Random(seed).randbytes(size)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on (for the moment)."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def tcp_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen(1)
        client = socket.socket(family)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


def script_environment() -> dict[str, str]:
    """The environment for processes that use the very library under test."""
    folder = os.path.dirname(os.path.dirname(astranet_gevent.__file__))
    return {**os.environ, "PYTHONPATH": folder, "PYTHONFAULTHANDLER": "1"}


def run_script(source: str, *arguments: str, timeout: float = 20.0, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own; fails if it does not end in time."""
    command = [*prefix, sys.executable, "-c", source, *arguments]
    return subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=timeout, check=False)  # type: ignore[no-any-return]


def check_script(source: str, *arguments: str, timeout: float = 20.0) -> str:
    """Run Python source that has to end well and say nothing on stderr; what it printed."""
    result = run_script(source, *arguments, timeout=timeout)
    assert (result.returncode, result.stderr) == (0, ""), f"status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


class PeerProcess:
    """A node in a process of its own, see ``peer_process.py``: it listens, echoes, and does what it is told."""

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        command = [*prefix, sys.executable, PEER_SCRIPT, *arguments]
        self.process = subprocess.Popen(
            command, env=script_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid: int = self.process.pid
        with gevent.Timeout(DEADLINE):
            host, port, node_id = self.read().split()
        self.address = (host, int(port))
        self.node_id = int(node_id)

    def read(self) -> str:
        """The next line that the process prints."""
        line: str = self.process.stdout.readline()
        assert line, "the process has ended"
        return line.strip()

    def tell(self, command: str) -> None:
        """Give a command."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it without a word."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def deadline(seconds: float = DEADLINE) -> Iterator[None]:
    """Fail what takes longer."""
    with gevent.Timeout(seconds, AssertionError(f"not done within {seconds:g} s")):
        yield
