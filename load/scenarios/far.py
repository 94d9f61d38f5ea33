"""A path of 10 ms round trip: bulk on one stream, and how many round trips it takes to open a stream and have an answer.

The round trip is measured on the same path, with echoes on a stream that is open: the proxy adds a millisecond or two to its delay.
"""

from __future__ import annotations

from harness import Pair

from . import Bench, Scenario, at_least, compared, ours_at_most, told


def scenario(bench: Bench) -> Scenario:
    def measure(pair: Pair) -> dict[str, float]:
        round_trip = bench.load(pair, "timed_echo", 1).times["p50"]
        return {
            "far echo": round_trip / 1e3,
            "far open": bench.load(pair, "churn", 1).times["p50"] / round_trip,
            "far early": bench.load(pair, "early_churn", 1).times["p50"] / round_trip,
            "far upload": bench.load(pair, "upload", 1).uploaded / 1e6,
        }

    rows = [
        at_least("far upload", "upload, 1 stream, 10 ms (MB/s)", 0.9),
        told("far echo", "echo on an open stream, 10 ms (ms)", form=",.2f"),
        # The proxy takes a TCP connection at once, so the baseline's figure leaves out the round trip of its handshake.
        ours_at_most("far open", "open + echo, 10 ms (round trips)", 2.2, "RTT", form=",.2f"),
        ours_at_most("far early", "the same, the message with the dial (round trips)", 1.2, "RTT", form=",.2f"),
    ]
    return compared(bench, rows, measure, ("10 ms",))
