"""Calls by zerorpc, which is made for gevent, over one client. A call carries one message there and one back: a stream is a method here.

Bulk is calls of 256 KiB, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import zerorpc  # type: ignore[import-not-found, import-untyped, unused-ignore]
from ends import end
from harness import STEP_LIMIT, Commands, Conn, Held


class Call:
    """One call, to a handler a stream of one message that is answered once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.answer = b""

    def recv(self, _size: int) -> bytes:
        data, self._data = self._data, b""
        return data

    def recv_into(self, buffer: memoryview) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.answer = data


class Method:
    """A method of the server, to a load generator a stream."""

    def __init__(self, call: Callable[[bytes], bytes]) -> None:
        self._call = call
        self._answer = b""

    def sendall(self, data: bytes) -> None:
        self._answer = self._call(data)

    def recv(self, _size: int) -> bytes:
        return self._answer

    def recv_into(self, buffer: memoryview) -> int:
        raise NotImplementedError("an answer is all that comes back")

    def close(self) -> None:
        """A call has ended by itself."""


class ZerorpcTransport:
    def __init__(self) -> None:
        # No heartbeats: under full load they come too late.
        self._client = zerorpc.Client(timeout=STEP_LIMIT, heartbeat=None)

    def serve(self, handlers: dict[str, Callable[..., Any]]) -> Any:
        def method(handler: Callable[..., Any]) -> Callable[[bytes], bytes]:
            def run(data: bytes) -> bytes:
                call = Call(data)
                handler(call, None)
                return call.answer

            return run

        # A source never ends, and an answer has to.
        server = zerorpc.Server({name: method(handlers[name]) for name in ("echo", "sink")}, heartbeat=None)
        server.bind("tcp://127.0.0.1:*")
        gevent.spawn(server.run)
        return {"address": server._events._socket.getsockopt_string(LAST_ENDPOINT)}

    def accept_idle(self, _held: Held) -> Any:
        return {}

    def reach(self, where: Any) -> None:
        self._client.connect(where["address"])

    def dial(self, service: str) -> Conn:
        return Method(getattr(self._client, service))


LAST_ENDPOINT = 32  # zmq.LAST_ENDPOINT: where a socket that chose its own port is bound


def commands() -> Commands:
    return end(ZerorpcTransport())
