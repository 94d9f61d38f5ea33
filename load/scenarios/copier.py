"""Echoes and bulk through a program that only copies bytes, against a direct link and a relay: what a third process costs by itself."""

from __future__ import annotations

from harness import Numbers

from . import KINDS, Bench, Scenario, told
from .relay import STREAMS, measure

FLOOR = ("direct", "copied")
OURS = ("copied", "relayed")
BETWEEN: dict[str, tuple[str, ...]] = {"direct": (), "copied": ("copier",), "relayed": ("relay",)}
TITLES = {
    "echoes": f"64 B echoes/s, {STREAMS} streams",
    "upload": "upload, 1 stream (MB/s)",
    "upload many": f"upload, {STREAMS} streams (MB/s)",
}


def scenario(bench: Bench) -> Scenario:
    rows = [told(f"{kinds[1]} {what}", title, kinds) for kinds in (FLOOR, OURS) for what, title in TITLES.items()]

    def one_round(number: int) -> Numbers:
        ways = list(BETWEEN) if number % 2 == 0 else list(reversed(BETWEEN))
        for way in ways:
            with bench.pair(KINDS[1], BETWEEN[way]) as pair:
                result = measure(bench, pair)
            yield way, {f"{kinds[1]} {what}": value for kinds in (FLOOR, OURS) if way in kinds for what, value in result.items()}

    return Scenario(rows, one_round)
