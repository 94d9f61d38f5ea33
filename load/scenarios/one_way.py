"""Messages in one direction on 100 streams, each written with a call of its own."""

from __future__ import annotations

from harness import Pair

from . import Bench, Scenario, at_least, compared

STREAMS = 100
BOUNDS = {64: (4.0, 7.0), 1024: (2.7, 4.0), 16384: (1.2, 1.4)}


def scenario(bench: Bench) -> Scenario:
    def measure(pair: Pair) -> dict[str, float]:
        return {f"one way {size}": bench.load(pair, "messages", STREAMS, size).uploaded / size for size in BOUNDS}

    rows = [
        at_least(f"one way {size}", f"messages of {size:,} B /s, {STREAMS} streams, one way", bench.by_build(*bounds))
        for size, bounds in BOUNDS.items()
    ]
    return compared(bench, rows, measure)
