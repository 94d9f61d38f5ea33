"""64-byte echoes per second on many streams at once: of one link, or each a connection."""

from __future__ import annotations

from harness import Pair

from . import Bench, Scenario, at_least, compared_at, told, within_descriptors

BOUNDS = {100: (3.5, 6.0), 1000: (4.5, 8.0), 10_000: (3.5, 6.0)}


def scenario(bench: Bench) -> Scenario:
    numbers, too_many = within_descriptors(bench.plan.streams)
    rows = []
    for streams in numbers:
        title = f"64 B echoes/s, {streams:,} streams"
        asked = streams in BOUNDS
        rows.append(at_least(f"echoes {streams}", title, bench.by_build(*BOUNDS[streams])) if asked else told(f"echoes {streams}", title))
        rows.append(told(f"echo cpu {streams}", f"CPU of both per echo (us), {streams:,} streams", form=",.1f"))

    def measure(pair: Pair, streams: int) -> dict[str, float]:
        window = bench.load(pair, "echo", streams)
        return {f"echoes {streams}": window.rate, f"echo cpu {streams}": window.cpu / window.rate * 1e6}

    return compared_at(bench, rows, numbers, measure, too_many=too_many)
