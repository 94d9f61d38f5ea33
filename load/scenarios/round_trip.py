"""Round trip of a 64-byte echo on one stream."""

from __future__ import annotations

from harness import Pair

from . import Bench, Scenario, at_most, compared, told


def scenario(bench: Bench) -> Scenario:
    def measure(pair: Pair) -> dict[str, float]:
        window = bench.load(pair, "timed_echo", 1)
        return {"rtt": window.times["p50"], "rtt p99": window.times["p99"], "rtt cpu": window.cpu / window.rate * 1e6}

    rows = [
        at_most("rtt", "64 B echo, 1 stream, p50 (us)", bench.by_build(1.1, 1.0)),
        told("rtt p99", "64 B echo, 1 stream, p99 (us)"),
        told("rtt cpu", "64 B echo, 1 stream, CPU of both (us)", form=",.1f"),
    ]
    return compared(bench, rows, measure)
