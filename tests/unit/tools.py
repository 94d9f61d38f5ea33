"""What several files of this folder use."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings

# The same runs everywhere: a failure here is a failure there.
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
STATEFUL = settings(PROPERTY, max_examples=60, stateful_step_count=40)

# Bytes in which a shift by any small number of places shows, twice: so what stands at any place goes on in the same way.
SOURCE = random.Random(1).randbytes(1 << 19) * 2


def source_bytes(start: int, size: int) -> bytes:
    """The ``size`` bytes that stand at ``start`` of an endless stream."""
    start %= len(SOURCE) // 2
    assert size <= len(SOURCE) // 2
    return SOURCE[start : start + size]
