"""SSH by paramiko, in a program that gevent has patched: a direct-tcpip channel per stream of one encrypted connection.

Its host name is the service. The keys are made anew; nobody has to log in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey

monkey.patch_all()

import paramiko  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: E402
from ends import dial_tcp, end, listen_tcp  # noqa: E402
from harness import OPENING_LIMIT, STEP_LIMIT, Commands, Conn, Held  # noqa: E402

# Of both sides: no more than 32 KiB fit in a packet.
SIZES = {"default_window_size": 2 * 1024 * 1024, "default_max_packet_size": 32 * 1024}


class Server(paramiko.ServerInterface):  # type: ignore[misc, unused-ignore]
    """Lets everybody in, and notes which service a channel is for."""

    def __init__(self) -> None:
        self.services: dict[int, str] = {}

    def get_allowed_auths(self, _username: str) -> str:
        return "none"

    def check_auth_none(self, _username: str) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def check_channel_direct_tcpip_request(self, chanid: int, _origin: Any, destination: tuple[str, int]) -> int:
        self.services[chanid] = destination[0]
        return int(paramiko.OPEN_SUCCEEDED)


class ChannelConn:
    """A channel with what it lacks of a socket."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.sendall = channel.sendall
        self.recv = channel.recv
        self.close = channel.close

    def recv_into(self, buffer: memoryview) -> int:
        data = self._channel.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class SshTransport:
    def __init__(self) -> None:
        self._ssh: Any = None

    def serve(self, handlers: dict[str, Callable[..., Any]]) -> Any:
        key = paramiko.ECDSAKey.generate()

        def handle_channel(service: str, channel: Any) -> None:
            try:
                handlers[service](ChannelConn(channel), None)
            finally:
                channel.close()

        def handle(sock: Any, _address: Any) -> None:
            ssh, server = paramiko.Transport(sock, **SIZES), Server()
            ssh.add_server_key(key)
            ssh.start_server(server=server)
            while ssh.is_active():
                channel = ssh.accept(OPENING_LIMIT)
                if channel is not None:
                    gevent.spawn(handle_channel, server.services.pop(channel.get_id()), channel)

        return {"port": listen_tcp(handle)}

    def accept_idle(self, _held: Held) -> Any:
        return {}

    def reach(self, where: Any) -> None:
        self._ssh = paramiko.Transport(dial_tcp(where["port"]), **SIZES)
        self._ssh.start_client(timeout=STEP_LIMIT)
        self._ssh.auth_none("anybody")

    def dial(self, service: str) -> Conn:
        return ChannelConn(self._ssh.open_channel("direct-tcpip", (service, 1), ("127.0.0.1", 1), timeout=STEP_LIMIT))


def commands() -> Commands:
    # That the client's process ends at the end of a round is no news.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    return end(SshTransport())
