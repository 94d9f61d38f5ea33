"""What else there is in Python, each against ours: the same loads, as far as they make sense."""

from __future__ import annotations

from harness import CHURNERS, Numbers, in_turn

from . import KINDS, Bench, Scenario, told

STREAMS = 100


def scenario(bench: Bench, peer: str) -> Scenario:
    kinds = (peer, KINDS[1])
    rows = [
        told(f"{peer} rtt", f"{peer}: 64 B echo, 1 stream, p50 (us)", kinds),
        told(f"{peer} echoes", f"{peer}: 64 B echoes/s, {STREAMS} streams", kinds),
        told(f"{peer} churn", f"{peer}: open+echo+close /s, {CHURNERS} at a time", kinds),
        told(f"{peer} upload", f"{peer}: upload, 1 stream (MB/s)", kinds),
    ]

    def measure(kind: str) -> dict[str, float]:
        with bench.pair(kind) as pair:
            return {
                f"{peer} rtt": bench.load(pair, "timed_echo", 1).times["p50"],
                f"{peer} echoes": bench.load(pair, "echo", STREAMS).rate,
                f"{peer} churn": bench.load(pair, "churn", CHURNERS).rate,
                f"{peer} upload": bench.load(pair, "upload", 1).uploaded / 1e6,
            }

    def one_round(number: int) -> Numbers:
        for kind in in_turn(kinds, number):
            yield kind, measure(kind)

    return Scenario(rows, one_round)
