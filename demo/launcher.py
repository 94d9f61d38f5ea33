"""Starts router, site and client, waits for the client, ends the others, and checks what it claims.

The client compares each file with the SHA-256 that came over the mesh. Whether that was honest is
checked here: the files lie on this machine, so they are read once more from the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from .errors import DemoError
from .library import Entry, read_folder

# Seconds until a process is ready; the site hashes its files before.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0  # seconds for a process to end when told to, before it is killed
GRACE = 30.0  # seconds beyond the client's own deadline
CHECKOUT = Path(__file__).resolve().parent.parent


class Child:
    """One process of the demo. It ends when its standard input does: at the latest with us."""

    def __init__(self, name: str, *arguments: str, talks: bool = True) -> None:
        self.name = name
        self._buffer = b""
        command = [sys.executable, "-m", "demo", name, "--until-eof", *arguments]
        self._process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if talks else None,
            # Ctrl-C reaches this process alone, which then ends the others in order.
            start_new_session=True,
        )

    def hear(self, timeout: float) -> dict[str, Any]:
        """The next line of facts from the child."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            block = read_some(self._process.stdout, deadline - time.monotonic())
            if block is None:
                raise DemoError(f"the {self.name} has said nothing for {timeout:.0f} s")
            if not block:
                raise DemoError(f"the {self.name} ended early, {self.describe_end()}")
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\n")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def wait(self, timeout: float) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"the {self.name} did not end within {timeout:.0f} s") from error

    def tell_to_end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        """End the child, in order if it can be, and wait for that."""
        self.tell_to_end()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"demo: the {self.name} does not end; killing it", file=sys.stderr)
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def describe_end(self) -> str:
        status = self.wait(STOP_TIMEOUT)
        return f"by signal {-status}" if status < 0 else f"with status {status}"

    def ended(self) -> bool:
        return self._process.poll() is not None


def read_some(pipe: IO[bytes], timeout: float) -> bytes | None:
    """What a pipe has, nothing at its end, None after the timeout."""
    readable, _, _ = select.select([pipe], [], [], max(timeout, 0))
    return os.read(pipe.fileno(), 65536) if readable else None


def run(options: Namespace) -> int:
    signal.signal(signal.SIGTERM, terminated)
    with tempfile.TemporaryDirectory(prefix="demo-") as folder, contextlib.ExitStack() as children:
        report = Path(folder) / "report.json"
        address, accepted = play(options, children, report)
        entries = read_folder(options.root, options.limit)
        verify(json.loads(report.read_text(encoding="utf-8")), entries, address, accepted)
    print(
        f"checked: all {len(entries):,} files arrived as they are on the disk, the site accepted"
        f" {accepted:,} streams, and the client's one TCP connection led to the router"
    )
    return 0


def play(options: Namespace, children: contextlib.ExitStack, report: Path) -> tuple[str, int]:
    """Have the three do their parts.

    Returns the router's address and how many streams the site accepted.
    """
    router = Child("router")
    children.callback(router.stop)
    address = router.hear(START_TIMEOUT)["address"]
    limit = [] if options.limit is None else ["--limit", str(options.limit)]
    site = Child("site", "--join", address, "--root", str(options.root), *limit)
    children.callback(site.stop)
    offered = site.hear(START_TIMEOUT)
    if not offered["files"]:
        raise DemoError(f"no files in {options.root}")
    print(f"{options.root}: {offered['files']:,} files, {offered['bytes'] / 1e6:.1f} MB")
    print(f"router at {address}; site and client have joined nothing else", flush=True)
    client = Child(
        "client",
        *("--join", address, "--report", str(report), "--deadline", str(options.deadline)),
        *("--workers", str(options.workers), "--keep-alive", str(options.keep_alive)),
        *("--requests", str(options.requests)),
        talks=False,
    )
    children.callback(client.stop)
    status = client.wait(options.deadline + GRACE)
    for child in (router, site):
        if child.ended():
            raise DemoError(f"the {child.name} ended meanwhile, {child.describe_end()}")
    if status:
        raise DemoError(f"the client ended {client.describe_end()}")
    site.tell_to_end()
    return address, site.hear(STOP_TIMEOUT)["accepted"]


def verify(report: dict[str, Any], entries: list[Entry], address: str, accepted: int) -> None:
    """Raises DemoError unless what the client reports is what the disk and the site say."""
    wanted = {entry.path: entry.sha256 for entry in entries}
    wrong = [path for path, digest in wanted.items() if report["files"].get(path) != digest]
    if wrong or len(report["files"]) != len(wanted):
        raise DemoError(f"{len(wrong)} files differ from the disk: {', '.join(wrong[:5])}")
    (connection,) = report["connections"]
    if not connection.endswith(f" -> {address}"):
        raise DemoError(f"the client's connection {connection} does not lead to {address}")
    if report["streams_opened"] != accepted:
        opened = report["streams_opened"]
        raise DemoError(f"the client opened {opened} streams, the site accepted {accepted}")


def terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)
