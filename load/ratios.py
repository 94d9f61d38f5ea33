#!/usr/bin/env python3
"""Four ratios: streams on one link against gevent with one TCP connection per stream.

Method, and how to read the table, are in load/README.md. In short: a client and a server process,
each pinned to a core, the baseline and ours in turn in every round, the same handler and the same
load generator for both; the ratio is taken per round, and what counts is the median of these.
Numbers for information: the exit status says whether the run came to its end, not whether they
please.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gevent
import gevent.event
import gevent.fileobject
import gevent.queue
import gevent.server
import gevent.socket
import psutil

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

BASELINE, OURS = "gevent", "astranet"
MESSAGE = b"x" * 64
CHURNERS = 100  # greenlets that open, echo and close; also how many open the idle streams at once
# Opened before memory is read for the first time: buffers and tables of both processes exist then.
WARM_IDLE = 1000
# Idle connections of the baseline: there are about 28,000 ephemeral ports, some in TIME_WAIT.
MAX_IDLE_CONNECTIONS = 15_000
SPARE_DESCRIPTORS = 200
STEP_LIMIT = 30.0  # seconds for a step that ought to be short: start, join, finish
OPENING_LIMIT = 300.0  # seconds for opening the idle streams (100,000 take about 10 s)
NOISY_SPREAD = 0.3  # (max - min) / median of the ratios
NOISY_OTHERS = 0.15  # cores used by other programs


# --- both kinds of transport (in the children) ------------------------------------------------


class Conn(Protocol):
    """What the handler and the load generator use of a socket or a stream."""

    def sendall(self, data: bytes, /) -> Any: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Transport(Protocol):
    """One kind of connection: a server offers "echo" and "idle", a client dials them."""

    held: Held

    def serve(self) -> Any:
        """Offer both services; return what reach() wants, as JSON can carry it."""

    def reach(self, where: Any) -> None: ...

    def dial(self, service: str) -> Conn: ...


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


def echo(stream: Conn, _address: Any) -> None:
    """The handler: the same code for both kinds."""
    try:
        while data := stream.recv(65536):
            stream.sendall(data)
    except ConnectionError:
        return  # the client was stopped in the middle of a round


def echo_tcp(sock: Any, address: Any) -> None:
    """echo() over TCP, with what every careful TCP program sets."""
    sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
    echo(sock, address)


class TcpTransport:
    """The baseline: gevent, one TCP connection per stream, as people write it."""

    def __init__(self) -> None:
        self.held = Held()
        self._ports: dict[str, int] = {}

    def serve(self) -> Any:
        server = gevent.server.StreamServer(("127.0.0.1", 0), echo_tcp)
        server.start()
        idle = gevent.socket.socket()  # not create_server(): gevent leaves the stdlib's, which blocks
        idle.bind(("127.0.0.1", 0))
        idle.listen(1024)
        gevent.spawn(self.held.accept_from, idle)
        return {"echo": server.server_port, "idle": idle.getsockname()[1]}

    def reach(self, where: Any) -> None:
        self._ports = where

    def dial(self, service: str) -> Conn:
        # Not create_connection(): it resolves the address, which must not count against a baseline.
        sock = gevent.socket.socket()
        sock.connect(("127.0.0.1", self._ports[service]))
        sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        return sock  # type: ignore[no-any-return, unused-ignore]


class MeshTransport:
    """Ours: every stream on one link, dialled by service name."""

    def __init__(self) -> None:
        self.held = Held()
        self._mesh: Any = None

    def serve(self) -> Any:
        from astranet_gevent import AstraNet, Role
        from astranet_gevent.server import StreamServer

        self._mesh = AstraNet(role=Role.SERVER)
        self._mesh.start()
        listener = self._mesh.listen(("127.0.0.1", 0))
        StreamServer(self._mesh.bind("echo"), echo).start()
        gevent.spawn(self.held.accept_from, self._mesh.bind("idle"))
        return list(listener.address)

    def reach(self, where: Any) -> None:
        from astranet_gevent import AstraNet, Role

        self._mesh = AstraNet(role=Role.CLIENT)
        self._mesh.start()
        self._mesh.join(tuple(where)).wait_ready(STEP_LIMIT)
        for service in ("echo", "idle"):
            self._mesh.service_map.wait_for(service, STEP_LIMIT)

    def dial(self, service: str) -> Conn:
        return self._mesh.dial(service)  # type: ignore[no-any-return]


TRANSPORTS: dict[str, Callable[[], Transport]] = {BASELINE: TcpTransport, OURS: MeshTransport}


# --- the load generator (in the client) -------------------------------------------------------


@dataclass(slots=True)
class Load:
    """What the greenlets of one measurement share."""

    running: bool = True
    count: int = 0


def exchange(stream: Conn) -> None:
    """One message there and back."""
    stream.sendall(MESSAGE)
    missing = len(MESSAGE)
    while missing:
        data = stream.recv(missing)
        if not data:
            raise ConnectionError("the server ended an echo stream")
        missing -= len(data)


def echo_on(load: Load, stream: Conn) -> None:
    while load.running:
        exchange(stream)
        load.count += 1


def churn_on(load: Load, transport: Transport) -> None:
    while load.running:
        stream = transport.dial("echo")
        try:
            exchange(stream)
        finally:
            stream.close()
        load.count += 1


def rate(load: Load, greenlets: list[Any], warm: float, seconds: float) -> float:
    """Counts per second of a load that its greenlets are already making."""
    failed = gevent.event.Event()
    for greenlet in greenlets:
        greenlet.link_exception(lambda _: failed.set())
    failed.wait(warm)
    before, start = load.count, time.perf_counter()
    failed.wait(seconds)
    result = (load.count - before) / (time.perf_counter() - start)
    load.running = False
    gevent.joinall(greenlets, timeout=STEP_LIMIT, raise_error=True)
    if stuck := sum(not greenlet.ready() for greenlet in greenlets):
        raise TimeoutError(f"{stuck} of {len(greenlets)} greenlets wait for an answer")
    return result


def measure_echoes(transport: Transport, streams: int, warm: float, seconds: float) -> dict[str, float]:
    load = Load()
    conns = [transport.dial("echo") for _ in range(streams)]
    greenlets = [gevent.spawn(echo_on, load, conn) for conn in conns]
    result = rate(load, greenlets, warm, seconds)
    for conn in conns:
        conn.close()
    return {"rate": result}


def measure_round_trip(transport: Transport, warm: float, seconds: float) -> dict[str, float]:
    stream = transport.dial("echo")
    clock = time.perf_counter
    end = clock() + warm
    while clock() < end:
        exchange(stream)
    times = []
    end = clock() + seconds
    while (start := clock()) < end:
        exchange(stream)
        times.append(clock() - start)
    stream.close()
    times.sort()
    return {"p50": times[len(times) // 2] * 1e6, "p99": times[len(times) * 99 // 100] * 1e6}


def measure_churn(transport: Transport, warm: float, seconds: float) -> dict[str, float]:
    load = Load()
    greenlets = [gevent.spawn(churn_on, load, transport) for _ in range(CHURNERS)]
    return {"rate": rate(load, greenlets, warm, seconds)}


def hold(transport: Transport, count: int) -> None:
    """Client: have `count` idle streams open."""
    held = transport.held
    tickets = iter(range(count - len(held.streams)))

    def open_some() -> None:
        for _ in tickets:  # shared: each greenlet takes the next
            held.add(transport.dial("idle"))

    openers = [gevent.spawn(open_some) for _ in range(CHURNERS)]
    gevent.joinall(openers, timeout=OPENING_LIMIT, raise_error=True)
    held.wait_for(count, 0.0)


def accepted(transport: Transport, count: int) -> None:
    """Server: wait until `count` idle streams have been accepted."""
    transport.held.wait_for(count, OPENING_LIMIT)


def memory(_transport: Transport) -> int:
    """Bytes of this process: PSS where the platform tells it, else RSS."""
    gc.collect()
    info = psutil.Process().memory_full_info()
    return int(getattr(info, "pss", info.rss))


# --- a child: one end of one kind -------------------------------------------------------------

COMMANDS: dict[str, Callable[..., Any]] = {
    "serve": lambda transport: transport.serve(),
    "reach": lambda transport, where: transport.reach(where),
    "echoes": measure_echoes,
    "round_trip": measure_round_trip,
    "churn": measure_churn,
    "hold": hold,
    "accepted": accepted,
    "memory": memory,
}


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


def child(kind: str, core: int | None) -> None:
    """Obey orders from stdin, answer on stdout: {"value": ...} or {"error": ...}."""
    pin(core)
    descriptor_limit(raise_it=True)
    transport = TRANSPORTS[kind]()
    for order in orders():
        limit = order.pop("limit")
        # The last resort, a thread of its own, if this process never yields to hear its parent end.
        # It stays armed between orders, while the other side is at work for OPENING_LIMIT at most.
        faulthandler.dump_traceback_later(limit + 2 * OPENING_LIMIT, exit=True)
        try:
            with gevent.Timeout(limit, TimeoutError(f"no end within {limit:.0f} s")):
                answer = {"value": COMMANDS[order.pop("do")](transport, **order)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


# --- the parent: children, rounds, table ------------------------------------------------------


class ChildFailed(Exception):
    """A child ended, reported an error, or did not answer in time."""


class Child:
    """A child process and the pipe to it."""

    def __init__(self, kind: str, side: str, core: int | None) -> None:
        self._name = f"{kind} {side}"
        command = [sys.executable, __file__, "--child", kind]
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

    def cpu_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

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


@dataclass
class Others:
    """How much of the machine other programs took while ours were measured."""

    seconds: float = 0.0
    elapsed: float = 0.0

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
    """A server and a client of one kind, new for every measurement."""

    def __init__(self, kind: str, cores: tuple[int | None, int | None], others: Others) -> None:
        self.kind = kind
        self._others = others
        self._children: list[Child] = []
        self._cores = cores

    def __enter__(self) -> Pair:
        try:
            for side, core in zip(("server", "client"), self._cores, strict=True):
                self._children.append(Child(self.kind, side, core))
            self.server, self.client = self._children
            self.client.ask("reach", where=self.server.ask("serve"))
            self._start, self._busy = time.monotonic(), Others.busy()
            self._cpu = self.cpu_seconds()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._others.elapsed += time.monotonic() - self._start
                own = self.cpu_seconds() - self._cpu
                self._others.seconds += Others.busy() - self._busy - own
        finally:
            self._stop()

    def cpu_seconds(self) -> float:
        return sum(child.cpu_seconds() for child in self._children)

    def _stop(self) -> None:
        for one in reversed(self._children):
            one.stop()


@dataclass(frozen=True)
class Plan:
    rounds: int
    streams: int
    idle: int
    baseline_idle: int
    warm: float
    seconds: float


def run_echoes(pair: Pair, plan: Plan) -> dict[str, float]:
    answer = pair.client.ask("echoes", 120.0, streams=plan.streams, warm=plan.warm, seconds=plan.seconds)
    return {"echoes": answer["rate"]}


def run_round_trip(pair: Pair, plan: Plan) -> dict[str, float]:
    answer = pair.client.ask("round_trip", 120.0, warm=plan.warm, seconds=plan.seconds)
    return {"rtt": answer["p50"]}


def run_churn(pair: Pair, plan: Plan) -> dict[str, float]:
    answer = pair.client.ask("churn", 120.0, warm=plan.warm, seconds=plan.seconds)
    return {"churn": answer["rate"]}


def run_memory(pair: Pair, plan: Plan) -> dict[str, float]:
    """Growth of each process per idle stream, from the state in which it already had some."""
    sides = {"memory client": pair.client, "memory server": pair.server}
    before: dict[str, int] = {}
    more = plan.idle if pair.kind == OURS else plan.baseline_idle
    for count in (WARM_IDLE, WARM_IDLE + more):
        pair.client.ask("hold", OPENING_LIMIT, count=count)
        pair.server.ask("accepted", OPENING_LIMIT, count=count)
        now = {name: side.ask("memory", OPENING_LIMIT) for name, side in sides.items()}
        if not before:
            before = now
    return {name: (now[name] - before[name]) / more for name in sides}


SCENARIOS: dict[str, Callable[[Pair, Plan], dict[str, float]]] = {
    "echoes": run_echoes,
    "rtt": run_round_trip,
    "churn": run_churn,
    "memory": run_memory,
}


@dataclass
class Row:
    """One requirement, and what the rounds gave."""

    name: str
    title: str
    asked: str
    met: Callable[[Row], bool]
    values: dict[str, list[float]] = field(default_factory=lambda: {BASELINE: [], OURS: []})

    @property
    def ratios(self) -> list[float]:
        return [ours / base for base, ours in zip(*self.values.values(), strict=False)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def noisy(self) -> bool:
        return (max(self.ratios) - min(self.ratios)) / self.ratio > NOISY_SPREAD

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "asked": self.asked,
            "values": self.values,
            "ratios": self.ratios,
            "ratio": self.ratio,
            "met": self.met(self),
            "noisy": self.noisy,
        }


def rows_of(plan: Plan) -> list[Row]:
    return [
        Row("echoes", f"echoes/s, {plan.streams} streams", ">= 3 x", lambda row: row.ratio >= 3.0),
        Row("rtt", "round trip p50 (us), 1 stream", "<= 1.3 x", lambda row: row.ratio <= 1.3),
        Row(
            "churn",
            f"open+echo+close /s, {CHURNERS} at a time",
            ">= 2 x",
            lambda row: row.ratio >= 2.0,
        ),
        *(
            Row(
                f"memory {side}",
                f"bytes per idle stream, {side}",
                "<= 1000 B",
                lambda row: statistics.median(row.values[OURS]) <= 1000.0,
            )
            for side in ("client", "server")
        ),
    ]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_rounds(plan: Plan, names: list[str], cores: tuple[int | None, int | None]) -> Report:
    """Every scenario, round by round; which kind goes first alternates."""
    report = Report(rows_of(plan), Others())
    for name in names:
        for number in range(plan.rounds):
            kinds = (BASELINE, OURS) if number % 2 == 0 else (OURS, BASELINE)
            for kind in kinds:
                with Pair(kind, cores, report.others) as pair:
                    result = SCENARIOS[name](pair, plan)
                shown = ", ".join(f"{key} {value:,.0f}" for key, value in result.items())
                say(f"round {number + 1}/{plan.rounds}  {kind:9}{shown}")
                for key, value in result.items():
                    report.row(key).values[kind].append(value)
    return report


@dataclass
class Report:
    rows: list[Row]
    others: Others

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if row.ratios]

    def table(self) -> str:
        lines: list[tuple[str, ...]] = [("", BASELINE, OURS, "ratio", "asked", "met")]
        for row in self.measured:
            sides = [spread(row.values[kind], ",.0f") for kind in (BASELINE, OURS)]
            met = "yes" if row.met(row) else "no"
            lines.append((row.title, *sides, spread(row.ratios, ".2f"), row.asked, met))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)

    def warnings(self) -> Iterator[str]:
        if self.others.cores > NOISY_OTHERS:
            yield f"noisy: other programs used {self.others.cores:.2f} cores: do not quote this run"
        for row in self.measured:
            if row.noisy:
                yield f"noisy: the ratios of '{row.title}' spread over more than {NOISY_SPREAD:.0%}"


def spread(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return f"{statistics.median(values):{form}} ({low}..{high})"


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def surroundings(cores: tuple[int | None, int | None]) -> dict[str, str]:
    pinned = "not pinned" if None in cores else "server on core {}, client on core {}".format(*cores)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gevent": f"{gevent.__version__} ({gevent.get_hub().loop.__class__.__module__})",
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores, {pinned}",
        "system": f"{platform.system()} {platform.release()}",
    }


def pick_cores() -> tuple[int | None, int | None]:
    """A core each for server and client, or none where that is not possible."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


