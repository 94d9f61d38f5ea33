"""What the measurements share: a client and a server process pinned to a core each, rounds in which two kinds take turns, one table.

A script gives ``obey`` what its children can do, asks a ``Pair`` of them for numbers, enters these in the rows of a ``Report``, and lets
``run`` do the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import faulthandler
import gc
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gevent
import gevent.event
import gevent.fileobject
import gevent.queue
import psutil

CHURNERS = 100  # greenlets that open connections at the same time
# Idle TCP connections: there are about 28,000 ephemeral ports, some in TIME_WAIT.
MAX_IDLE_CONNECTIONS = 15_000
SPARE_DESCRIPTORS = 200
STEP_LIMIT = 30.0  # seconds for a step that ought to be short: start, join, finish
OPENING_LIMIT = 300.0  # seconds for opening the idle streams (100,000 take about 10 s)
# Seconds after which a process that never yields is ended: more than any order takes that yields seldom, about a million streams.
UNYIELDING = 2 * OPENING_LIMIT + STEP_LIMIT
NOISY_SPREAD = 0.3  # (max - min) / median of a row's ratios
NOISY_OTHERS = 0.15  # cores used by other programs

Cores = tuple[int | None, int | None]
Commands = dict[str, Callable[..., Any]]


# --- in the children --------------------------------------------------------------------------


class Conn(Protocol):
    """What is used of a socket or a stream."""

    def sendall(self, data: bytes, /) -> Any: ...
    def recv(self, size: int, /) -> bytes: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def close(self) -> None: ...


class Held:
    """Streams kept open with nobody reading: a parked greenlet costs several times a stream."""

    def __init__(self) -> None:
        self.streams: list[Conn] = []
        self._wanted = 0
        self._enough = gevent.event.Event()

    def add(self, stream: Conn) -> None:
        self.streams.append(stream)
        if len(self.streams) >= self._wanted:
            self._enough.set()

    def accept_from(self, listener: Any) -> None:
        while True:
            stream, _ = listener.accept()
            self.add(stream)

    def wait_for(self, count: int, timeout: float) -> None:
        self._wanted = count
        if len(self.streams) >= count:
            return
        self._enough.clear()
        if not self._enough.wait(timeout):
            raise TimeoutError(f"{len(self.streams)} of {count} streams arrived in {timeout} s")

    def open_until(self, count: int, dial: Callable[[], Conn]) -> None:
        """Have `count` open, several at a time."""
        tickets = iter(range(count - len(self.streams)))

        def open_some() -> None:
            for _ in tickets:  # shared: each greenlet takes the next
                self.add(dial())

        openers = [gevent.spawn(open_some) for _ in range(CHURNERS)]
        gevent.joinall(openers, timeout=OPENING_LIMIT, raise_error=True)
        self.wait_for(count, 0.0)


def memory() -> int:
    """Bytes of this process: PSS where the platform tells it, else RSS."""
    gc.collect()
    info = psutil.Process().memory_full_info()
    return int(getattr(info, "pss", info.rss))


def pin(core: int | None) -> None:
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def descriptor_limit(raise_it: bool = False) -> int:
    """How many descriptors a process may have (as raised to the hard limit)."""
    try:
        import resource
    except ImportError:  # Windows: sockets are not counted
        return MAX_IDLE_CONNECTIONS + SPARE_DESCRIPTORS
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        hard = MAX_IDLE_CONNECTIONS + SPARE_DESCRIPTORS
    if raise_it:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def orders() -> Iterator[dict[str, Any]]:
    """What the parent asks for. The process ends with the parent, whatever it is doing."""
    inbox: gevent.queue.Queue[bytes] = gevent.queue.Queue()

    def read() -> None:
        for line in gevent.fileobject.FileObject(0, "rb", closefd=False):
            inbox.put(line)
        os._exit(0)

    gevent.spawn(read)
    while True:
        yield json.loads(inbox.get())


def watch() -> None:
    """The last resort, a thread of its own, if this process never yields to hear its parent end. Idle it may be for as long as it likes."""
    while True:
        faulthandler.dump_traceback_later(UNYIELDING, exit=True)
        gevent.sleep(UNYIELDING / 4)


def obey(commands: Mapping[str, Callable[..., Any]], core: int | None) -> None:
    """A child: obey orders from stdin, answer on stdout: {"value": ...} or {"error": ...}."""
    pin(core)
    descriptor_limit(raise_it=True)
    gevent.spawn(watch)
    for order in orders():
        limit = order.pop("limit")
        try:
            with gevent.Timeout(limit, TimeoutError(f"no end within {limit:.0f} s")):
                answer = {"value": commands[order.pop("do")](**order)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def child_main(kinds: Mapping[str, Callable[[], Commands]]) -> None:
    """The whole of a script that runs as `script --child KIND`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", choices=kinds, required=True)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    obey(kinds[options.child](), options.core)


