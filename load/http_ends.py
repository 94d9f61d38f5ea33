#!/usr/bin/env python3
"""The processes of `bench.py` for HTTP: programs that gevent has patched. Started by it, with --child KIND.

Over the mesh requests gets its connections from an adapter, as in a program that knows of the mesh; `patched.py` measures the others.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# gevent's patches come first, as in every program that is measured here.
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import blocking  # noqa: E402
import harness  # noqa: E402
import requests  # noqa: E402
from harness import STEP_LIMIT, Commands  # noqa: E402
from requests.adapters import HTTPAdapter  # noqa: E402
from urllib3 import HTTPConnectionPool, PoolManager  # noqa: E402
from urllib3.connection import HTTPConnection  # noqa: E402
from web import Requests, application, over_tcp  # noqa: E402

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))


class StreamConnection(HTTPConnection):
    """urllib3's connection over a stream."""

    mesh: Any
    sock: Any

    def _new_conn(self) -> Any:
        stream = self.mesh.http_dial(f"{self.host}:{self.port}")
        stream.settimeout(self.timeout)
        return stream

    @property
    def is_connected(self) -> bool:
        # urllib3 polls the descriptor; a stream is asked itself. Readable between two responses means that it has ended.
        return self.sock is not None and not self.sock.readable


class ConnectionAdapter(HTTPAdapter):
    """Has requests use connections of this class."""

    def __init__(self, connection: type[HTTPConnection]) -> None:
        self._pool = type("Pool", (HTTPConnectionPool,), {"ConnectionCls": connection})
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool: Any) -> None:
        self.poolmanager = PoolManager(connections, maxsize=maxsize, block=block, **pool)
        self.poolmanager.pool_classes_by_scheme = {"http": self._pool}


def sessions_of(connection: type[HTTPConnection]) -> Callable[[], requests.Session]:
    """What makes sessions with connections of this class."""

    def session() -> requests.Session:
        made = requests.Session()
        made.mount("http://", ConnectionAdapter(connection))
        return made

    return session


def over_mesh() -> Commands:
    from astranet_gevent import AstraNet
    from astranet_gevent.server import WSGIServer

    mesh = AstraNet().start()
    load = Requests(sessions_of(type("MeshConnection", (StreamConnection,), {"mesh": mesh})))

    def serve() -> list[Any]:
        WSGIServer(mesh.bind("web:80"), application, log=None).start()
        return list(mesh.listen(("127.0.0.1", 0)).address)

    def reach(where: list[Any]) -> None:
        mesh.join((where[0], where[1])).wait_ready(STEP_LIMIT)
        mesh.service_map.wait_for("web", STEP_LIMIT)
        load.reach("http://web/")

    return {"serve": serve, "reach": reach, **load.commands()}


def over_blocking() -> Commands:
    return over_tcp(blocking.BlockingServer, sessions_of(blocking.BlockingConnection))


ENDS: dict[str, Callable[[], Commands]] = {"gevent": over_tcp, "blocking": over_blocking, "astranet": over_mesh}

if __name__ == "__main__":
    harness.child_main(ENDS)
