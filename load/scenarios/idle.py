"""A million idle accepted streams on one link: memory of each, the time to open them, and one of them that is then used."""

from __future__ import annotations

import time

from harness import OPENING_LIMIT, Pair

from . import KINDS, Bench, Scenario, compared, ours_at_most

# Opened before memory is read for the first time: buffers and tables of both processes exist then.
WARM = 1000


def scenario(bench: Bench) -> Scenario:
    plan = bench.plan

    def measure(pair: Pair) -> dict[str, float]:
        more = plan.idle if pair.kind == KINDS[1] else plan.baseline_idle
        sides = {"idle client": pair.client, "idle server": pair.server}
        opened(pair, WARM)
        before = {name: side.ask("memory", OPENING_LIMIT) for name, side in sides.items()}
        start = time.perf_counter()
        opened(pair, WARM + more)
        seconds = time.perf_counter() - start
        # One more, alone: the last of both processes.
        opened(pair, WARM + more + 1)
        pair.server.ask("answer_last")
        first = pair.client.ask("ask_last")
        result = {name: (side.ask("memory", OPENING_LIMIT) - before[name]) / more for name, side in sides.items()}
        return {**result, "idle opening": seconds / more * 1e6, "idle echo": first * 1e3}

    many = f"{plan.idle:,} streams"
    rows = [
        *(ours_at_most(name, f"bytes per idle stream, {name[5:]}, {many}", 450, "B") for name in ("idle client", "idle server")),
        ours_at_most("idle opening", f"opening a stream, {many} (us)", 40, "us", form=",.1f"),
        ours_at_most("idle echo", f"first echo of one of {many} (ms)", 5, "ms", form=",.2f"),
    ]
    return compared(bench, rows, measure)


def opened(pair: Pair, count: int) -> None:
    pair.client.ask("hold", OPENING_LIMIT, count=count)
    pair.server.ask("accepted", OPENING_LIMIT, count=count)
