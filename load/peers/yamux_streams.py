"""The yamux of libp2p on one TCP connection in trio, without libp2p's encryption and negotiation.

The first byte on a stream says which service it is for.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio  # type: ignore[import-not-found, unused-ignore]
from harness import STEP_LIMIT, Commands
from libp2p.io.trio import TrioTCPStream  # type: ignore[import-not-found, unused-ignore]
from libp2p.network.connection.raw_connection import RawConnection  # type: ignore[import-not-found, unused-ignore]
from libp2p.peer.id import ID  # type: ignore[import-not-found, unused-ignore]
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError  # type: ignore[import-not-found, unused-ignore]
from libp2p.stream_muxer.yamux.yamux import Yamux  # type: ignore[import-not-found, unused-ignore]

from .coroutines import commands_of

INITIALS = {"echo": b"e", "sink": b"s"}
NOBODY = ID(b"peer")  # without encryption nobody asks


class YamuxConn:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.send = stream.write
        self.close = stream.close

    async def recv(self, size: int) -> bytes:
        try:
            return await self._stream.read(size)  # type: ignore[no-any-return, unused-ignore]
        except MuxedStreamError:
            return b""  # so it says that the stream has ended


class TrioYamux:
    def __init__(self) -> None:
        self._ready = threading.Event()
        self._mux: Any = None
        threading.Thread(target=lambda: trio.run(self._main), daemon=True).start()
        if not self._ready.wait(STEP_LIMIT):
            raise TimeoutError("trio does not start")

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await trio.sleep_forever()

    def serve(self, handlers: dict[str, Callable[[Any], Awaitable[None]]]) -> Any:
        return trio.from_thread.run(self._listen, handlers, trio_token=self._token)

    async def _listen(self, handlers: dict[str, Callable[[Any], Awaitable[None]]]) -> int:
        by_initial = {initial: handlers[service] for service, initial in INITIALS.items()}

        async def handle(stream: Any) -> None:
            conn = YamuxConn(stream)
            await by_initial[await conn.recv(1)](conn)
            await conn.close()

        async def accept(tcp: Any) -> None:
            mux = await self._begin(tcp, initiator=False)
            # Until the client's process has ended.
            with contextlib.suppress(MuxedConnUnavailable):
                while True:
                    self._nursery.start_soon(handle, await mux.accept_stream())

        listeners = await self._nursery.start(functools.partial(trio.serve_tcp, host="127.0.0.1"), accept, 0)
        return int(listeners[0].socket.getsockname()[1])

    async def _begin(self, tcp: Any, initiator: bool) -> Any:
        # trio sets TCP_NODELAY itself.
        mux = Yamux(RawConnection(TrioTCPStream(tcp), initiator), NOBODY, is_initiator=initiator)
        self._nursery.start_soon(mux.start)
        with trio.fail_after(STEP_LIMIT):
            await mux.event_started.wait()
        return mux

    def reach(self, where: Any) -> None:
        async def join() -> None:
            self._mux = await self._begin(await trio.open_tcp_stream("127.0.0.1", where), initiator=True)

        trio.from_thread.run(join, trio_token=self._token)

    async def dial(self, service: str) -> YamuxConn:
        conn = YamuxConn(await self._mux.open_stream())
        await conn.send(INITIALS[service])
        return conn

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        self._token.run_sync_soon(self._nursery.start_soon, function, *arguments)


def commands() -> Commands:
    return commands_of(TrioYamux())
