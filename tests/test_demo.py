"""The demo as a user starts it: what it claims is true, what goes wrong is said, nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from astranet_gevent import AstraNet, Role

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 30.0
SIZES = (0, 1, 17, 1000, 65535, 65536, 65537, 300_000)
ODD_NAMES = ("with space.py", "per%20cent.py", "question?.py", "hash#.py", "ümlaut.py", "a+b&c=d.py")


@pytest.fixture
def site_root(tmp_path: Path) -> Path:
    """A folder of files that are served, and of some that are not."""
    root = tmp_path / "root"
    for number in range(40):
        size = SIZES[number % len(SIZES)]
        write(root / f"pack{number % 4}" / f"module{number}.py", os.urandom(size))
    for name in ODD_NAMES:
        write(root / name, name.encode())
    write(root / "__pycache__" / "cached.pyc", b"not served")
    write(root / "site-packages" / "installed.py", b"not served")
    write(tmp_path / "secret", b"outside")
    (root / "link.py").symlink_to(tmp_path / "secret")
    return root


SERVED = 40 + len(ODD_NAMES)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "demo", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def table(output: str) -> dict[str, float]:
    """The rows of the client's table: name and first number."""
    rows = re.findall(r"(?m)^(\S+(?: \S+)*) {2,}([\d,.]+)(?:  .*)?$", output)
    return {name: float(number.replace(",", "")) for name, number in rows}


def test_downloads_everything_over_one_connection(site_root: Path) -> None:
    result = run("--root", str(site_root), "--workers", "20", "--requests", str(2 * SERVED))
    assert result.returncode == 0, result.stderr
    rows = table(result.stdout)
    unserved = ("link.py", "installed.py")
    served = [path for path in site_root.rglob("*.py") if path.name not in unserved]
    assert rows["files"] == len(served) == SERVED
    assert rows["requests"] == 2 * SERVED
    assert rows["bytes"] == 2 * sum(path.stat().st_size for path in served)
    assert rows["streams opened"] == 2 * SERVED + 1  # and one for the index
    assert 2 <= rows["most at once"] <= 20
    assert rows["TCP connections used"] == 1
    assert rows["requests/s"] > 0
    assert rows["MB/s"] > 0
    # Without a terminal there is no progress bar, and nothing else to say.
    assert result.stderr == ""
    assert "\r" not in result.stdout
    assert "\x1b" not in result.stdout


def test_streams_can_be_kept(site_root: Path) -> None:
    result = run("--root", str(site_root), "--limit", "30", "--requests", "1", "--workers", "1", "--keep-alive", "10")
    assert result.returncode == 0, result.stderr
    rows = table(result.stdout)
    assert rows["files"] == 30
    assert rows["streams opened"] == 3 + 1


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of the demo's processes; its end of standard input ends it."""
    with subprocess.Popen(command(*arguments, "--until-eof"), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            assert started.stdin is not None
            started.stdin.close()
            try:
                started.wait(TIMEOUT)
            finally:
                started.kill()


def facts(started: subprocess.Popen[bytes]) -> dict[str, object]:
    assert started.stdout is not None
    told: dict[str, object] = json.loads(started.stdout.readline())
    return told


@pytest.fixture
def router() -> Iterator[str]:
    with process("router") as started:
        yield str(facts(started)["address"])


@pytest.fixture
def site(router: str, site_root: Path) -> Iterator[subprocess.Popen[bytes]]:
    with process("site", "--join", router, "--root", str(site_root)) as started:
        assert facts(started)["files"] == SERVED
        yield started


@pytest.mark.usefixtures("site")
def test_a_wrong_byte_is_found(router: str, site_root: Path) -> None:
    victim = site_root / "pack3" / "module3.py"
    content = bytearray(victim.read_bytes())
    content[500] ^= 1
    victim.write_bytes(content)
    result = run("client", "--join", router, "--requests", str(2 * SERVED))
    assert result.returncode == 1
    assert f"1 of {SERVED} files have the wrong SHA-256: pack3/module3.py" in result.stderr
    assert table(result.stdout)["files"] == SERVED


def test_a_dead_site_is_missed(router: str, site: subprocess.Popen[bytes]) -> None:
    site.kill()
    site.wait(TIMEOUT)
    result = run("client", "--join", router, "--wait", "0.5")
    assert result.returncode == 1
    assert "nobody offers 'stdlib-files'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_router_is_said() -> None:
    result = run("client", "--join", "127.0.0.1:1", "--wait", "0.5")
    assert result.returncode == 1
    assert "no router at 127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


NOT_SERVED = (
    "/files/../../secret",
    "/files/../secret",
    "/files/%2e%2e/secret",
    "/files/..%2fsecret",
    "/files/pack0/../../secret",
    "/files//etc/passwd",
    "/files/link.py",
    "/files/__pycache__/cached.pyc",
    "/files/pack0",
    "/files/",
    "/",
)


@pytest.mark.usefixtures("site")
def test_only_the_index_is_served(router: str) -> None:
    host, port = router.split(":")
    with AstraNet(role=Role.CLIENT) as mesh:
        mesh.join((host, int(port))).wait_ready(TIMEOUT)
        mesh.service_map.wait_for("stdlib-files", TIMEOUT)
        for path in NOT_SERVED:
            answer = get(mesh, path)
            assert answer.startswith(b"HTTP/1.1 404 "), (path, answer[:200])
            assert b"outside" not in answer


def get(mesh: AstraNet, path: str) -> bytes:
    """The raw answer, because clients tidy up a path before they send it."""
    with mesh.dial("stdlib-files") as stream:
        stream.settimeout(TIMEOUT)
        stream.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: stream.recv(65536), b""))


