"""Recordings of streams between two nodes: dial, transfer, close, half-close, no listener."""

from __future__ import annotations

import pytest

from .conftest import Bench
from .replay import Case, Replay

CASES = [
    *(
        Case(recording, node)
        for recording in (
            "03_dial_close_client",
            "03_dial_close_server",
            "03_dial_close_both",
            "03d_half_close",
            "04_transfer_1MiB",
        )
        for node in "AB"
    ),
    Case("05_dial_no_listener", "A", unanswered=frozenset({"c1"})),
    Case("05_dial_no_listener", "B"),
    Case("09_dial_host_id", "A"),
    Case("09_dial_host_id", "B"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replay(bench: Bench, case: Case) -> None:
    Replay(bench, case).run().verify()
