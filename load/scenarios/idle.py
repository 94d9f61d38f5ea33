"""A million idle accepted streams on one link: memory of each, the time to open them, and one of them that is then used."""

from __future__ import annotations

import time

from harness import OPENING_LIMIT, Pair, Row

from . import KINDS, Bench, Scenario, compared, ours_at_most, told

# Opened before memory is read for the first time: buffers and tables of both processes exist then.
WARM = 200
SIDES = ("client", "server")


def scenario(bench: Bench) -> Scenario:
    plan = bench.plan
    #: Where memory is read on the way: streams in all.
    stops = [10**power for power in range(3, 9) if 10**power < plan.idle]

    def measure(pair: Pair) -> dict[str, float]:
        more = plan.idle if pair.kind == KINDS[1] else plan.baseline_idle
        opened(pair, WARM)
        before = memory(pair)
        result, seconds = {}, 0.0
        counts = {f" {stop}": stop for stop in stops if stop < more}
        for name, count in {**counts, "": WARM + more}.items():
            start = time.perf_counter()
            opened(pair, count)
            seconds += time.perf_counter() - start
            after = memory(pair)
            for side in SIDES:
                result[f"idle {side}{name}"] = (after[side] - before[side]) / (count - WARM)
                result[f"whole {side}{name}"] = after[side] / 1e6
        # One more, alone: the last of both processes.
        opened(pair, WARM + more + 1)
        pair.server.ask("answer_last")
        first = pair.client.ask("ask_last")
        return {**result, "idle opening": seconds / more * 1e6, "idle echo": first * 1e3}

    many = f"{plan.idle:,} streams"
    most = (plan.baseline_idle, plan.idle)
    rows = []
    for side in SIDES:
        bound = bench.by_build(450, 350)
        title = f"bytes per idle stream, {side}, {many}"
        rows.append(ours_at_most(f"idle {side}", title, bound, "B", curve=(f"idle {side}", *most)))
    rows += [
        ours_at_most("idle opening", f"opening a stream, {many} (us)", bench.by_build(40, 25), "us", form=",.1f"),
        ours_at_most("idle echo", f"first echo of one of {many} (ms)", 5, "ms", form=",.2f"),
        *(whole(side, f"whole {side}", most) for side in SIDES),
    ]
    for count in stops:
        title = f"bytes per idle stream, {{}}, {count:,} streams"
        rows += [told(f"idle {side} {count}", title.format(side), curve=(f"idle {side}", count, count)) for side in SIDES]
        rows += [whole(side, f"whole {side} {count}", (count, count)) for side in SIDES]
    return compared(bench, rows, measure)


def whole(side: str, name: str, counts: tuple[int, int]) -> Row:
    return told(name, f"memory of the {side}, {counts[1]:,} idle streams (MB)", form=",.1f", curve=(f"whole {side}", *counts))


def memory(pair: Pair) -> dict[str, float]:
    return {side: float(getattr(pair, side).ask("memory", OPENING_LIMIT)) for side in SIDES}


def opened(pair: Pair, count: int) -> None:
    pair.client.ask("hold", OPENING_LIMIT, count=count)
    pair.server.ask("accepted", OPENING_LIMIT, count=count)
