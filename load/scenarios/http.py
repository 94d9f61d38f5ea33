"""HTTP: requests against gevent's WSGIServer, each session's connection a stream, or a TCP connection."""

from __future__ import annotations

import time
from pathlib import Path

from harness import ChildFailed, Numbers, Row, in_turn

from . import KINDS, Bench, Scenario, at_least

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

    def measure(kind: str, greenlets: int) -> dict[str, float]:
        with bench.pair(kind, script=ENDS) as pair:
            pair.client.ask("start", greenlets=greenlets)
            time.sleep(bench.plan.warm)
            window = bench.window(pair)
            pair.client.ask("stop")
        if not window.rate:
            raise ChildFailed(f"no request was answered within {bench.plan.seconds:g} s")
        return {f"http {greenlets}": window.rate, f"http cpu {greenlets}": window.cpu / window.rate * 1e6}

    def one_round(number: int) -> Numbers:
        for greenlets in BOUNDS:
            for kind in in_turn(KINDS, number):
                yield kind, measure(kind, greenlets)

    return Scenario(rows, one_round)
