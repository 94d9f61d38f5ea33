"""Curves: 64-byte echoes per second, and how long each takes, on ever more streams at once."""

from __future__ import annotations

from harness import Pair

from . import Bench, Scenario, compared_at, told, within_descriptors

PERCENTILES = (50, 90, 99)
# Of the time of other measurements: there are many points, and each but informs.
SHARE = 0.5


def scenario(bench: Bench) -> Scenario:
    numbers, too_many = within_descriptors(bench.plan.curve)
    rows = []
    for streams in numbers:
        many = f"{streams:,} stream{'s' if streams > 1 else ''}"
        rows.append(told(f"rate {streams}", f"timed 64 B echoes/s, {many}", curve=("rate", streams, streams)))
        for part in PERCENTILES:
            title = f"64 B echo under load, {many}, p{part} (ms)"
            rows.append(told(f"p{part} {streams}", title, form=",.3f", curve=(f"p{part}", streams, streams)))

    def measure(pair: Pair, streams: int) -> dict[str, float]:
        window = bench.load(pair, "timed_echo", streams, seconds=bench.plan.seconds * SHARE)
        return {f"rate {streams}": window.rate, **{f"p{part} {streams}": window.times[f"p{part}"] / 1e3 for part in PERCENTILES}}

    return compared_at(bench, rows, numbers, measure, too_many=too_many)
