"""Echoes and bulk through a program that only copies bytes, against a direct link and a relay: what a third process costs by itself."""

from __future__ import annotations

from harness import Numbers

from . import KINDS, Bench, Scenario, told
from .relay import BETWEEN, TITLES, measure, named

FLOOR = ("direct", "copied")
OURS = ("copied", "relayed")
ALL_BETWEEN = {**BETWEEN, "copied": ("copier",)}
IN_ORDER = ("direct", "copied", "relayed")


def scenario(bench: Bench) -> Scenario:
    rows = [told(f"{kinds[1]} {what}", title, kinds) for kinds in (FLOOR, OURS) for what, title in TITLES.items()]

    def one_round(number: int) -> Numbers:
        for way in IN_ORDER if number % 2 == 0 else reversed(IN_ORDER):
            with bench.pair(KINDS[1], ALL_BETWEEN[way]) as pair:
                result = measure(bench, pair)
            numbers: dict[str, float] = {}
            for kinds in (FLOOR, OURS):
                if way in kinds:
                    numbers.update(named(kinds[1], result))
            yield way, numbers

    return Scenario(rows, one_round)
