"""Echoes and bulk through one relay, against a direct link."""

from __future__ import annotations

from harness import Numbers, Pair, Row, in_turn

from . import KINDS, Bench, Scenario, at_least

WAYS = ("direct", "relayed")
BETWEEN: dict[str, tuple[str, ...]] = {"direct": (), "relayed": ("relay",)}
STREAMS = 100
MANY_STREAMS = 1000
BOUNDS = (0.5, 0.55)
TITLES = {
    "echoes": f"64 B echoes/s, {STREAMS} streams",
    "echoes many": f"64 B echoes/s, {MANY_STREAMS:,} streams",
    "upload": "upload, 1 stream (MB/s)",
    "upload many": f"upload, {STREAMS} streams (MB/s)",
}


def scenario(bench: Bench) -> Scenario:
    def one_round(number: int) -> Numbers:
        for way in in_turn(WAYS, number):
            with bench.pair(KINDS[1], BETWEEN[way]) as pair:
                result = measure(bench, pair)
            yield way, named("relay", result)

    return Scenario(rows_of(bench, "relay"), one_round)


def rows_of(bench: Bench, prefix: str, remark: str = "") -> list[Row]:
    bound = bench.by_build(*BOUNDS)
    return [at_least(f"{prefix} {what}", title + remark, bound, WAYS) for what, title in TITLES.items()]


def named(prefix: str, result: dict[str, float]) -> dict[str, float]:
    """What was measured, under the names of its rows."""
    return {f"{prefix} {what}": value for what, value in result.items()}


def measure(bench: Bench, pair: Pair) -> dict[str, float]:
    """Echoes per second on many streams and on more, and MB/s on one and on many."""
    return {
        "echoes": bench.load(pair, "echo", STREAMS).rate,
        "echoes many": bench.load(pair, "echo", MANY_STREAMS).rate,
        "upload": bench.load(pair, "upload", 1).uploaded / 1e6,
        "upload many": bench.load(pair, "upload", STREAMS).uploaded / 1e6,
    }
