#!/usr/bin/env python3
"""Streams on one link against gevent with one TCP connection per stream: one command, both in turn in one run.

Method, and how to read the table, are in load/README.md. Numbers for information: the exit status says whether the run came to its end, not
whether they please.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cgroup
import copier as copying
import harness
import plots
from harness import MAX_IDLE_CONNECTIONS, SPARE_DESCRIPTORS, Report
from peers import PEERS, installed, version
from scenarios import (
    Bench,
    Plan,
    Scenario,
    against,
    blocking,
    bulk,
    churn,
    copier,
    echoes,
    far,
    http,
    idle,
    one_way,
    pings,
    relay,
    round_trip,
    shares,
    streams,
)

SCENARIOS: dict[str, Callable[[Bench], Scenario]] = {
    "round-trip": round_trip.scenario,
    "echoes": echoes.scenario,
    "churn": churn.scenario,
    "bulk": bulk.scenario,
    "one-way": one_way.scenario,
    "pings": pings.scenario,
    "relay": relay.scenario,
    "shares": shares.scenario,
    "copier": copier.scenario,
    "far": far.scenario,
    "http": http.scenario,
    "blocking": blocking.scenario,
    "streams": streams.scenario,
    "idle": idle.scenario,
}
# Of those that not every machine can do: what keeps it from that, if anything does.
MISSING: dict[str, Callable[[], str]] = {"shares": cgroup.missing, "copier": copying.missing}
CHARTED = {"streams", "idle"}
CURVE = (1, 4, 10, 30, 100, 300, 1000, 3000, 10_000)


def plan_of(options: argparse.Namespace) -> Plan:
    idle_streams = options.idle_streams or (10_000 if options.quick else 1_000_000)
    streams = list(dict.fromkeys(options.streams or ()))
    free = harness.descriptor_limit() - SPARE_DESCRIPTORS - idle.WARM
    return Plan(
        rounds=harness.rounds_of(options),
        warm=options.seconds / 4 if options.seconds else 0.1 if options.quick else 1.0,
        seconds=options.seconds or (0.2 if options.quick else 3.0),
        streams=tuple(streams or ((1000,) if options.quick else (100, 1000, 10_000))),
        idle=idle_streams,
        baseline_idle=min(idle_streams, max(1, free), MAX_IDLE_CONNECTIONS),
        curve=tuple(streams or ((1, 30, 300) if options.quick else CURVE)),
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of((__doc__ or "").partition("\n")[0], [*SCENARIOS, *PEERS])
    parser.add_argument("--seconds", type=harness.positive, metavar="S", help="of each measurement: default 3; with --quick 0.2")
    parser.add_argument(
        "--streams", type=harness.whole, action="append", metavar="N", help="of `echoes` and `streams`, instead of their own"
    )
    parser.add_argument("--idle-streams", type=harness.whole, metavar="N", help="default 1,000,000; with --quick 10,000")
    parser.add_argument("--plot", type=harness.folder_to_make, metavar="DIR", help="draw charts there: of `streams` and of `idle`")
    parser.add_argument("--peers", action="store_true", help=f"also against what is installed of {', '.join(PEERS)}")
    options = parser.parse_args(arguments)
    options.only = options.only and list(dict.fromkeys(options.only))
    if reason := choose_peers(options):
        parser.error(reason)
    for name, reason in impossible(options.only or ()):
        parser.error(f"{name}: {reason}")
    if options.plot:
        if reason := plots.missing():
            parser.error(reason)
        if options.only and not CHARTED.intersection(options.only):
            parser.error("--plot has nothing to draw without one of " + ", ".join(sorted(CHARTED)))
    return options


def version_of_package() -> dict[str, str]:
    """What the children will import: they are the same interpreter, with the same path and environment."""
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    import astranet_gevent
    from astranet_gevent.builds import describe_build

    return {"astranet_gevent": astranet_gevent.__version__, "build": describe_build()}


def choose_peers(options: argparse.Namespace) -> str:
    """Set ``options.peers`` to the names of those to measure; what is wrong, or nothing."""
    named = [name for name in options.only or () if name in PEERS]
    wanted = named or (list(PEERS) if options.peers else [])
    missing = [name for name in wanted if not installed(name)]
    install = "pip install " + " ".join(missing)
    if missing and (named or missing == wanted):
        return f"not installed: {', '.join(missing)}: {install}, or this project with all of them: pip install -e '.[peers]'"
    if missing:
        harness.say(f"not installed and left out: {', '.join(missing)} ({install})")
    options.peers = [name for name in wanted if name not in missing]
    if options.only and not named:
        options.only += options.peers
    return ""


def impossible(wanted: Collection[str]) -> list[tuple[str, str]]:
    """Which of those scenarios cannot be measured here, and why."""
    return [(name, reason) for name, missing in MISSING.items() if name in wanted and (reason := missing())]


def left_out(scenarios: Mapping[str, Scenario]) -> Iterator[str]:
    """What was asked for and is more than can be measured here."""
    for name, scenario in scenarios.items():
        if scenario.too_many:
            numbers = ", ".join(f"{count:,}" for count in scenario.too_many)
            yield f"{name} of {numbers} streams: the baseline needs a descriptor for each, and a process has {harness.descriptor_limit():,}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan, cores = plan_of(options), harness.pick_cores()
    report = Report([])
    facts = version_of_package()
    bench = Bench(plan, cores, report.others, compiled=facts["build"].startswith("compiled"))

    def draw(content: dict[str, Any]) -> None:
        if options.plot:
            print("\n".join(f"chart: {file}" for file in plots.draw(content, options.plot)))

    wanted = options.only or [*SCENARIOS, *options.peers]
    not_here = impossible(wanted)
    made = {name: scenario(bench) for name, scenario in SCENARIOS.items() if name not in dict(not_here)}
    made.update({name: against.scenario(bench, name) for name in options.peers})
    if options.peers:
        facts["peers"] = ", ".join(map(version, options.peers))
    report.rows = [row for scenario in made.values() for row in scenario.rows]
    report.left_out = [f"{name}: {reason}" for name, reason in not_here]
    report.left_out += left_out({name: scenario for name, scenario in made.items() if name in wanted})
    return harness.run(options, report, cores, {name: scenario.one_round for name, scenario in made.items()}, asdict(plan), facts, draw)


if __name__ == "__main__":
    sys.exit(main())