# --- the parent: children ---------------------------------------------------------------------


class ChildFailed(Exception):
    """A child ended, reported an error, or did not answer in time."""


class Child:
    """A child process, which runs `script --child KIND`, and the pipe to it."""

    def __init__(self, script: str, kind: str, side: str, core: int | None) -> None:
        self.side = side or kind
        self._name = f"{kind} {side}".rstrip()
        command = [sys.executable, script, "--child", kind]
        if core is not None:
            command += ["--core", str(core)]
        # A session of its own: Ctrl-C reaches the parent only; a child ends when its stdin does.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, limit: float = STEP_LIMIT, **arguments: Any) -> Any:
        """Have a command done; ChildFailed after `limit` seconds and some grace at the latest."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "limit": limit, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=limit + 5.0)
        except (OSError, queue.Empty) as error:
            raise ChildFailed(f"{self._name}: {do}: no answer ({error!r})") from error
        if not line:
            raise ChildFailed(f"{self._name}: {do}: the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildFailed(f"{self._name}: {do}: {answer['error']}")
        return answer["value"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        with self._looked_at() as process:
            times = process.cpu_times()
        return float(times.user + times.system)

    def resident(self) -> int:
        """Bytes. Not PSS: reading that takes a second with a million streams."""
        with self._looked_at() as process:
            return int(process.memory_info().rss)

    @contextlib.contextmanager
    def _looked_at(self) -> Iterator[psutil.Process]:
        try:
            yield psutil.Process(self._process.pid)
        except psutil.Error as error:
            raise ChildFailed(f"{self._name}: the process ended") from error

    def stop(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(2.0)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Usage:
    """What one process took while it was measured: processor seconds of so many, and the bytes resident at the end."""

    scenario: str
    kind: str
    side: str
    seconds: float
    cpu: float
    resident: int


@dataclass
class Others:
    """How much of the machine other programs took while ours were measured, and what ours took themselves."""

    seconds: float = 0.0
    elapsed: float = 0.0
    own: list[Usage] = field(default_factory=list)
    #: What is being measured.
    scenario: str = ""

    @staticmethod
    def busy() -> float:
        # All but idling: Linux counts loopback's softirqs apart for the system, but with the process that sends.
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # also in user
        return float(sum(times) - idle - guests)

    @property
    def cores(self) -> float:
        return max(0.0, self.seconds / self.elapsed) if self.elapsed else 0.0


class Pair:
    """A server and a client of one kind, new for every measurement; the client has been told where the server is.

    ``between`` names the kinds of processes that stand between the two, from the server on: relays and proxies. They are not pinned; nor
    are the two where there are fewer cores than processes: one that may move then waits behind one that may not while a core is idle.
    """

    def __init__(self, script: str, kind: str, cores: Cores, others: Others, between: Collection[str] = ()) -> None:
        self.kind = kind
        self._script = script
        self._others = others
        self._children: list[Child] = []
        self._cores: Cores = cores if 2 + len(between) <= len(usable_cores()) else (None, None)
        self._between = between

    def __enter__(self) -> Pair:
        try:
            for side, core in zip(("server", "client"), self._cores, strict=True):
                self._children.append(Child(self._script, self.kind, side, core))
            self.server, self.client = self._children
            where = self.server.ask("serve")
            for kind in self._between:
                self._children.append(Child(self._script, kind, "", None))
                where = self._children[-1].ask("stand_between", where=where)
            self.client.ask("reach", where=where)
            self._start, self._busy = time.monotonic(), Others.busy()
            self._cpu = [child.cpu_seconds() for child in self._children]
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._account()
        finally:
            self._stop()

    @property
    def pids(self) -> list[int]:
        """Of all its processes."""
        return [child.pid for child in self._children]

    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        return sum(child.cpu_seconds() for child in self._children)

    def _account(self) -> None:
        seconds = time.monotonic() - self._start
        spent = [child.cpu_seconds() - before for child, before in zip(self._children, self._cpu, strict=True)]
        self._others.elapsed += seconds
        self._others.seconds += Others.busy() - self._busy - sum(spent)
        for child, cpu in zip(self._children, spent, strict=True):
            self._others.own.append(Usage(self._others.scenario, self.kind, child.side, seconds, cpu, child.resident()))

    def _stop(self) -> None:
        for one in reversed(self._children):
            one.stop()


# --- the parent: table ------------------------------------------------------------------------


@dataclass
class Row:
    """One requirement, and what the rounds gave for each of the two kinds: the baseline, then ours."""

    name: str
    title: str
    asked: str
    #: None: nothing is asked, the row informs.
    met: Callable[[Row], bool] | None
    kinds: tuple[str, str]
    #: "ratio": ours / baseline of one round; "difference": ours - baseline.
    by: str = "ratio"
    form: str = ",.0f"
    noisy_spread: float = NOISY_SPREAD
    #: Points of a curve: what it is of, and how many streams the baseline had, and ours.
    curve: tuple[str, int, int] | None = None
    values: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {kind: [] for kind in self.kinds}

    @property
    def compared(self) -> list[float]:
        pairs = zip(*self.values.values(), strict=False)
        return [ours / base if self.by == "ratio" else ours - base for base, ours in pairs]

    @property
    def median(self) -> float:
        return statistics.median(self.compared)

    @property
    def ours(self) -> float:
        return statistics.median(self.values[self.kinds[1]])

    @property
    def noisy(self) -> bool:
        compared = self.compared
        return self.by == "ratio" and bool(compared) and (max(compared) - min(compared)) / self.median > self.noisy_spread

    @property
    def cells(self) -> tuple[str, ...]:
        compared = spread(self.compared, ".2f" if self.by == "ratio" else f"+{self.form}")
        met = "" if self.met is None else "yes" if self.met(self) else "no"
        return (self.title, *(spread(self.values[kind], self.form) for kind in self.kinds), compared, self.asked, met)

    @property
    def head(self) -> tuple[str, ...]:
        return ("", *self.kinds, self.by, "asked", "met")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "asked": self.asked,
            "values": self.values,
            f"{self.by}s": self.compared,
            self.by: self.median if self.compared else None,
            "curve": self.curve and {"of": self.curve[0], "streams": dict(zip(self.kinds, self.curve[1:], strict=True))},
            "met": None if self.met is None else self.met(self),
            "noisy": self.noisy,
        }


@dataclass
class Report:
    rows: list[Row]
    others: Others = field(default_factory=Others)
    #: What was asked for and cannot be measured.
    left_out: list[str] = field(default_factory=list)
    #: Why the run has not come to its end.
    cut_short: str = ""

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    @property
    def measured(self) -> list[Row]:
        """The rows that have values: of both kinds, or of ours where the baseline cannot have as many."""
        return [row for row in self.rows if row.values[row.kinds[1]]]

    def table(self) -> str:
        lines: list[tuple[str, ...]] = []
        head: tuple[str, ...] = ()
        for row in self.measured:
            if row.head != head:
                head = row.head
                lines.append(head)
            lines.append(row.cells)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)

    def usage(self) -> str:
        """Of every kind of process: the median of the cores it used, and the most memory it had."""
        sides: dict[str, list[Usage]] = {}
        for one in self.others.own:
            sides.setdefault(f"{one.kind} {one.side}", []).append(one)
        shown = []
        for name, some in sides.items():
            cores = statistics.median(one.cpu / one.seconds for one in some)
            shown.append(f"{name} {cores:.2f} cores, {max(one.resident for one in some) / 1e6:,.0f} MB")
        return "; ".join(shown)

    def warnings(self) -> Iterator[str]:
        if self.cut_short:
            yield f"{self.cut_short}: this is what was measured until then"
        yield from (f"not measured: {what}" for what in self.left_out)
        if self.others.cores > NOISY_OTHERS:
            yield f"noisy: other programs used {self.others.cores:.2f} cores: do not quote this run"
        for row in self.measured:
            if row.noisy:
                yield f"noisy: the ratios of '{row.title}' spread over more than {row.noisy_spread:.0%}"


def spread(values: list[float], form: str) -> str:
    if not values:
        return "-"
    low, high = format(min(values), form), format(max(values), form)
    middle = format(statistics.median(values), form)
    return middle if low == high else f"{middle} ({low}..{high})"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar on stderr, or a line for each result where stderr is no terminal, or tqdm is not installed, or no bar is wanted."""

    def __init__(self, total: int, bar: bool) -> None:
        self._bar: Any = None
        if bar and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, unit="round", leave=False, file=sys.stderr, dynamic_ncols=True)

    def begin(self, scenario: str, number: int, rounds: int) -> None:
        self._where = f"round {number + 1}/{rounds}"
        if self._bar is not None:
            self._bar.set_description(f"{scenario} {self._where}")

    def result(self, kind: str, shown: str) -> None:
        if self._bar is None:
            say(f"{self._where}  {kind:9}{shown}")
        else:
            self._bar.set_postfix_str(f"{kind}: {shown}"[:60])

    def end(self) -> None:
        """Of a round."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def congestion_control() -> str:
    """TCP's, as the system has it for programs that do not choose: what the baseline gets."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "unknown"  # not Linux


