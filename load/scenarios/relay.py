"""Echoes and bulk through one relay, against a direct link."""

from __future__ import annotations

from harness import Numbers, in_turn

from . import KINDS, Bench, Scenario, at_least

WAYS = ("direct", "relayed")
STREAMS = 100
BOUND = 0.5


def scenario(bench: Bench) -> Scenario:
    rows = [
        at_least("relay echoes", f"64 B echoes/s, {STREAMS} streams", BOUND, WAYS),
        at_least("relay upload", "upload, 1 stream (MB/s)", BOUND, WAYS),
        at_least("relay upload many", f"upload, {STREAMS} streams (MB/s)", BOUND, WAYS),
    ]

    def one_round(number: int) -> Numbers:
        for way in in_turn(WAYS, number):
            with bench.pair(KINDS[1], ("relay",) if way == "relayed" else ()) as pair:
                result = {
                    "relay echoes": bench.load(pair, "echo", STREAMS).rate,
                    "relay upload": bench.load(pair, "upload", 1).uploaded / 1e6,
                    "relay upload many": bench.load(pair, "upload", STREAMS).uploaded / 1e6,
                }
            yield way, result

    return Scenario(rows, one_round)
