"""Echoes and bulk through a program that only copies bytes, against a direct link and a relay: what a third process costs by itself."""

from __future__ import annotations

from . import KINDS, Bench, Scenario, beside_floor
from .relay import BETWEEN, TITLES, measure

WAYS = ("direct", "copied", "relayed")
ALL_BETWEEN = {**BETWEEN, "copied": ("copier",)}


def scenario(bench: Bench) -> Scenario:
    def measure_way(way: str) -> dict[str, float]:
        with bench.pair(KINDS[1], ALL_BETWEEN[way]) as pair:
            return measure(bench, pair)

    return beside_floor(WAYS, TITLES, measure_way)