def surroundings(cores: Cores) -> dict[str, str]:
    pinned = "not pinned" if None in cores else "server on core {}, client on core {}".format(*cores)
    if None not in cores and len(usable_cores()) == len(cores):
        pinned += " (nowhere where relays or proxies run beside them)"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gevent": f"{gevent.__version__} ({gevent.get_hub().loop.__class__.__module__})",
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores, {pinned}",
        "system": f"{platform.system()} {platform.release()}, TCP with {congestion_control()}",
    }


def pick_cores() -> Cores:
    """A core each for server and client, or none where that is not possible."""
    cores = usable_cores()
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


def usable_cores() -> list[int]:
    """The cores that this process and its children may be pinned to; none where the platform cannot pin."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


# --- the parent: options, rounds --------------------------------------------------------------

# The numbers of one round of one scenario, as they come: the kind, and its value for each row.
Numbers = Iterator[tuple[str, dict[str, float]]]


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def whole(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def file_to_write(text: str) -> Path:
    """A file that can be made, for argparse: a run of an hour must not end with finding out that it cannot."""
    file = Path(text)
    if file.is_dir() or not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return file


def folder_to_make(text: str) -> Path:
    """A folder that is there or can be made, for argparse."""
    folder = Path(text)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder and cannot be made")
    return folder


def parser_of(title: str, scenarios: Collection[str]) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="one short round: a look, not a result")
    parser.add_argument("--rounds", type=whole, metavar="N", help="default 5; with --quick 1")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write every value there too")
    parser.add_argument("--only", action="append", choices=scenarios, metavar="NAME", help=f"of {', '.join(scenarios)}")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="lines instead of a bar; without a terminal always")
    return parser


def rounds_of(options: argparse.Namespace) -> int:
    return int(options.rounds or (1 if options.quick else 5))


def in_turn(kinds: tuple[str, str], number: int) -> tuple[str, str]:
    """Which kind goes first alternates."""
    return kinds if number % 2 == 0 else (kinds[1], kinds[0])


def run(
    options: argparse.Namespace,
    report: Report,
    cores: Cores,
    scenarios: Mapping[str, Callable[[int], Numbers]],
    plan: Mapping[str, Any],
    facts: Mapping[str, str] | None = None,
    further: Callable[[dict[str, Any]], None] = lambda _content: None,
) -> int:
    """Every scenario, round by round, and the table, whatever ends it; the exit status.

    ``facts`` are more to say of what is measured; ``further`` is called at the end with what is also written as JSON.
    """
    facts = {**surroundings(cores), **(facts or {})}
    print("\n".join(f"{name:15} {value}" for name, value in facts.items()), flush=True)
    status = 0
    try:
        measure(options, report, {name: scenarios[name] for name in options.only or scenarios})
    except ChildFailed as error:
        status, report.cut_short = 1, f"failed: {error}"
    except KeyboardInterrupt:
        status, report.cut_short = 130, "interrupted"
    if report.cut_short:
        say(report.cut_short)
    content = content_of(report, facts, plan)
    print("\n".join(conclusion(report, content["warnings"], rounds_of(options))))
    if options.json:
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    further(content)
    return status or (0 if report.measured else 1)


def conclusion(report: Report, warnings: list[str], rounds: int) -> Iterator[str]:
    """The table, and how much it is worth."""
    if report.measured:
        yield f"\n{report.table()}\n"
        most = "at most " if report.cut_short else ""
        yield f"median (min..max) of {most}{rounds} rounds; a ratio is that of one round, the second column by the first"
        yield f"processes: {report.usage()}"
        yield from warnings or ["quiet enough to trust"]
    else:
        yield from ("", *warnings, "nothing was measured")


def measure(options: argparse.Namespace, report: Report, scenarios: Mapping[str, Callable[[int], Numbers]]) -> None:
    rounds = rounds_of(options)
    progress = Progress(len(scenarios) * rounds, options.progress)
    try:
        for name, one_round in scenarios.items():
            report.others.scenario = name
            for number in range(rounds):
                progress.begin(name, number, rounds)
                for kind, result in one_round(number):
                    progress.result(kind, ", ".join(f"{key} {format(value, report.row(key).form)}" for key, value in result.items()))
                    for key, value in result.items():
                        report.row(key).values[kind].append(value)
                progress.end()
    finally:
        progress.close()


def content_of(report: Report, facts: Mapping[str, str], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a run has found out, for --json and for charts."""
    return {
        **facts,
        "plan": dict(plan),
        "others_cores": report.others.cores,
        "warnings": list(report.warnings()),
        "rows": [row.as_json() for row in report.measured],
        "processes": [asdict(usage) for usage in report.others.own],
    }
