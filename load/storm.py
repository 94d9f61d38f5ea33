#!/usr/bin/env python3
"""Many nodes lose their router at once and come back: killed, started again at the same address after a while, and so some times.

Measured from the kill: until all have noticed. From the moment at which the router listens again: until all have joined, can call a
service, and know all services; how they spread, and what it costs the router. After every storm each node exchanges bytes with services.
Nothing may be left over: what the processes hold after the last storm is compared with what they held after the first. There is no
--address: the router has to be ours.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from endurance import BOUNDS, Bound, Check, Facts, Record, held_text, perform
from harness import STEP_LIMIT, Child, file_to_write, positive, say, whole

CROWD = str(Path(__file__).resolve().parent / "crowd.py")
UP = 6.0  # seconds
SERVICES_SHARE = 10  # every tenth node offers the service

# Of one process, between the end of the first storm and that of the last: a link that stays behind is some 5 kB in 50 blocks.
STORM_BOUNDS = {**BOUNDS, "memory": Bound(4e6, 20e3), "heap": Bound(96e3, 500e3), "blocks": Bound(500, 5000)}
# What a link reads into, in bytes, and what it reads into while parts of that are held: counted in the heap like everything else, but in
# memory only as far as it has been written to, which is different after every storm.
READ_BUFFERS = 2 * 256 * 1024


class Router(Child):
    """A router that can be killed."""

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


class Storms:
    """The processes, and what they go through."""

    def __init__(self, options: argparse.Namespace, script: str) -> None:
        self.options = options
        self._script = script
        self._router: Router | None = None
        # When all were back the last time.
        self._complete = 0.0
        self._crowds: list[Child] = []
        # Of all processes after each storm.
        self._facts: list[dict[str, Facts]] = []
        self._rows: list[dict[str, Any]] = []
        self._failures: Counter[str] = Counter()
        # Exchanges that failed before the first storm; None until they were made.
        self._failed_before: int | None = None
        self.record = Record("storm", {name: value for name, value in vars(options).items() if name != "json"})

    def run(self) -> int:
        """The exit status."""
        return perform(self.record, self._work, self._finish, self.options.json)

    def _work(self) -> None:
        try:
            address = self._begin()
            for number in range(self.options.storms):
                address = self._storm(number + 1, address)
        finally:
            for child in (*self._crowds, self._router):
                if child is not None:
                    child.stop()

    def _begin(self) -> list[Any]:
        """Start all processes; the router's address."""
        options = self.options
        address = self._start_router([router_host(), 0])
        sizes = [len(range(number, options.clients, options.processes)) for number in range(options.processes)]
        self._offering = [max(1, size // SERVICES_SHARE) for size in sizes]
        for size, offering in zip(sizes, self._offering, strict=True):
            self._crowds.append(Child(self._script, "crowd", str(len(self._crowds) + 1), None))
            self._crowds[-1].ask("gather", options.limit, address=address, nodes=size, offering=offering)
        self._complete = time.monotonic()
        self._failed_before = self._exchange()
        say(f"{options.clients} nodes in {options.processes} processes, {sum(self._offering)} of them offer a service")
        return address

    def _start_router(self, address: list[Any]) -> list[Any]:
        self._router = Router(self._script, "router", "", None)
        bound: list[Any] = self._router.ask("listen", host=address[0], port=address[1])
        return bound

    def _storm(self, number: int, address: list[Any]) -> list[Any]:
        options, router = self.options, self._router
        assert router is not None
        time.sleep(max(0.0, self._complete + options.up - time.monotonic()))
        for crowd in self._crowds:
            crowd.ask("watch", offered=sum(self._offering), seconds=options.limit + options.down)
        killed = time.monotonic()
        router.kill()
        missing = 0
        for crowd in self._crowds:
            left = max(0.0, killed + options.limit - time.monotonic())
            missing += crowd.ask("lost", left + STEP_LIMIT, seconds=left)
        time.sleep(max(0.0, killed + options.down - time.monotonic()))
        address = self._start_router(address)
        returned = time.monotonic()
        assert self._router is not None
        cpu = self._router.cpu_seconds()
        seen = [one for crowd in self._crowds for one in crowd.ask("back", options.limit + 2 * STEP_LIMIT, seconds=options.limit)]
        self._complete = time.monotonic()
        cpu = self._router.cpu_seconds() - cpu
        row = storm_row(seen, killed, returned)
        row |= {"storm": number, "cpu": cpu, "unnoticed": missing, **self._router.ask("load")}
        self._failures.update(one["error"] for one in seen if one["error"])
        self._rows.append(row)
        self._rows[-1]["exchanges failed"] = self._exchange()
        self._facts.append({f"nodes {place + 1}": crowd.ask("facts") for place, crowd in enumerate(self._crowds)})
        say(progress_line(row, {**self._facts[-1], "router": self._router.ask("facts")}))
        return address

    def _exchange(self) -> int:
        """Let every node exchange bytes with a service; how many failed."""
        failed = [text for crowd in self._crowds for text in crowd.ask("exchange", self.options.limit + STEP_LIMIT)]
        self._failures.update(failed)
        return len(failed)

    def _finish(self) -> None:
        record = self.record
        if self._failed_before is not None:
            record.checks.append(Check("exchanges that failed, before the storms", self._failed_before, 0))
        for row in self._rows:
            storm = f"storm {row['storm']}"
            record.checks.append(Check(f"nodes that did not notice, {storm}", row["unnoticed"], 0))
            record.checks.append(Check(f"nodes that did not come back, {storm}", row["not back"], 0))
            record.checks.append(Check(f"exchanges that failed, {storm}", row["exchanges failed"], 0))
        if len(self._facts) > 1:
            record.checks += left_over(self._facts, self.options)
        elif not record.failure:
            record.notes.append("what is left over is not judged: that takes two storms")
        record.notes += [f"{count} times: {text}" for text, count in self._failures.items()]
        record.tables["seconds from the kill (lost) and from the router's return; median .. last:"] = storms_table(self._rows)
        record.values["storms"], record.values["facts"] = self._rows, self._facts


def left_over(facts: list[dict[str, Facts]], options: argparse.Namespace) -> list[Check]:
    """What each process held after the last storm against what it held after the first."""
    nodes = options.clients / options.processes
    rejoins = (len(facts) - 1) * nodes
    checks = []
    for process, first in facts[0].items():
        for what, bound in STORM_BOUNDS.items():
            limit = bound.limit(rejoins) + (nodes * READ_BUFFERS if what == "memory" else 0)
            checks.append(Check(f"growth of {what}, {process}", facts[-1][process][what] - first[what], limit))
    return checks


def storm_row(seen: list[dict[str, Any]], killed: float, returned: float) -> dict[str, Any]:
    """One storm in numbers; -1 where nobody has come so far."""
    row: dict[str, Any] = {"not back": sum("complete" not in one for one in seen)}
    for stage in ("lost", "joined", "called", "complete"):
        since = killed if stage == "lost" else returned
        times = sorted(one[stage] - since for one in seen if stage in one)
        row[f"{stage} median"], row[stage] = (statistics.median(times), times[-1]) if times else (-1.0, -1.0)
    joined = Counter(int((one["joined"] - returned) * 10) for one in seen if "joined" in one)
    row["most at once"] = max(joined.values(), default=0)
    row["attempts"] = statistics.mean(one["attempts"] for one in seen)
    return row


def progress_line(row: dict[str, Any], facts: dict[str, Facts]) -> str:
    """One line about a storm."""
    held = " | ".join(f"{name} {held_text(values)}" for name, values in facts.items())
    return (
        f"storm {row['storm']}: noticed {row['lost']:.2f} s, joined {row['joined']:.1f} s, complete {row['complete']:.1f} s, "
        f"{row['not back'] + row['exchanges failed']} failed | {held}"
    )


def storms_table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each storm."""
    head = ("storm", "lost", "joined", "called", "complete", "attempts each", "joined in 0.1 s, at most", "router CPU s", "refused")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        times = (f"{row[f'{stage} median']:.2f} .. {row[stage]:.2f}" for stage in ("lost", "joined", "called", "complete"))
        lines.append(
            (str(row["storm"]), *times, f"{row['attempts']:.1f}", str(row["most at once"]), f"{row['cpu']:.2f}", str(row["refused"]))
        )
    return lines


def router_host() -> str:
    """An address of loopback that no connection of ours comes from.

    While nobody listens at a port that the system has chosen, a connection from that very port to itself would succeed (TCP's simultaneous
    open): one attempt in 28,000, and it would hold the port when the router wants it back.
    """
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
    except OSError:
        return "127.0.0.1"  # not everywhere is all of 127.0.0.0/8 there
    return "127.0.0.2"


def main(arguments: list[str] | None = None, script: str = CROWD) -> int:
    """The exit status. ``script`` is what the processes run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storms", type=whole, default=3, metavar="N", help="how often (3)")
    parser.add_argument("--clients", type=whole, default=100, metavar="N", help="nodes (100); every tenth offers a service")
    parser.add_argument("--processes", type=whole, default=4, metavar="N", help="that hold them (4)")
    parser.add_argument("--down", type=positive, default=3.0, metavar="SECONDS", help="from the kill until the router is started again (3)")
    held = f"for which it stays up between two storms ({UP:g}; a node that had a link for less than 5 counts on with its back-off)"
    parser.add_argument("--up", type=positive, default=UP, metavar="SECONDS", help=held)
    parser.add_argument("--limit", type=positive, default=60.0, metavar="SECONDS", help="for all to come back (60)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write everything there too")
    options = parser.parse_args(arguments)
    if options.processes > options.clients:
        parser.error(f"{options.clients} clients cannot fill {options.processes} processes")
    return Storms(options, script).run()


if __name__ == "__main__":
    sys.exit(main())
