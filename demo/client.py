"""The client: downloads every file of the site over many streams and one TCP connection."""

from __future__ import annotations

import collections
import hashlib
import http.client
import json
import os
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import gevent.event
import psutil
from tqdm import tqdm

from astranet_gevent import AstraNet, AstraNetError, Role
from astranet_gevent.http import HTTPConnection

from .errors import DemoError
from .library import BLOCK, Entry
from .process import SERVICE, describe, join, when_stdin_ends

REQUEST_TIMEOUT = 30.0  # seconds without a byte
SAMPLE_INTERVAL = 0.2  # seconds between two looks at the system's table of connections
SHOWN = 5  # names of wrong files; more would push the table off the screen


@dataclass
class Report:
    """What was done, as counted here; `files` has the SHA-256 of what arrived, by path."""

    files: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    bytes: int = 0
    wrong: list[str] = field(default_factory=list)
    streams_open: int = 0
    streams_opened: int = 0
    streams_at_once: int = 0
    connections: list[str] = field(default_factory=list)
    connects: int = 0
    seconds: float = 0.0

    def count_stream(self, change: int) -> None:
        """A stream was opened (1) or closed (-1)."""
        self.streams_open += change
        self.streams_opened += change > 0
        self.streams_at_once = max(self.streams_at_once, self.streams_open)

    @property
    def connections_used(self) -> int:
        return max(len(self.connections), self.connects)

    def table(self) -> str:
        megabytes = self.bytes / 1e6
        rows = (
            ("files", f"{len(self.files):,}", ""),
            ("requests", f"{self.requests:,}", ""),
            ("bytes", f"{self.bytes:,}", f"{megabytes:.1f} MB"),
            ("streams opened", f"{self.streams_opened:,}", ""),
            ("most at once", f"{self.streams_at_once:,}", ""),
            ("TCP connections used", f"{self.connections_used:,}", shorten(self.connections, 1)),
            ("requests/s", f"{self.requests / self.seconds:,.0f}", f"in {self.seconds:.1f} s"),
            ("MB/s", f"{megabytes / self.seconds:,.1f}", ""),
        )
        return "\n".join(f"{name:22}{value:>15}  {note}".rstrip() for name, value, note in rows)


class Connection(HTTPConnection):
    """An HTTPConnection that counts the streams it opens."""

    def __init__(self, mesh: AstraNet, report: Report) -> None:
        super().__init__(mesh, SERVICE, timeout=REQUEST_TIMEOUT)
        self._report = report

    def connect(self) -> None:
        super().connect()
        self._report.count_stream(1)

    def close(self) -> None:
        if self.sock is not None:
            self._report.count_stream(-1)
        super().close()


