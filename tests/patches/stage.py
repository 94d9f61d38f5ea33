"""The place where client programs meet servers: best in a network namespace of its own, where only loopback exists.

A node offers services by name, and carries each stream to a server's TCP port. Reads commands from stdin, one JSON object a line, and
answers each with one line. Ends with stdin, and everything that it has started ends with it.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402 - gevent's patches come first
import ctypes  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.fileobject  # noqa: E402

from astranet_gevent import AstraNet, Stream  # noqa: E402

CHUNK = 262_144

# Seconds between two looks whether a server accepts connections already.
LOOK_AGAIN = 0.02

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Service:
    """A name on the mesh, and the server behind it."""

    def __init__(self, mesh: AstraNet, name: str, target: tuple[str, int]) -> None:
        self.accepted = 0
        self._target = target
        self._streams: set[Stream] = set()
        self._listener = mesh.bind(name)
        gevent.spawn(self._serve)

    def _serve(self) -> None:
        for stream, _ in self._listener:
            self.accepted += 1
            gevent.spawn(self._carry, stream)

    def _carry(self, stream: Stream) -> None:
        with contextlib.closing(stream), contextlib.ExitStack() as stack:
            self._streams.add(stream)
            stack.callback(self._streams.discard, stream)
            try:
                server = stack.enter_context(socket.create_connection(self._target, 10))
            except OSError:
                reset(stream)
                return
            server.settimeout(None)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            directions = [gevent.spawn(copy, stream, server), gevent.spawn(copy, server, stream)]
            if not all(direction.get() for direction in gevent.iwait(directions)):
                reset(stream)
                reset(server)
            gevent.killall(directions)

    def cut(self, how: str) -> int:
        """End the streams that are open now, as a server that has had enough of them: by "end" or by "reset"."""
        streams = list(self._streams)
        for stream in streams:
            if how == "reset":
                reset(stream)
                stream.close()
            else:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_WR)
        return len(streams)


def copy(source: Any, target: Any) -> bool:
    """Copy until the end, and end the target's direction; False when one of the two broke before."""
    buffer = memoryview(bytearray(CHUNK))
    try:
        while size := source.recv_into(buffer):
            target.sendall(buffer[:size])
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def reset(sock: Any) -> None:
    """Have close() break the connection."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Stage:
    """Does what the commands say: each is a method."""

    def __init__(self) -> None:
        self._mesh = AstraNet().start()
        self.address = self._mesh.listen(("127.0.0.1", 0)).address
        # Servers that have given up being root go through it.
        self.folder = tempfile.mkdtemp(prefix="astranet-stage-")
        os.chmod(self.folder, 0o711)
        self._services: dict[str, Service] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        gevent.spawn(self._serve_control)

    def ports(self, count: int) -> list[int]:
        """Ports that nobody has bound, for the moment."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
            return [sock.getsockname()[1] for sock in sockets]

    def start(self, name: str, command: list[str], log: str, environment: dict[str, str]) -> int:
        """Start a server that writes into a file; its process id."""
        with open(log, "wb") as output:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=os.path.dirname(log),
                preexec_fn=functools.partial(_end_with, os.getpid()),  # noqa: PLW1509 - it calls nothing that takes a lock
            )
        return self._processes[name].pid

    def wait(self, name: str, ports: list[int], limit: float) -> bool:
        """Wait until a server accepts connections; False when it has ended, or is not ready within ``limit`` seconds."""
        end = time.monotonic() + limit
        for port in ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if self._processes[name].poll() is not None or time.monotonic() > end:
                        return False
                gevent.sleep(LOOK_AGAIN)
        return True

    def offer(self, service: str, port: int) -> None:
        """Offer the server at a port of loopback under a name."""
        self._services[service] = Service(self._mesh, service, ("127.0.0.1", port))

    def run(self, command: list[str], limit: float, environment: dict[str, str]) -> dict[str, Any]:
        """Run a program to its end."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            text=True,
            preexec_fn=functools.partial(_end_with, os.getpid()),  # noqa: PLW1509 - it calls nothing that takes a lock
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            output, _ = process.communicate(timeout=10)
            output += f"\nnot done within {limit:g} s\n"
        return {"status": process.returncode, "output": output}

    def stop(self, name: str) -> None:
        """End a server and what it has started."""
        process = self._processes.pop(name)
        _kill_group(process)
        process.wait(10)

    def close(self) -> None:
        """End everything."""
        self._mesh.close(1)
        for name in list(self._processes):
            self.stop(name)
        end_descendants()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- what client programs ask ----------------------------------------------------------------------------------------------

    def _serve_control(self) -> None:
        for stream, _ in self._mesh.bind("control"):
            gevent.spawn(self._answer, stream)

    def _answer(self, stream: Stream) -> None:
        with contextlib.closing(stream), stream.makefile("rw") as file:
            for line in file:
                verb, service, *rest = json.loads(line)
                # A service with several ports is several listeners under one name.
                services = [entry for name, entry in self._services.items() if service in (name, name.partition(":")[0])]
                answer = sum(entry.accepted if verb == "accepted" else entry.cut(*rest) for entry in services)
                file.write(f"{answer}\n")
                file.flush()


def end_descendants() -> None:
    """End what servers have left behind: such as have begun a session of their own, and lost their parent."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        return
    children = Path("/proc/thread-self/children")
    end = time.monotonic() + 10
    while time.monotonic() < end and (left := children.read_text().split()):
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _end_with(parent: int) -> None:
    """In a new process: a group of its own, and its end when this one ends."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _kill_group(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    if os.getpid() == 1:
        # A namespace of one's own begins with loopback down.
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    stage = Stage()
    try:
        print(json.dumps([stage.folder, *stage.address]), flush=True)
        for line in gevent.fileobject.FileObject(sys.stdin.fileno(), "r", closefd=False):
            command = json.loads(line)
            try:
                answer = {"result": getattr(stage, command.pop("do"))(**command)}
            except (OSError, subprocess.SubprocessError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
    finally:
        stage.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
