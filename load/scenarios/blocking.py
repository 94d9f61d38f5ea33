"""HTTP as in `http` over sockets that stop their process, against gevent's and ours: what a request costs with no transport in between."""

from __future__ import annotations

from . import KINDS, Bench, Scenario, beside_floor
from .http import ENDS, cpu_of_one, requested

TITLES = {"http": "requests/s, 1 client", "http cpu": "CPU of both per request (us), 1 client"}


def scenario(bench: Bench) -> Scenario:
    def measure(kind: str) -> dict[str, float]:
        with bench.pair(kind, script=ENDS) as pair:
            window = requested(pair, 1, bench.plan.warm, bench.plan.seconds)
        return {"http": window.rate, "http cpu": cpu_of_one(window)}

    return beside_floor((KINDS[0], "blocking", KINDS[1]), TITLES, measure)
