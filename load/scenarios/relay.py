"""Echoes and bulk through one relay, against a direct link."""

from __future__ import annotations

from harness import Numbers, Pair, in_turn

from . import KINDS, Bench, Scenario, at_least

WAYS = ("direct", "relayed")
STREAMS = 100
BOUNDS = (0.5, 0.55)


def scenario(bench: Bench) -> Scenario:
    bound = bench.by_build(*BOUNDS)
    rows = [
        at_least("relay echoes", f"64 B echoes/s, {STREAMS} streams", bound, WAYS),
        at_least("relay upload", "upload, 1 stream (MB/s)", bound, WAYS),
        at_least("relay upload many", f"upload, {STREAMS} streams (MB/s)", bound, WAYS),
    ]

    def one_round(number: int) -> Numbers:
        for way in in_turn(WAYS, number):
            with bench.pair(KINDS[1], ("relay",) if way == "relayed" else ()) as pair:
                result = {f"relay {what}": value for what, value in measure(bench, pair).items()}
            yield way, result

    return Scenario(rows, one_round)


def measure(bench: Bench, pair: Pair) -> dict[str, float]:
    """Echoes per second on many streams, and MB/s on one and on many."""
    return {
        "echoes": bench.load(pair, "echo", STREAMS).rate,
        "upload": bench.load(pair, "upload", 1).uploaded / 1e6,
        "upload many": bench.load(pair, "upload", STREAMS).uploaded / 1e6,
    }
