"""HTTP/2 by h2 over one gevent socket: a POST per stream, whose body and whose response's body are the two directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
from ends import dial_tcp, end, listen_tcp
from h2.config import H2Configuration  # type: ignore[import-not-found, unused-ignore]
from h2.connection import H2Connection  # type: ignore[import-not-found, unused-ignore]
from h2.events import (  # type: ignore[import-not-found, unused-ignore]
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes, Settings  # type: ignore[import-not-found, unused-ignore]
from harness import STEP_LIMIT, Commands, Conn, Held

WINDOW = 1024 * 1024  # of a stream, as ours may grow to
SETTINGS = {
    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
    SettingCodes.MAX_CONCURRENT_STREAMS: 100_000,
    SettingCodes.MAX_FRAME_SIZE: 64 * 1024,
    SettingCodes.ENABLE_PUSH: 0,
}
READ = 256 * 1024


class Connection:
    """One connection: a greenlet reads, another writes what has come together since it last wrote."""

    def __init__(self, sock: Any, client: bool, handlers: dict[str, Callable[..., Any]]) -> None:
        self._sock = sock
        self._handlers = handlers
        self._streams: dict[int, Stream] = {}
        self._wake_writer = gevent.event.Event()
        #: The settings of the other side have arrived.
        self.settled = gevent.event.Event()
        self.h2 = H2Connection(H2Configuration(client_side=client, header_encoding="utf-8"))
        # A server has nothing to say about pushing.
        values = {code: value for code, value in SETTINGS.items() if client or code != SettingCodes.ENABLE_PUSH}
        self.h2.local_settings = Settings(client=client, initial_values=values)
        self.h2.max_inbound_frame_size = SETTINGS[SettingCodes.MAX_FRAME_SIZE]
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(64 * WINDOW)
        self.flush()

    def run(self) -> None:
        """Until the other side closes the connection."""
        writer = gevent.spawn(self._write)
        try:
            while data := self._sock.recv(READ):
                for event in self.h2.receive_data(data):
                    self._receive(event)
                self.flush()
        except ConnectionError:
            pass  # the other process was stopped
        finally:
            writer.kill()
            for stream in list(self._streams.values()):
                stream.lose()

    def _write(self) -> None:
        # No deadline: it waits until somebody has something to send.
        while self._wake_writer.wait():
            self._wake_writer.clear()
            if data := self.h2.data_to_send():
                self._sock.sendall(data)

    def flush(self) -> None:
        self._wake_writer.set()

    def open(self, service: str) -> Stream:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, [(":method", "POST"), (":scheme", "http"), (":authority", "peer"), (":path", f"/{service}")])
        self.flush()
        return self._add(number)

    def _add(self, number: int) -> Stream:
        stream = self._streams[number] = Stream(self, number)
        return stream

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    def _receive(self, event: Any) -> None:
        if isinstance(event, DataReceived):
            stream = self._streams.get(event.stream_id)
            if stream is None:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                stream.feed(event.data)
        elif isinstance(event, RequestReceived):
            self.h2.send_headers(event.stream_id, [(":status", "200")])
            headers: dict[Any, Any] = dict(event.headers)
            gevent.spawn(self._serve, self._add(event.stream_id), headers[":path"][1:])
        elif isinstance(event, StreamEnded | StreamReset):
            if stream := self._streams.get(event.stream_id):
                stream.feed(b"")
        elif isinstance(event, RemoteSettingsChanged):
            self.settled.set()
        elif isinstance(event, WindowUpdated):
            waiting = list(self._streams.values()) if not event.stream_id else [self._streams.get(event.stream_id)]
            for one in waiting:
                if one is not None:
                    one.room.set()

    def _serve(self, stream: Stream, service: str) -> None:
        try:
            self._handlers[service](stream, None)
        finally:
            stream.close()


class Stream:
    """What is used of a socket, over one HTTP/2 stream."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._buffer = bytearray()
        self._ended = False
        self._closed = False
        self._lost = False
        self._arrived = gevent.event.Event()
        self.room = gevent.event.Event()

    def feed(self, data: bytes) -> None:
        self._buffer += data
        self._ended = self._ended or not data
        self._arrived.set()

    def lose(self) -> None:
        """The connection has ended."""
        self._lost = True
        self.feed(b"")
        self.room.set()

    def sendall(self, data: bytes) -> None:
        h2, view = self._connection.h2, memoryview(data)
        while view:
            if self._lost:
                raise ConnectionResetError("the connection has ended")
            size = min(h2.local_flow_control_window(self._number), h2.max_outbound_frame_size, len(view))
            if size:
                h2.send_data(self._number, bytes(view[:size]))
                self._connection.flush()
                view = view[size:]
            else:
                self.room.clear()
                if not self.room.wait(STEP_LIMIT):
                    raise TimeoutError(f"no room to send within {STEP_LIMIT:g} s")

    def recv(self, size: int) -> bytes:
        while not self._buffer and not self._ended:
            self._arrived.clear()
            self._arrived.wait()  # the load generators' own limits hold
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        if data and not self._ended:
            self._connection.h2.acknowledge_received_data(len(data), self._number)
            self._connection.flush()
        return data

    def recv_into(self, buffer: memoryview) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.h2.end_stream(self._number)
            self._connection.forget(self._number)
            self._connection.flush()


class H2Transport:
    """A connection, and a stream of it for each that is dialled."""

    def __init__(self) -> None:
        self._connection: Connection | None = None

    def serve(self, handlers: dict[str, Callable[..., Any]]) -> Any:
        def handle(sock: Any, _address: Any) -> None:
            Connection(sock, client=False, handlers=handlers).run()

        return {"port": listen_tcp(handle)}

    def accept_idle(self, _held: Held) -> Any:
        return {}

    def reach(self, where: Any) -> None:
        self._connection = Connection(dial_tcp(where["port"]), client=True, handlers={})
        gevent.spawn(self._connection.run)
        # Before the server's settings have arrived fewer streams and smaller windows hold.
        if not self._connection.settled.wait(STEP_LIMIT):
            raise TimeoutError(f"no settings from the server within {STEP_LIMIT:g} s")

    def dial(self, service: str) -> Conn:
        assert self._connection is not None
        return self._connection.open(service)


def commands() -> Commands:
    return end(H2Transport())