def plan_of(options: argparse.Namespace) -> Plan:
    rounds = options.rounds or (3 if options.quick else 5)
    idle = options.idle_streams or (10_000 if options.quick else 100_000)
    free = descriptor_limit() - SPARE_DESCRIPTORS - WARM_IDLE
    return Plan(
        rounds=rounds,
        streams=options.streams,
        idle=idle,
        baseline_idle=min(idle, free, MAX_IDLE_CONNECTIONS),
        warm=0.5 if options.quick else 1.0,
        seconds=1.0 if options.quick else 3.0,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short rounds: a look, not a result")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5; with --quick 3")
    parser.add_argument("--streams", type=int, default=1000, metavar="N", help="echoing at once")
    parser.add_argument("--idle-streams", type=int, metavar="N", help="default 100,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME")
    parser.add_argument("--child", choices=TRANSPORTS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        child(options.child, options.core)
        return 0
    plan, cores = plan_of(options), pick_cores()
    facts = surroundings(cores)
    print("\n".join(f"{name:7} {value}" for name, value in facts.items()), flush=True)
    try:
        report = run_rounds(plan, options.only or list(SCENARIOS), cores)
    except ChildFailed as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    print(f"\n{report.table()}\n")
    print(f"median (min..max) of {plan.rounds} rounds; a ratio is ours / {BASELINE}'s of one round")
    if plan.baseline_idle < plan.idle and report.row("memory client").ratios:
        fewer = f"{plan.idle:,} streams, but {plan.baseline_idle:,} connections"
        print(f"idle: {fewer} (descriptors, ports)")
    print("\n".join(report.warnings()) or "quiet enough to trust")
    if options.json:
        content = {**facts, "plan": asdict(plan), "others_cores": report.others.cores}
        content["rows"] = [row.as_json() for row in report.measured]
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
