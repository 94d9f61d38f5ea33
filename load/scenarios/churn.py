"""Open, one echo, close: one at a time, and 100 at a time."""

from __future__ import annotations

from harness import CHURNERS, Pair

from . import Bench, Scenario, at_least, compared

BOUNDS = {1: (1.0, 1.3), CHURNERS: (2.6, 3.9)}


def scenario(bench: Bench) -> Scenario:
    def measure(pair: Pair) -> dict[str, float]:
        return {f"churn {count}": bench.load(pair, "churn", count).rate for count in BOUNDS}

    rows = [
        at_least(f"churn {count}", f"open+echo+close /s, {count} at a time", bench.by_build(*bounds)) for count, bounds in BOUNDS.items()
    ]
    return compared(bench, rows, measure)
