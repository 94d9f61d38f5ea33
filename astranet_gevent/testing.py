"""The test kit: links in memory, networks whose cables can be cut, frozen, delayed and throttled, and a clock that stands still.

    with Network() as network:
        a, router, c = network.node(), network.node(role=Role.ROUTER), network.node()
        network.connect(a, router)
        cable = network.connect(router, c, delay=0.005)
        listener = c.bind("echo")
        stream = a.dial("echo")
        cable.cut()

Nothing here opens a descriptor. Everything belongs to the greenlets of one thread.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any

import gevent

from .errors import ConfigError, PeeringTimeout
from .mesh import AstraNet
from .transport.conn import Buffer
from .transport.link import Link
from .transport.memory import PIPE_CAPACITY, MemoryConn, MemoryPipe, memory_pair

__all__ = ["Cable", "ManualClock", "Network", "memory_pair"]


class ManualClock:
    """A monotonic clock that moves only when told to: call it for the time in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move on; the new time. Raises ConfigError for a step back."""
        if seconds < 0:
            raise ConfigError(f"a monotonic clock cannot go back ({seconds} s)")
        self._now += seconds
        return self._now


class _ShapedPipe(MemoryPipe):
    """A pipe with a delay (seconds, one way) and a rate (bytes per second, None for any)."""

    def __init__(self, delay: float, rate: float | None) -> None:
        super().__init__(PIPE_CAPACITY)
        self.delay = delay
        self.rate = rate
        self.frozen = False
        self._hub = gevent.get_hub()
        # (time of arrival, data) of what is under way, in order.
        self._flying: deque[tuple[float, Buffer]] = deque()
        self._flying_size = 0
        self._free_at = 0.0
        self._timer: Any = None
        self._end_wanted = False

    @property
    def room(self) -> int:
        return 0 if self._ended else max(0, super().room - self._flying_size)

    def put(self, data: Buffer) -> None:
        if self._ended or self._end_wanted:
            raise BrokenPipeError(32, "the cable is cut")
        if not self.delay and self.rate is None and not self.frozen and not self._flying:
            super().put(data)
            return
        now = time.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + (len(data) / self.rate if self.rate else 0.0)
        self._flying.append((self._free_at + self.delay, bytes(data)))
        self._flying_size += len(data)
        if not self.room:
            self._writable.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._flying and not self.frozen:
            self._timer = self._hub.loop.timer(max(0.0, self._flying[0][0] - time.monotonic()))
            self._timer.start(self._deliver)

    def _deliver(self) -> None:
        self._disarm()
        # A timer may fire a little early: what is due within half a millisecond is due.
        now = time.monotonic() + 0.0005
        while self._flying and self._flying[0][0] <= now:
            _, data = self._flying.popleft()
            self._flying_size -= len(data)
            super().put(data)
        if self.room:
            self._writable.set()
        if self._end_wanted and not self._flying:
            super().end()
        self._arm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def freeze(self, frozen: bool) -> None:
        """Hold everything that is under way, or let it go on."""
        self.frozen = frozen
        self._disarm()
        self._arm()

    def end(self) -> None:
        """End behind what is under way."""
        self._end_wanted = True
        self._writable.set()
        if not self._flying:
            super().end()

    def cut(self) -> None:
        """End now; what is under way is lost."""
        self._disarm()
        self._flying.clear()
        self._flying_size = 0
        self._chunks.clear()
        self._size = 0
        super().end()


class Cable:
    """What connects two nodes of a Network; ``links`` are its two ends."""

    def __init__(self, first: AstraNet, second: AstraNet, delay: float, rate: float | None) -> None:
        self._pipes = (_ShapedPipe(delay, rate), _ShapedPipe(delay, rate))
        there, back = self._pipes
        self.links: tuple[Link, Link] = (first.attach(MemoryConn(back, there)), second.attach(MemoryConn(there, back)))

    def cut(self) -> None:
        """Pull the plug: both ends see the connection end, bytes under way are lost."""
        for pipe in self._pipes:
            pipe.cut()

    def freeze(self) -> None:
        """Let nothing arrive any more, without a sign: as when a host dies."""
        for pipe in self._pipes:
            pipe.freeze(True)

    def thaw(self) -> None:
        """End a freeze: what was under way arrives."""
        for pipe in self._pipes:
            pipe.freeze(False)

    def delay(self, seconds: float) -> None:
        """Set the one-way delay of what is sent from now on."""
        for pipe in self._pipes:
            pipe.delay = seconds

    def throttle(self, rate: float | None) -> None:
        """Set the bytes per second in each direction for what is sent from now on; None for no limit."""
        if rate is not None and rate <= 0:
            raise ConfigError(f"rate {rate} is not above 0 (use freeze() to stop everything)")
        for pipe in self._pipes:
            pipe.rate = rate


class Network:
    """Nodes in one process, connected by cables. A context manager: the end closes all of them."""

    def __init__(self) -> None:
        self.nodes: list[AstraNet] = []
        self.cables: list[Cable] = []

    def node(self, **overrides: Any) -> AstraNet:
        """A started node; ``overrides`` are fields of Config."""
        mesh = AstraNet(**overrides).start()
        self.nodes.append(mesh)
        return mesh

    def connect(
        self, first: AstraNet, second: AstraNet, *, delay: float = 0.0, rate: float | None = None, timeout: float | None = 10.0
    ) -> Cable:
        """Connect two nodes and wait for their handshake, or not with ``timeout=None``. Raises PeeringTimeout."""
        cable = Cable(first, second, delay, rate)
        self.cables.append(cable)
        if timeout is not None:
            deadline = time.monotonic() + timeout
            for link in cable.links:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeeringTimeout(f"no handshake within {timeout:g} s")
                link.wait_ready(left)
        return cable

    def close(self) -> None:
        """Close all nodes."""
        for cable in self.cables:
            cable.thaw()
        for mesh in self.nodes:
            mesh.close(1.0)
        self.nodes.clear()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
