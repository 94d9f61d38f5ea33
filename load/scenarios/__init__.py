"""What `bench.py` measures, a file for each. A scenario has rows of the table, and gives the numbers of one round for both kinds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness import SPARE_DESCRIPTORS, STEP_LIMIT, ChildFailed, Cores, Numbers, Others, Pair, Row, descriptor_limit, in_turn

ENDS = str(Path(__file__).resolve().parent.parent / "ends.py")

BoundT = TypeVar("BoundT")

#: The baseline, and ours.
KINDS = ("gevent", "astranet")


@dataclass(frozen=True)
class Plan:
    """How long and how much; times in seconds."""

    rounds: int
    warm: float
    seconds: float
    #: Numbers of streams that echo at once.
    streams: tuple[int, ...]
    #: Idle streams on one link, and connections of the baseline to compare their memory with.
    idle: int
    baseline_idle: int
    #: Numbers of streams of the curves.
    curve: tuple[int, ...]


@dataclass
class Bench:
    """What a scenario measures with."""

    plan: Plan
    cores: Cores
    others: Others
    #: Whether the hot path of what is measured is compiled: more is asked of it.
    compiled: bool

    def by_build(self, pure: BoundT, compiled: BoundT) -> BoundT:
        """What is asked of the build that is measured."""
        return compiled if self.compiled else pure

    def pair(self, kind: str, between: Collection[str] = (), script: str = ENDS) -> Pair:
        """A new server and client, and what stands between them."""
        return Pair(script, kind, self.cores, self.others, between)

    def load(self, pair: Pair, what: str, streams: int, size: int = 0, seconds: float = 0.0) -> Window:
        """A load from its start to its end: warming up, and a window."""
        pair.client.ask("start", 10 * STEP_LIMIT, what=what, streams=streams, size=size)
        time.sleep(self.plan.warm)
        pair.client.ask("forget")
        window = Window.of(pair, seconds or self.plan.seconds, COUNTED.get(what, "rate"))
        window.times = pair.client.ask("times") if what in ("timed_echo", "ping", "churn", "early_churn") else {}
        pair.client.ask("stop", 2 * STEP_LIMIT)
        return window


#: What a Window says of a load; of those that are not named, the rate.
COUNTED = {"upload": "uploaded", "download": "downloaded", "messages": "uploaded"}


@dataclass
class Window:
    """Differences of the counters of both processes, and the seconds that each of them saw."""

    server: dict[str, float]
    client: dict[str, float]
    times: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, pair: Pair, seconds: float, counted: str = "rate") -> Window:
        """What both do in so many seconds from now on, or in as many times that as it takes until ``counted`` is not 0."""
        before = [child.ask("sample") for child in (pair.server, pair.client)]
        limit = time.monotonic() + STEP_LIMIT
        while True:
            time.sleep(seconds)
            after = [child.ask("sample") for child in (pair.server, pair.client)]
            server, client = ({key: end[key] - start[key] for key in end} for start, end in zip(before, after, strict=True))
            window = cls(server, client)
            if getattr(window, counted):
                return window
            if time.monotonic() > limit:
                raise ChildFailed(f"nothing was answered or received within {STEP_LIMIT:g} s")

    @property
    def rate(self) -> float:
        """Operations per second, as the client counts them."""
        return self.client["count"] / self.client["clock"]

    @property
    def uploaded(self) -> float:
        """Bytes per second that the server has read."""
        return self.server["bytes"] / self.server["clock"]

    @property
    def downloaded(self) -> float:
        """Bytes per second that the client has read."""
        return self.client["bytes"] / self.client["clock"]

    @property
    def cpu(self) -> float:
        """Seconds of processor time per second, both processes."""
        return self.server["cpu"] / self.server["clock"] + self.client["cpu"] / self.client["clock"]


@dataclass(frozen=True)
class Scenario:
    rows: list[Row]
    one_round: Callable[[int], Numbers]
    #: What was asked for and cannot be measured: numbers of streams.
    too_many: tuple[int, ...] = ()


def compared(bench: Bench, rows: list[Row], measure: Callable[[Pair], dict[str, float]], between: Collection[str] = ()) -> Scenario:
    """The usual scenario: the same measurement of both kinds, in turn."""

    def one_round(number: int) -> Numbers:
        for kind in in_turn(KINDS, number):
            with bench.pair(kind, between) as pair:
                result = measure(pair)
            yield kind, result

    return Scenario(rows, one_round)


def compared_at(
    bench: Bench,
    rows: list[Row],
    counts: Iterable[int],
    measure: Callable[[Pair, int], dict[str, float]],
    script: str = ENDS,
    too_many: tuple[int, ...] = (),
) -> Scenario:
    """The same with several numbers of streams, and new processes for each."""

    def one_round(number: int) -> Numbers:
        for count in counts:
            for kind in in_turn(KINDS, number):
                with bench.pair(kind, script=script) as pair:
                    result = measure(pair, count)
                yield kind, result

    return Scenario(rows, one_round, too_many)


def beside_floor(kinds: tuple[str, str, str], titles: Mapping[str, str], measure: Callable[[str], dict[str, float]]) -> Scenario:
    """Three kinds in turn, the second of which does the least that can be done: it against the first, and the third against it."""
    compared_kinds = (kinds[:2], kinds[1:])
    rows = [told(f"{pair[1]} {what}", title, pair) for pair in compared_kinds for what, title in titles.items()]

    def one_round(number: int) -> Numbers:
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            result = measure(kind)
            yield kind, {f"{pair[1]} {what}": value for pair in compared_kinds if kind in pair for what, value in result.items()}

    return Scenario(rows, one_round)


def within_descriptors(counts: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those numbers of streams of which the baseline can have as many, with a descriptor for each, and those that are too many."""
    most = descriptor_limit() - SPARE_DESCRIPTORS
    return tuple(count for count in counts if count <= most), tuple(count for count in counts if count > most)


def at_least(name: str, title: str, bound: float, kinds: tuple[str, str] = KINDS, **options: Any) -> Row:
    """A row whose median ratio has to reach a bound."""
    return Row(name, title, f">= {bound:g} x", lambda row: row.median >= bound, kinds, **options)


def at_most(name: str, title: str, bound: float, kinds: tuple[str, str] = KINDS, **options: Any) -> Row:
    """A row whose median ratio must not pass a bound."""
    return Row(name, title, f"<= {bound:g} x", lambda row: row.median <= bound, kinds, **options)


def ours_at_most(name: str, title: str, bound: float, unit: str, kinds: tuple[str, str] = KINDS, **options: Any) -> Row:
    """A row whose own median value must not pass a bound."""
    return Row(name, title, f"<= {bound:g} {unit}", lambda row: row.ours <= bound, kinds, **options)


def told(name: str, title: str, kinds: tuple[str, str] = KINDS, **options: Any) -> Row:
    """A row of which nothing is asked."""
    return Row(name, title, "", None, kinds, **options)