@pytest.fixture
def big_root(tmp_path: Path) -> Path:
    """One file that takes seconds to download, and no room on the disk."""
    root = tmp_path / "big"
    root.mkdir()
    with (root / "zeros").open("wb") as file:
        file.truncate(1 << 27)
    return root


class Terminal:
    """A command whose standard error is a terminal, so that it shows its progress there."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)

    def read_until(self, wanted: str) -> None:
        """Read what is shown until the text appears in it; fails if it ends before, or is late."""
        deadline = time.monotonic() + TIMEOUT
        while wanted not in self.text:
            assert self._read(deadline), f"ended without {wanted!r}: {self.text}"

    def finish(self) -> int:
        """Read the rest; returns the exit status."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(deadline):
            pass
        return self.process.wait(TIMEOUT)

    def close(self) -> None:
        os.close(self._ours)
        self.process.kill()
        self.process.wait(TIMEOUT)

    def _read(self, deadline: float) -> bool:
        readable, _, _ = select.select([self._ours], [], [], max(deadline - time.monotonic(), 0))
        assert readable, f"nothing more within {TIMEOUT:.0f} s: {self.text}"
        try:
            block = os.read(self._ours, 65536)
        except OSError:  # how Linux says that nobody has the other end open
            return False
        self.text += block.decode()
        return bool(block)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as opened:

        def start(*arguments: str) -> Terminal:
            started = Terminal(*arguments)
            opened.callback(started.close)
            return started

        yield start


PROGRESS = "0.00/134M"


def find_children(shown: Terminal) -> dict[str, psutil.Process]:
    """The three processes of a running demo, by what they are."""
    children = psutil.Process(shown.process.pid).children()
    found = {child.cmdline()[3]: child for child in children}
    assert set(found) == {"router", "site", "client"}
    return found


def assert_gone(children: dict[str, psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children.values(), timeout=TIMEOUT)
    assert not alive


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_process_is_left_behind(big_root: Path, terminal: Callable[..., Terminal], number: int, status: int) -> None:
    shown = terminal("--root", str(big_root), "--requests", "1")
    shown.read_until(PROGRESS)
    children = find_children(shown)
    shown.process.send_signal(number)
    assert shown.finish() == status
    assert_gone(children)
    assert "Traceback" not in shown.text


@pytest.mark.parametrize("victim", ["router", "site"])
def test_death_of_a_process_is_reported(big_root: Path, terminal: Callable[..., Terminal], victim: str) -> None:
    shown = terminal("--root", str(big_root), "--requests", "1")
    shown.read_until(PROGRESS)
    children = find_children(shown)
    children[victim].kill()
    assert shown.finish() == 1
    assert_gone(children)
    assert re.search(rf"demo: the {victim} ended.* by signal 9", shown.text)
    assert "Traceback" not in shown.text
