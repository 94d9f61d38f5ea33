"""What churn.py and soak.py share, and storm.py in part: processes, samples over time, how growth is judged, the summary, the exit status.

The exit status is 0 when every check holds, 1 when one does not or a process failed, 2 for wrong arguments, 130 after Ctrl-C and 143
after SIGTERM, with a summary of what was done until then.

Growth. Before every sample all traffic rests, so that nothing under way is counted, and garbage is collected. The first quarter of the
samples is left out: caches fill, tables reach their size. Of the others the median of the last third must not be above the median of the
first third by more than a slack and so much for each thousand operations between them. Medians, because one late packet must not fail a
run, nor hide a leak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import STEP_LIMIT, Child, ChildFailed, file_to_write, positive, say, surroundings, whole

FAILED, INTERRUPTED = 1, 130
PARTIES = str(Path(__file__).resolve().parent / "parties.py")
Facts = dict[str, float]

WARM_UP = 0.25  # share of the samples
LEAST_SAMPLES = 6  # after the warm-up: two in each third
# With those of the warm-up. A run that is short for its machine takes longer, so that growth can be judged in any.
ALL_SAMPLES = 8
GOING_BACK = 5.0  # seconds in which everything is back where it was, after the end of all traffic
REST_LIMIT = 65.0  # seconds until all operations have ended: they have 30 each (traffic.py), and then some


# --- checks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A value and its limit."""

    name: str
    #: None: nobody has looked.
    value: float | None
    limit: float
    #: The value must not be below the limit, instead of not above it.
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        """None: not checked."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def cells(self) -> tuple[str, ...]:
        value = "-" if self.value is None else f"{self.value:,.10g}"
        verdict = {True: "ok", False: "FAILED", None: "not checked"}[self.holds]
        return self.name, value, f"{'>=' if self.at_least else '<='} {self.limit:,.10g}", verdict

    def __str__(self) -> str:
        """Of one that does not hold."""
        return f"{self.name} is {self.value:,.10g}, not {'at least' if self.at_least else 'at most'} {self.limit:,.10g}"


@dataclass(frozen=True)
class Bound:
    """How far something may grow: by ``slack`` however long the run, and by ``rate`` for each thousand operations."""

    slack: float
    rate: float = 0.0

    def limit(self, operations: float) -> float:
        """The most growth during so many operations."""
        return round(self.slack + self.rate * operations / 1000)


# A kilobyte for each thousand operations is found after some 100,000 of them, which is a minute or two: as heap where it is one object, as
# blocks where it is several small ones. Runs without a leak have shown a third of these slacks.
BOUNDS: dict[str, Bound] = {
    "memory": Bound(4e6, 300),  # bytes: PSS, else RSS
    "heap": Bound(64e3, 300),  # bytes in use as malloc() counts them (glibc): what is larger than 512 bytes
    "blocks": Bound(200, 1.0),  # objects of at most 512 bytes, as Python counts them
    "descriptors": Bound(0),
    "greenlets": Bound(0),
    "streams": Bound(0),
    "entries": Bound(0),  # of a node's other tables: dials, services, routes, pairs in a relay
}
# These are looked at again after the end: each has to be where it was before the traffic.
RETURNING = ("descriptors", "greenlets", "streams", "entries")


def parse_bound(text: str) -> tuple[str, Bound]:
    """``WHAT=SLACK`` or ``WHAT=SLACK,RATE``."""
    what, _, numbers = text.partition("=")
    try:
        bound = Bound(*map(float, numbers.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not WHAT=SLACK or WHAT=SLACK,RATE") from error
    if not math.isfinite(bound.slack) or not math.isfinite(bound.rate):
        raise argparse.ArgumentTypeError(f"{text!r} is no bound: its numbers have to be finite")
    if what not in BOUNDS:
        raise argparse.ArgumentTypeError(f"{what!r} is not one of {', '.join(BOUNDS)}")
    return what, bound


@dataclass(frozen=True)
class Sample:
    """What all processes held while all traffic rested."""

    seconds: float
    operations: int
    facts: dict[str, Facts]


def growth_checks(samples: list[Sample], bounds: dict[str, Bound]) -> Iterator[Check]:
    """A check for each process and each fact; none when there are too few samples to tell."""
    judged = samples[int(len(samples) * WARM_UP) :]
    if len(judged) < LEAST_SAMPLES:
        return
    third = len(judged) // 3
    first, last = judged[:third], judged[-third:]
    operations = statistics.median(sample.operations for sample in last) - statistics.median(sample.operations for sample in first)
    for process in judged[0].facts:
        for what, bound in bounds.items():
            start, end = (statistics.median(sample.facts[process][what] for sample in part) for part in (first, last))
            yield Check(f"growth of {what}, {process}", end - start, bound.limit(operations))


def returning_checks(before: dict[str, Facts], after: dict[str, Facts]) -> Iterator[Check]:
    """Whether what belongs to streams is gone with them."""
    for process, facts in before.items():
        for what in RETURNING:
            yield Check(f"{what} at the end, {process}", after[process][what], facts[what])


# --- options ----------------------------------------------------------------------------------


def address_of(text: str) -> list[Any]:
    """``HOST:PORT``, for argparse."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return [host.strip("[]"), int(port)]


