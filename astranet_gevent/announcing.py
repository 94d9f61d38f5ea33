"""Announcing: what one peer has still to be told of services, sent in coalesced batches."""

from __future__ import annotations

import time
from typing import Any, Final

from .protocol.frame import Command, address_key, encode_frame
from .protocol.registry import Announcements, ServiceKey
from .transport.link import Link

__all__ = ["Announcer"]

# Announcements per batch: 512 names of 128 bytes are 80 kB, which must not keep data waiting.
_BATCH: Final = 512


class Announcer:
    """Sends SERVICE and NO_SERVICE to one link, at most one batch per ``interval`` seconds, so that what comes and goes is never told."""

    def __init__(self, link: Link, interval: float) -> None:
        self._link = link
        self._interval = interval
        self._pending = Announcements()
        self._next_at = 0.0
        self._timer: Any = None

    def add(self, key: ServiceKey, added: bool) -> None:
        """Note one change."""
        self._pending.add(key, added)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and self._pending:
            delay = max(0.0, self._next_at - time.monotonic())
            self._timer = self._link.hub.loop.timer(delay)
            self._timer.start(self._send)

    def _send(self) -> None:
        self._drop_timer()
        link = self._link
        if link.ended.is_set():
            return
        self._next_at = time.monotonic() + self._interval
        # A peer that does not read gets its announcements later, not a longer queue.
        if link.queue.small_room:
            for key, added in self._pending.take(_BATCH):
                command = Command.SERVICE if added else Command.NO_SERVICE
                link.queue.push_small(encode_frame(command, address_key(0, key.node_id, 0, key.port), key.name))
            if not link.flush_scheduled:
                link.schedule_flush()
        self._schedule()

    def close(self) -> None:
        """Stop."""
        self._drop_timer()

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
