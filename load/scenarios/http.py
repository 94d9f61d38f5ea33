"""HTTP: requests against gevent's WSGIServer, each session's connection a stream, or a TCP connection."""

from __future__ import annotations

import time
from pathlib import Path

from harness import STEP_LIMIT, Pair, Row

from . import KINDS, Bench, Scenario, Window, at_least, compared_at

ENDS = str(Path(__file__).resolve().parent.parent / "http_ends.py")
#: Greenlets with a session each, and how many times the requests of TCP are asked for: pure Python, compiled.
BOUNDS = {1: (1.05, 1.1), 32: (0.97, 1.0)}


def scenario(bench: Bench) -> Scenario:
    rows = []
    for greenlets, bounds in BOUNDS.items():
        many = f"{greenlets} client{'s' if greenlets > 1 else ''}"
        rows.append(at_least(f"http {greenlets}", f"requests/s, {many}", bench.by_build(*bounds)))
        title = f"CPU of both per request (us), {many}"
        rows.append(Row(f"http cpu {greenlets}", title, "< 1 x", lambda row: row.median < 1, KINDS))

    def measure(pair: Pair, greenlets: int) -> dict[str, float]:
        window = requested(pair, greenlets, bench.plan.warm, bench.plan.seconds)
        return {f"http {greenlets}": window.rate, f"http cpu {greenlets}": cpu_of_one(window)}

    return compared_at(bench, rows, BOUNDS, measure, ENDS)


def requested(pair: Pair, greenlets: int, warm: float, seconds: float) -> Window:
    """A load of requests from its start to its end: warming up, and a window."""
    pair.client.ask("start", greenlets=greenlets)
    time.sleep(warm)
    window = Window.of(pair, seconds)
    pair.client.ask("stop", 2 * STEP_LIMIT)
    return window


def cpu_of_one(window: Window) -> float:
    """Of one request, both processes, in microseconds."""
    return window.cpu / window.rate * 1e6