def options_of(arguments: list[str] | None, description: str | None, minutes: float, at_once: int, service: str) -> argparse.Namespace:
    """The options of churn.py and soak.py, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--minutes", type=positive, help=f"how long ({minutes:g})")
    long.add_argument("--seconds", type=positive, help="the same in seconds")
    parser.add_argument("--at-once", type=whole, default=at_once, metavar="N", help=f"operations at once ({at_once})")
    parser.add_argument(
        "--interval",
        type=positive,
        metavar="SECONDS",
        help=f"between samples (a 30th of all, from half a second to 5); there are at least {ALL_SAMPLES}",
    )
    parser.add_argument(
        "--address", type=address_of, metavar="HOST:PORT", help="join the mesh there, instead of a router and a service started here"
    )
    parser.add_argument("--service", metavar="NAME", help=f"the service to call there ({service})")
    defaults = ", ".join(f"{what}={bound.slack:g},{bound.rate:g}" for what, bound in BOUNDS.items())
    parser.add_argument(
        "--bound",
        type=parse_bound,
        action="append",
        default=[],
        metavar="WHAT=SLACK[,RATE]",
        help=f"how much may grow: SLACK in all, and RATE for each thousand operations ({defaults})",
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write every sample and check there too")
    parser.set_defaults(default_seconds=minutes * 60)
    options = parser.parse_args(arguments)
    if options.service and not options.address:
        parser.error("--service needs --address: a service that is started here has its own name")
    options.service = options.service or service
    return options


# --- running ----------------------------------------------------------------------------------


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[list[int]]:
    """SIGTERM ends what is done here as Ctrl-C does. Gives a list that names the signals that have come."""
    seen: list[int] = []

    def end(number: int, _frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Record:
    """What a run has found, and its summary."""

    script: str
    options: dict[str, Any]
    surroundings: dict[str, str] = field(default_factory=lambda: surroundings((None, None)))
    checks: list[Check] = field(default_factory=list)
    #: Tables by title, each with its head.
    tables: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    #: What is worth saying besides.
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    def summary(self, status: int) -> Iterator[str]:
        """For standard output."""
        for title, lines in self.tables.items():
            yield f"\n{title}" if title else ""
            yield columns(lines)
        if self.checks:
            yield "\n" + columns([("check", "value", "limit", ""), *(check.cells for check in self.checks)])
        yield ""
        yield from self.notes
        if self.failure:
            yield f"FAILED: {self.failure}"
        for check in self.checks:
            if check.holds is False:
                yield f"FAILED: {check}"
        if status > FAILED:
            yield "interrupted: this is what was done until then"
        elif status == 0:
            yield f"passed: {sum(check.holds is not None for check in self.checks)} checks"

    def write(self, file: Path, status: int) -> None:
        """Everything as JSON."""
        content = {"script": self.script, **self.surroundings, "options": self.options, "status": status, "failure": self.failure}
        content["checks"] = [{**asdict(check), "holds": check.holds} for check in self.checks]
        content["notes"] = self.notes
        file.write_text(json.dumps({**content, **self.values}, indent=2, default=str) + "\n")

    @property
    def status(self) -> int:
        """What the checks amount to."""
        return FAILED if self.failure or any(check.holds is False for check in self.checks) else 0


def columns(lines: list[tuple[str, ...]]) -> str:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))] for line in lines)
    return "\n".join("  ".join(row).rstrip() for row in rows)


def perform(record: Record, work: Any, finish: Any, json_file: Path | None) -> int:
    """Do the work, whatever ends it print and write what there is, and return the exit status.

    ``work()`` may be interrupted anywhere; ``finish()`` enters what was found until then in the record.
    """
    interrupted = 0
    print("\n".join(f"{name:7} {value}" for name, value in record.surroundings.items()), flush=True)
    with ended_by_sigterm() as signals:
        try:
            work()
        except ChildFailed as error:
            record.failure = str(error)
        except KeyboardInterrupt:
            interrupted = 128 + signals[0] if signals else INTERRUPTED
    finish()
    status = interrupted or record.status
    print("\n".join(record.summary(status)), flush=True)
    if json_file:
        record.write(json_file, status)
    return status


class Mesh:
    """The processes of a run: a client, and a router and a service unless there is a mesh already."""

    def __init__(self, script: str, service: str, address: list[Any] | None) -> None:
        self.children: dict[str, Child] = {}
        self._script = script
        self._service = service
        self._address = address

    def __enter__(self) -> Mesh:
        try:
            ways = {"given": self._address} if self._address else self._own_mesh()
            self.client = self._child("client")
            self.client.ask("reach", 2 * STEP_LIMIT, ways=ways, service=self._service)
        except BaseException:
            self.stop()
            raise
        return self

    def _own_mesh(self) -> dict[str, Any]:
        router = self._child("router").ask("listen")
        # Of the three names of the service the one that is asked for is the first or ends with what follows it (parties.py).
        direct = self._child("service").ask("serve", name=self._service.removesuffix("-echo"), address=router)
        return {"direct": direct, "relayed": router}

    def _child(self, kind: str) -> Child:
        child = self.children[kind] = Child(self._script, kind, "", None)
        return child

    def facts(self) -> dict[str, Facts]:
        """Of all processes that are ours."""
        return {name: child.ask("facts") for name, child in self.children.items()}

    def service_errors(self) -> dict[str, int] | None:
        """What our service has met that it should not have; None when it is not ours."""
        return self.children["service"].ask("errors") if "service" in self.children else None

    def stop(self) -> None:
        """End all processes."""
        for child in reversed(self.children.values()):
            child.stop()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Endurance:
    """A load for a while, with samples."""

    def __init__(self, load: str, options: argparse.Namespace, held: int, script: str = PARTIES) -> None:
        self.load = load
        self.options = options
        self.held = held
        self.script = script
        self.seconds = options.seconds or (options.minutes * 60 if options.minutes else options.default_seconds)
        self.interval = options.interval or min(5.0, max(0.5, self.seconds / 30))
        self.bounds = {**BOUNDS, **dict(options.bound)}
        self.samples: list[Sample] = []
        self.kinds: dict[str, dict[str, float]] = {}
        self.errors: dict[str, int] = {}
        self.service_errors: dict[str, int] | None = None
        self.checks: list[Check] = []

    def run(self) -> int:
        """The exit status."""
        shown = {name: value for name, value in vars(self.options).items() if name not in ("default_seconds", "json")}
        self.record = Record(self.load, {**shown, "seconds": self.seconds, "interval": self.interval})
        return perform(self.record, self._work, self._finish, self.options.json)

    def _work(self) -> None:
        with Mesh(self.script, self.options.service, self.options.address) as mesh:
            client = mesh.client
            client.ask("warm_up", 10 * STEP_LIMIT, load=self.load, held=self.held)
            before = self._sample(mesh, 0.0)
            say(f"{self.seconds:g} s, {self.options.at_once} operations at once; a sample every {self.interval:g} s")
            client.ask("start", workers=self.options.at_once, held=self.held)
            start = time.monotonic()
            while (left := start + self.seconds - time.monotonic()) > 0 or len(self.samples) < ALL_SAMPLES:
                time.sleep(min(left, self.interval) if left > 0 else self.interval)
                client.ask("rest", REST_LIMIT)
                self.samples.append(self._sample(mesh, time.monotonic() - start))
                client.ask("go_on")
            client.ask("stop", REST_LIMIT)
            self._sample_after(mesh, before)

    def _sample(self, mesh: Mesh, seconds: float) -> Sample:
        """What all hold now, and a line about it."""
        progress = mesh.client.ask("progress")
        self.kinds, self.errors = progress["kinds"], progress["errors"]
        self.service_errors = mesh.service_errors()
        sample = Sample(seconds, int(sum(kind["count"] for kind in self.kinds.values())), mesh.facts())
        if seconds:
            before = self.samples[-1] if self.samples else Sample(0.0, 0, {})
            rate = (sample.operations - before.operations) / (seconds - before.seconds)
            say(progress_line(sample, rate, progress))
        return sample

    def _sample_after(self, mesh: Mesh, before: Sample) -> None:
        """Give everything some time to be back where it was, and enter whether it is."""
        deadline = time.monotonic() + GOING_BACK
        while True:
            after = self._sample(mesh, 0.0)
            self.checks = list(returning_checks(before.facts, after.facts))
            if all(check.holds for check in self.checks) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.record.values["before"], self.record.values["after"] = before.facts, after.facts

    def _traffic_checks(self) -> Iterator[Check]:
        """Whether all went well: as far as anybody has looked, since nothing is known of the load before the first sample."""
        kinds = self.kinds.values()

        def total(what: str) -> float | None:
            return sum(kind[what] for kind in kinds) if kinds else None

        met = None if self.service_errors is None or not kinds else sum(self.service_errors.values())
        rarest = min((kind["count"] for kind in kinds), default=None)
        yield Check("failed operations", total("failed"), 0)
        yield Check("wrong answers", total("wrong"), 0)
        yield Check("errors that the service met", met, 0)
        yield Check("operations of the rarest kind", rarest, 1, at_least=True)

    def _finish(self) -> None:
        record = self.record
        record.checks += self._traffic_checks()
        record.checks += growth_checks(self.samples, self.bounds)
        record.checks += self.checks
        record.notes += [f"{count} times: {text}" for text, count in {**self.errors, **(self.service_errors or {})}.items()]
        if not any(check.name.startswith("growth") for check in record.checks):
            record.notes.append(f"growth is not judged: {len(self.samples)} samples are too few")
        record.tables[""] = list(kinds_table(self.kinds))
        if self.samples:
            record.tables["at rest, at the beginning and at the end:"] = list(facts_table(self.samples))
        record.values["kinds"] = self.kinds
        record.values["samples"] = [asdict(sample) for sample in self.samples]


def progress_line(sample: Sample, rate: float, progress: dict[str, Any]) -> str:
    """One line: time, operations, and what each process holds."""
    failed = sum(kind["failed"] for kind in progress["kinds"].values())
    times = f"p50 {progress['p50'] * 1e3:.1f} p99 {progress['p99'] * 1e3:.1f} ms"
    held = " | ".join(f"{name} {held_text(facts)}" for name, facts in sample.facts.items())
    return f"{sample.seconds:5.0f} s {sample.operations:9,} ops {rate:7,.0f}/s  {times}{f'  {failed:g} FAILED' if failed else ''} | {held}"


def held_text(facts: Facts) -> str:
    """Memory, descriptors, greenlets and streams, short."""
    return f"{facts['memory'] / 1e6:.1f} MB {facts['descriptors']:g} fd {facts['greenlets']:g} gl {facts['streams']:g} st"


def kinds_table(kinds: dict[str, dict[str, float]]) -> Iterator[tuple[str, ...]]:
    """What was done, by kind."""
    yield "operation", "done", "failed", "MB checked", "p50 ms", "p99 ms"
    for name, kind in kinds.items():
        numbers = (
            f"{kind['count']:,g}" if kind["count"] < 1e5 else f"{kind['count']:,.0f}",
            f"{kind['failed']:g}",
            f"{kind['bytes'] / 1e6:,.1f}",
        )
        yield name, *numbers, f"{kind['p50'] * 1e3:,.1f}", f"{kind['p99'] * 1e3:,.1f}"


def facts_table(samples: list[Sample]) -> Iterator[tuple[str, ...]]:
    """What each process held in the first and the last sample."""
    first, last = samples[0].facts, samples[-1].facts
    yield "", *BOUNDS
    for process in first:
        yield process, *(f"{first[process][what]:,.0f} .. {last[process][what]:,.0f}" for what in BOUNDS)
