"""asyncio's streams on uvloop's loop: a TCP connection for each."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop  # type: ignore[import-not-found, unused-ignore]
from harness import STEP_LIMIT, Commands

from .coroutines import commands_of

# Bytes that a reader may hold: with the 64 KiB that asyncio takes bulk is slower.
READER_LIMIT = 512 * 1024


class TcpConn:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.recv = reader.read
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class UvloopTcp:
    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._ports: dict[str, int] = {}
        self._tasks: set[Any] = set()  # the loop itself refers to its tasks weakly
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def serve(self, handlers: dict[str, Callable[[Any], Awaitable[None]]]) -> Any:
        return {service: self._call(self._listen(handler)) for service, handler in handlers.items()}

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(STEP_LIMIT)

    async def _listen(self, handler: Callable[[Any], Awaitable[None]]) -> int:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            conn = TcpConn(reader, writer)
            try:
                await handler(conn)
                await conn.close()
            except ConnectionError:
                return  # the client was stopped in the middle of a round

        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=READER_LIMIT, backlog=1024)
        return int(server.sockets[0].getsockname()[1])

    def reach(self, where: Any) -> None:
        self._ports = where

    async def dial(self, service: str) -> TcpConn:
        return TcpConn(*await asyncio.open_connection("127.0.0.1", self._ports[service], limit=READER_LIMIT))

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        task = asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def commands() -> Commands:
    return commands_of(UvloopTcp())
