#!/usr/bin/env python3
"""Sockets of patched programs: requests on the mesh against TCP, memory, and what the patch costs those who do not use it.

Method, and how to read the table, are in load/README.md. The exit status says whether the run came to its end, not whether it pleases.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
from harness import OPENING_LIMIT, Cores, Numbers, Others, Pair, Report, Row
from scenarios.http import requested

KINDS = ("plain", "patched")
GREENLETS = (1, 32)
ENDS = str(Path(__file__).resolve().parent / "patched_ends.py")
# How the cost for others is compared: processes of both kinds, side by side, take turns for this many slices each of a row's time. Short
# ones: the machine's speed changes. Several pairs of processes for each round: two of the same kind differ by some per cent, for as long as
# they live.
SLICES = 25
PAIRS = 4
OTHERS = {
    "connect number": "connects/s to 127.0.0.1",
    "connect name": "connects/s to localhost",
    "socket": "sockets made and closed /s",
    "accept": "accepts/s",
}


@dataclass(frozen=True)
class Plan:
    rounds: int
    connections: int
    warm: float
    seconds: float


def run_http(pair: Pair, plan: Plan, greenlets: int) -> dict[str, float]:
    """Requests per second, and the processor time of a request in either process (microseconds)."""
    window = requested(pair, greenlets, plan.warm, plan.seconds)
    per_request = 1e6 / window.client["count"]
    return {
        f"http {greenlets}": window.rate,
        f"client {greenlets}": window.client["cpu"] * per_request,
        f"server {greenlets}": window.server["cpu"] * per_request,
    }


def run_memory(pair: Pair, plan: Plan) -> dict[str, float]:
    """Growth of each process per idle connection, from the state in which it already had some."""
    sides = {"client": pair.client, "server": pair.server}
    warm = max(1, plan.connections // 5)
    used: list[dict[str, Any]] = []
    for count in (warm, warm + plan.connections):
        pair.client.ask("hold", OPENING_LIMIT, count=count)
        pair.server.ask("accepted", OPENING_LIMIT, count=count)
        used.append({name: side.ask("used", OPENING_LIMIT) for name, side in sides.items()})
    before, after = used
    result = {}
    for name in sides:
        for what in ("memory", "descriptors"):
            growth = after[name][what] - before[name][what]
            result[f"{what} {name}"] = growth / plan.connections if what == "memory" else growth
    return result


def http(greenlets: int, plan: Plan, cores: Cores, report: Report) -> Callable[[int], Numbers]:
    def one_round(number: int) -> Numbers:
        for kind in harness.in_turn(KINDS, number):
            with Pair(ENDS, f"http {kind}", cores, report.others) as pair:
                result = run_http(pair, plan, greenlets)
            yield kind, result

    return one_round


def memory(plan: Plan, cores: Cores, report: Report) -> Callable[[int], Numbers]:
    def one_round(number: int) -> Numbers:
        for kind in harness.in_turn(KINDS, number):
            with Pair(ENDS, f"memory {kind}", cores, report.others) as pair:
                result = run_memory(pair, plan)
            yield kind, result

    return one_round


def others(plan: Plan, cores: Cores, report: Report) -> Callable[[int], Numbers]:
    def one_round(_number: int) -> Numbers:
        rates: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in OTHERS}
        for _ in range(PAIRS):
            with contextlib.ExitStack() as stack:
                pairs = [stack.enter_context(Pair(ENDS, f"others {kind}", cores, Others())) for kind in KINDS]
                stack.enter_context(watched(pairs, report.others))
                for what in OTHERS:
                    for number, rate in take_turns(pairs, what, plan.seconds / SLICES / PAIRS / 2):
                        rates[what][number].append(rate)
        for what, (plain, patched) in rates.items():
            base = statistics.median(plain)
            ratio = statistics.median(ours / theirs for theirs, ours in zip(plain, patched, strict=True))
            # Of slices next to each other: the machine's speed is nearly the same for both.
            for kind, value in zip(KINDS, (base, base * ratio), strict=True):
                yield kind, {what: value}

    return one_round


def take_turns(pairs: Sequence[Pair], what: str, seconds: float) -> Iterator[tuple[int, float]]:
    """The rates of both kinds, slice by slice, with the kind's number; the first slices warm up."""
    for number in range(-1, SLICES):
        for kind in (0, 1) if number % 2 else (1, 0):
            rate = pairs[kind].client.ask("measure", OPENING_LIMIT, what=what, seconds=seconds)
            if number >= 0:
                yield kind, rate


@contextlib.contextmanager
def watched(pairs: Sequence[Pair], others: Others) -> Iterator[None]:
    """Count what other programs use meanwhile: each of several pairs by itself would take the rest for those."""
    start, busy, own = time.monotonic(), Others.busy(), sum(pair.cpu_seconds() for pair in pairs)
    yield
    others.elapsed += time.monotonic() - start
    others.seconds += Others.busy() - busy - (sum(pair.cpu_seconds() for pair in pairs) - own)


def rows_of(plan: Plan) -> list[Row]:
    rows = []
    for greenlets in GREENLETS:
        many = f"{greenlets} greenlet{'s' if greenlets > 1 else ''}"
        rows.append(Row(f"http {greenlets}", f"requests/s, {many}", ">= 0.95 x", lambda row: row.median >= 0.95, KINDS))
        rows += [Row(f"{side} {greenlets}", f"CPU us per request, {side}, {many}", "", None, KINDS) for side in ("client", "server")]
    for side in ("client", "server"):
        rows.append(Row(f"memory {side}", f"bytes per connection, {side}", "<= +3000", lambda row: row.median <= 3000, KINDS, "difference"))
        title = f"descriptors of {plan.connections} connections, {side}"
        rows.append(Row(f"descriptors {side}", title, "<= +0", lambda row: row.median <= 0, KINDS, "difference"))
    # Noisy when the bound would be lost in the spread.
    rows += [Row(name, title, ">= 0.97 x", lambda row: row.median >= 0.97, KINDS, noisy_spread=0.06) for name, title in OTHERS.items()]
    return rows


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan = Plan(
        rounds=harness.rounds_of(options),
        connections=options.connections or (1000 if options.quick else 5000),
        warm=0.5 if options.quick else 1.0,
        seconds=options.seconds or (1.0 if options.quick else 4.0),
    )
    cores = harness.pick_cores()
    report = Report(rows_of(plan))
    scenarios = {
        **{f"http-{greenlets}": http(greenlets, plan, cores, report) for greenlets in GREENLETS},
        "memory": memory(plan, cores, report),
        "others": others(plan, cores, report),
    }
    return harness.run(options, report, cores, scenarios, asdict(plan))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [*(f"http-{greenlets}" for greenlets in GREENLETS), "memory", "others"]
    parser = harness.parser_of((__doc__ or "").partition("\n")[0], names)
    parser.add_argument("--seconds", type=harness.positive, metavar="S", help="of each measurement: default 4; with --quick 1")
    parser.add_argument("--connections", type=harness.whole, metavar="N", help="idle: default 5000; with --quick 1000")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
