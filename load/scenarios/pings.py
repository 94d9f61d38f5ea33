"""Pings of 100 streams while 10 others carry bulk on the same link, on loopback and over a path of 100 MB/s."""

from __future__ import annotations

from harness import Numbers, in_turn

from . import KINDS, Bench, Scenario, at_least, ours_at_most, told

PINGING, BULK = 100, 10
KINDS_OF_LOAD = ("alone", "together")
PATHS: dict[str, tuple[str, ...]] = {"loopback": (), "100 MB/s": ("100 MB/s",)}


def scenario(bench: Bench) -> Scenario:
    rows = []
    for path in PATHS:
        rows.append(ours_at_most(f"ping p99 {path}", f"pings beside bulk, {path}, p99 (ms)", 3, "ms", KINDS_OF_LOAD, form=",.2f"))
        rows.append(told(f"ping p50 {path}", f"pings beside bulk, {path}, p50 (ms)", KINDS_OF_LOAD, form=",.2f"))
        rows.append(at_least(f"ping bulk {path}", f"bulk beside pings, {path} (MB/s)", 0.8, KINDS_OF_LOAD))

    def measure(load: str, path: str) -> dict[str, float]:
        """Pings alone, then bulk alone; or both at once."""
        with bench.pair(KINDS[1], PATHS[path]) as pair:
            if load == "alone":
                pings = bench.load(pair, "ping", PINGING).times
                bulk = bench.load(pair, "upload", BULK).uploaded
            else:
                pair.client.ask("start", what="upload", streams=BULK)
                window = bench.load(pair, "ping", PINGING)
                pings, bulk = window.times, window.uploaded
        return {f"ping p99 {path}": pings["p99"] / 1e3, f"ping p50 {path}": pings["p50"] / 1e3, f"ping bulk {path}": bulk / 1e6}

    def one_round(number: int) -> Numbers:
        for path in PATHS:
            for load in in_turn(KINDS_OF_LOAD, number):
                yield load, measure(load, path)

    return Scenario(rows, one_round)
