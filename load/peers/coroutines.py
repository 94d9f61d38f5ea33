"""The load generators and the handlers of `ends.py` as coroutines, for asyncio and trio alike: these run in a thread of their own.

The main thread of the process waits for orders meanwhile, and costs nothing.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from ends import CHUNK, ECHO_READ, MESSAGE, Counter, percentiles
from harness import STEP_LIMIT, Commands


class AsyncConn(Protocol):
    async def send(self, data: bytes, /) -> None: ...

    async def recv(self, size: int, /) -> bytes: ...

    async def close(self) -> None: ...


async def echo(conn: AsyncConn) -> None:
    while data := await conn.recv(ECHO_READ):
        await conn.send(data)


async def drain(counter: Counter, conn: AsyncConn) -> None:
    while data := await conn.recv(len(CHUNK)):
        counter.bytes += len(data)


async def exchange(conn: AsyncConn) -> None:
    await conn.send(MESSAGE)
    missing = len(MESSAGE)
    while missing:
        data = await conn.recv(missing)
        if not data:
            raise ConnectionError("the server ended an echo stream")
        missing -= len(data)


class AsyncProgram(Protocol):
    """A kind of transport, and the loop that it runs in."""

    def serve(self, handlers: dict[str, Callable[[Any], Awaitable[None]]]) -> Any: ...

    def reach(self, where: Any) -> None: ...

    async def dial(self, service: str) -> Any: ...

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Begin a coroutine; called in the main thread."""


class AsyncLoads:
    """As `ends.Loads`. What is changed here is changed in the loop's thread, but for starting, stopping and forgetting."""

    def __init__(self, program: AsyncProgram, counter: Counter) -> None:
        self._program = program
        self._counter = counter
        self._running = False
        self._left = 0
        self._finished = threading.Event()
        self._dialling = 0
        self._dialled = threading.Event()
        self._failure: BaseException | None = None
        self._times = array("d")

    def start(self, what: str, streams: int, size: int = 0) -> None:
        """Begin; when this returns, every stream has been dialled."""
        del size  # nothing here is made of messages
        self._running, self._left, self._dialling = True, streams, streams
        for event in (self._finished, self._dialled):
            event.clear()
        for _ in range(streams):
            if what == "churn":
                self._program.spawn(self._run, self._churn())
            else:
                service = "sink" if what == "upload" else "echo"
                self._program.spawn(self._run, self._on_stream(service, getattr(self, f"_{what}")))
        if what != "churn" and not self._dialled.wait(STEP_LIMIT):
            raise TimeoutError(f"{self._dialling} of {streams} streams are not open after {STEP_LIMIT:g} s")
        self._check()

    async def _on_stream(self, service: str, work: Callable[[AsyncConn], Awaitable[None]]) -> None:
        conn = await self._program.dial(service)
        self._dialling -= 1
        if not self._dialling:
            self._dialled.set()
        await work(conn)
        await conn.close()

    async def _run(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as failure:  # noqa: BLE001 - whatever it is, the parent has to hear of it
            self._failure = failure
            self._dialled.set()
        finally:
            self._left -= 1
            if not self._left:
                self._finished.set()

    def sample(self) -> dict[str, float]:
        self._check()
        return self._counter.sample()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def forget(self) -> None:
        self._times = array("d")

    def times(self) -> dict[str, float]:
        return percentiles(self._times)

    def stop(self) -> None:
        self._running = False
        if not self._finished.wait(STEP_LIMIT):
            raise TimeoutError(f"{self._left} coroutines wait for an answer")
        self._check()

    async def _echo(self, conn: AsyncConn) -> None:
        counter = self._counter
        while self._running:
            await exchange(conn)
            counter.count += 1

    async def _timed_echo(self, conn: AsyncConn) -> None:
        counter, clock = self._counter, time.perf_counter
        while self._running:
            start = clock()
            await exchange(conn)
            self._times.append(clock() - start)
            counter.count += 1

    async def _upload(self, conn: AsyncConn) -> None:
        while self._running:
            await conn.send(CHUNK)

    async def _churn(self) -> None:
        counter, clock = self._counter, time.perf_counter
        while self._running:
            start = clock()
            conn = await self._program.dial("echo")
            try:
                await exchange(conn)
                self._times.append(clock() - start)
            finally:
                await conn.close()
            counter.count += 1


def commands_of(program: AsyncProgram) -> Commands:
    counter = Counter()
    loads = AsyncLoads(program, counter)

    def serve() -> Any:
        return program.serve({"echo": echo, "sink": lambda conn: drain(counter, conn)})

    made = (serve, program.reach, loads.start, loads.sample, loads.forget, loads.times, loads.stop)
    return {command.__name__: command for command in made}
