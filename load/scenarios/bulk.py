"""Bulk each way, on one stream and on 100, against one TCP connection."""

from __future__ import annotations

from harness import Pair

from . import KINDS, Bench, Scenario, at_least, compared_at, told

MANY = 100
BOUNDS = (1.1, 1.3)


def scenario(bench: Bench) -> Scenario:
    rows = []
    for way in ("upload", "download"):
        for streams in (1, MANY):
            many = f"{streams} stream{'s' if streams > 1 else ''}"
            rows.append(at_least(f"{way} {streams}", f"{way}, {many} (MB/s)", bench.by_build(*BOUNDS)))
            rows.append(told(f"{way} cpu {streams}", f"CPU of both per GB (ms), {way}, {many}"))

    def measure(pair: Pair, streams: int) -> dict[str, float]:
        result = {}
        for way in ("upload", "download"):
            # The baseline is one connection: more of them are not faster.
            window = bench.load(pair, way, 1 if pair.kind == KINDS[0] else streams)
            rate = window.uploaded if way == "upload" else window.downloaded
            result[f"{way} {streams}"] = rate / 1e6
            result[f"{way} cpu {streams}"] = window.cpu / rate * 1e12
        return result

    return compared_at(bench, rows, (1, MANY), measure)