class TcpWatch:
    """Finds out from the system, not from the library, how many TCP connections this process uses.

    The system's table is read again and again, and says what is there now. What lives too shortly
    to be seen there is caught by the interpreter's audit hook, which hears of every connect.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        # Kept, because an id could be used again; a connect that has to wait is reported twice.
        self._sockets: dict[int, Any] = {}
        sys.addaudithook(self._heard)
        self._end = gevent.event.Event()
        self._sampler = gevent.spawn(self._sample)

    @property
    def connects(self) -> int:
        return len(self._sockets)

    def close(self) -> None:
        self._end.set()
        self._sampler.join()

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            sock = arguments[0]
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type & socket.SOCK_STREAM:
                self._sockets[id(sock)] = sock

    def _sample(self) -> None:
        process = psutil.Process()
        last = False
        while not last:
            last = self._end.wait(SAMPLE_INTERVAL)
            for entry in process.net_connections(kind="tcp"):
                if entry.raddr:
                    here, there = (f"{host}:{port}" for host, port in (entry.laddr, entry.raddr))
                    self.seen.add(f"{here} -> {there}")


class Download:
    """Fetches the files of an index with many workers; the first broken request ends them all."""

    def __init__(self, mesh: AstraNet, keep_alive: int, report: Report) -> None:
        self._mesh = mesh
        self._keep_alive = keep_alive
        self._report = report
        self._todo: collections.deque[Entry] = collections.deque()
        self._error: DemoError | None = None

    def index(self) -> list[Entry]:
        connection = Connection(self._mesh, self._report)
        try:
            body = b"".join(fetch(connection, "/index"))
            return [Entry(**item) for item in json.loads(body)["files"]]
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"the index did not arrive: {describe(error)}") from error
        finally:
            connection.close()

    def run(self, entries: list[Entry], workers: int) -> None:
        """Download all of these; raises DemoError at the first that does not arrive."""
        self._todo.extend(entries)
        total = sum(entry.size for entry in entries)
        # Its monitor would be a thread, for the sake of bars that are updated too rarely.
        tqdm.monitor_interval = 0
        # disable=None: no bar where there is no terminal.
        with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
            greenlets = [gevent.spawn(self._work, bar.update) for _ in range(workers)]
            try:
                for _ in gevent.iwait(greenlets):
                    if self._error is not None:
                        raise self._error
            finally:
                gevent.killall(greenlets)

    def _work(self, progress: Callable[[int], object]) -> None:
        while self._todo:
            connection = Connection(self._mesh, self._report)
            try:
                for _ in range(self._keep_alive):
                    if not self._todo:
                        break
                    entry = self._todo.popleft()
                    self._download(connection, entry, progress)
            except (OSError, http.client.HTTPException) as error:
                # The first is the cause; those that follow from it would only hide it.
                if self._error is None:
                    self._error = DemoError(f"{entry.path} did not arrive: {describe(error)}")
                    self._error.__cause__ = error
                return
            finally:
                connection.close()

    def _download(self, connection: Connection, entry: Entry, progress: Callable[[int], object]) -> None:
        digest = hashlib.sha256()
        for block in fetch(connection, "/files/" + quote(os.fsencode(entry.path))):
            digest.update(block)
            self._report.bytes += len(block)
            progress(len(block))
        self._report.files[entry.path] = digest.hexdigest()
        self._report.requests += 1
        if digest.hexdigest() != entry.sha256 and entry.path not in self._report.wrong:
            self._report.wrong.append(entry.path)


def fetch(connection: Connection, path: str) -> Iterator[bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise http.client.HTTPException(f"the site answered {response.status} {response.reason}")
    while block := response.read(BLOCK):
        yield block
    if response.length:
        # A stream that ends in order, but too early: http.client leaves that to its caller.
        raise http.client.IncompleteRead(b"", response.length)


def run(options: Namespace) -> int:
    if options.until_eof:
        main_greenlet = gevent.getcurrent()
        when_stdin_ends(lambda: gevent.kill(main_greenlet, KeyboardInterrupt))
    report = Report()
    watch = TcpWatch()
    timeout = DemoError(f"not done after {options.deadline:.0f} s")
    with gevent.Timeout(options.deadline, timeout), AstraNet(role=Role.CLIENT) as mesh:
        join(mesh, options.join, options.wait)
        find_site(mesh, options.wait)
        download = Download(mesh, options.keep_alive, report)
        entries = download.index()
        started = time.monotonic()
        if not entries:
            raise DemoError("the site has no files")
        rounds = -(-options.requests // len(entries))
        download.run(entries * rounds, options.workers)
        report.seconds = time.monotonic() - started
        watch.close()
    report.connections = sorted(watch.seen)
    report.connects = watch.connects
    if options.report is not None:
        Path(options.report).write_text(json.dumps(asdict(report)), encoding="utf-8")
    print(report.table(), flush=True)
    check(report, entries)
    return 0


def find_site(mesh: AstraNet, timeout: float) -> None:
    try:
        mesh.service_map.wait_for(SERVICE, timeout)
    except (AstraNetError, OSError) as error:
        raise DemoError(f"nobody offers {SERVICE!r}: {describe(error)}") from error


def check(report: Report, entries: list[Entry]) -> None:
    """Raises DemoError unless every byte was right and one TCP connection carried them."""
    missing = [entry.path for entry in entries if entry.path not in report.files]
    for problem, paths in (("have the wrong SHA-256", report.wrong), ("are missing", missing)):
        if paths:
            count = f"{len(paths)} of {len(entries)} files"
            raise DemoError(f"{count} {problem}: {shorten(paths, SHOWN)}")
    if len(report.connections) != 1 or report.connects != 1:
        raise DemoError(
            f"the process began {report.connects} TCP connections, and the system's table showed"
            f" {len(report.connections)}, instead of one: {shorten(report.connections, SHOWN)}"
        )


def shorten(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
