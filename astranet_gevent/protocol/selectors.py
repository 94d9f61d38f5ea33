"""Which server of a service to dial: functions over the list of candidates, which is sorted the same way in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from .registry import Service

__all__ = ["HashRing", "RandomChoice", "RoundRobin", "Selector"]


class Selector(Protocol):
    """Picks one of the candidates (never empty)."""

    def __call__(self, candidates: Sequence[Service]) -> Service: ...


class RandomChoice:
    """A uniform choice, the default. ``below(n)`` returns a random integer in 0..n-1."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self._below = below

    def __call__(self, candidates: Sequence[Service]) -> Service:
        return candidates[self._below(len(candidates))] if len(candidates) > 1 else candidates[0]


class RoundRobin:
    """Each server in turn. Keep one object for as long as the turns should last; servers may come and go in between."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def __call__(self, candidates: Sequence[Service]) -> Service:
        ordered = sorted(candidates, key=_identity)
        last = self._last
        # The next one behind the last in the order of ids, so that a server that left does not disturb the turns of the others.
        chosen = next((item for item in ordered if last is not None and _identity(item) > last), ordered[0])
        self._last = _identity(chosen)
        return chosen


class HashRing:
    """The same server for the same key in every process, as long as that server is there.

    Rendezvous hashing (Thaler and Ravishankar, 1998): the server with the highest hash of (key, node, port) wins, so that a server that
    leaves moves only its own keys, and no ring has to be kept. BLAKE2b stands in for the original's hash, which mixes in a memory
    address. About 1 us per candidate.
    """

    def __init__(self, key: str | bytes) -> None:
        self._key = key.encode() if isinstance(key, str) else bytes(key)

    def __call__(self, candidates: Sequence[Service]) -> Service:
        return max(candidates, key=self._weight)

    def _weight(self, server: Service) -> bytes:
        identity = server.node_id.to_bytes(8, "big") + server.port.to_bytes(4, "big")
        return hashlib.blake2b(self._key, digest_size=8, salt=identity).digest()


def _identity(server: Service) -> tuple[int, int]:
    return server.node_id, server.port
