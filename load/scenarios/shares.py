"""As `relay`, with half a core for each process on both ways: what a relay costs where it takes no core from the two ends."""

from __future__ import annotations

from cgroup import Shares
from harness import Numbers, in_turn

from . import KINDS, Bench, Scenario
from .relay import BETWEEN, WAYS, measure, named, rows_of

# Three of them are less than two cores.
PART = 0.5


def scenario(bench: Bench) -> Scenario:
    def one_round(number: int) -> Numbers:
        for way in in_turn(WAYS, number):
            with Shares(PART) as shares, bench.pair(KINDS[1], BETWEEN[way]) as pair:
                for pid in pair.pids:
                    shares.limit(pid)
                result = measure(bench, pair)
            yield way, named("shares", result)

    return Scenario(rows_of(bench, "shares", ", half a core each"), one_round)
