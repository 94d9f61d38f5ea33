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
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import gevent
import gevent.event
import gevent.server
import gevent.socket
import harness
from harness import CHURNERS, MAX_IDLE_CONNECTIONS, OPENING_LIMIT, SPARE_DESCRIPTORS, STEP_LIMIT, Conn, Held, Numbers, Pair, Report, Row

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

BASELINE, OURS = KINDS = ("gevent", "astranet")
MESSAGE = b"x" * 64
# Opened before memory is read for the first time: buffers and tables of both processes exist then.
WARM_IDLE = 1000


# --- both kinds of transport (in the children) ------------------------------------------------


class Transport(Protocol):
    """One kind of connection: a server offers "echo" and "idle", a client dials them."""

    held: Held

    def serve(self) -> Any:
        """Offer both services; return what reach() wants, as JSON can carry it."""

    def reach(self, where: Any) -> None: ...

    def dial(self, service: str) -> Conn: ...


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
    transport.held.open_until(count, lambda: transport.dial("idle"))


def accepted(transport: Transport, count: int) -> None:
    """Server: wait until `count` idle streams have been accepted."""
    transport.held.wait_for(count, OPENING_LIMIT)


# --- a child: one end of one kind -------------------------------------------------------------


def child(kind: str, core: int | None) -> None:
    transport = TRANSPORTS[kind]()
    commands: dict[str, Callable[..., Any]] = {
        "serve": transport.serve,
        "reach": transport.reach,
        "echoes": lambda **order: measure_echoes(transport, **order),
        "round_trip": lambda **order: measure_round_trip(transport, **order),
        "churn": lambda **order: measure_churn(transport, **order),
        "hold": lambda **order: hold(transport, **order),
        "accepted": lambda **order: accepted(transport, **order),
        "memory": harness.memory,
    }
    harness.obey(commands, core)


# --- the parent: scenarios, requirements ------------------------------------------------------


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


def rows_of(plan: Plan) -> list[Row]:
    return [
        Row("echoes", f"echoes/s, {plan.streams} streams", ">= 3 x", lambda row: row.median >= 3.0, KINDS),
        Row("rtt", "round trip p50 (us), 1 stream", "<= 1.3 x", lambda row: row.median <= 1.3, KINDS),
        Row("churn", f"open+echo+close /s, {CHURNERS} at a time", ">= 2 x", lambda row: row.median >= 2.0, KINDS),
        *(
            Row(f"memory {side}", f"bytes per idle stream, {side}", "<= 1000 B", lambda row: row.ours <= 1000.0, KINDS)
            for side in ("client", "server")
        ),
    ]


def scenario(name: str, plan: Plan, cores: harness.Cores, report: Report) -> Callable[[int], Numbers]:
    """One round of a scenario: a new pair of processes for each kind."""

    def one_round(number: int) -> Numbers:
        for kind in harness.in_turn(KINDS, number):
            with Pair(__file__, kind, cores, report.others) as pair:
                result = SCENARIOS[name](pair, plan)
            yield kind, result

    return one_round


def plan_of(options: argparse.Namespace) -> Plan:
    idle = options.idle_streams or (10_000 if options.quick else 100_000)
    free = harness.descriptor_limit() - SPARE_DESCRIPTORS - WARM_IDLE
    return Plan(
        rounds=harness.rounds_of(options),
        streams=options.streams,
        idle=idle,
        baseline_idle=min(idle, free, MAX_IDLE_CONNECTIONS),
        warm=0.5 if options.quick else 1.0,
        seconds=1.0 if options.quick else 3.0,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of(__doc__.partition("\n")[0], SCENARIOS)
    parser.add_argument("--streams", type=int, default=1000, metavar="N", help="echoing at once")
    parser.add_argument("--idle-streams", type=int, metavar="N", help="default 100,000")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        child(options.child, options.core)
        return 0
    plan, cores = plan_of(options), harness.pick_cores()
    report = Report(rows_of(plan))

    def notes() -> Iterator[str]:
        if plan.baseline_idle < plan.idle and report.row("memory client").compared:
            yield f"idle: {plan.idle:,} streams, but {plan.baseline_idle:,} connections (descriptors, ports)"

    scenarios = {name: scenario(name, plan, cores, report) for name in SCENARIOS}
    return harness.run(options, report, cores, scenarios, asdict(plan), notes)


if __name__ == "__main__":
    sys.exit(main())
