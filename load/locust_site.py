"""What the users of ``locustfile.py`` call: a service of HTTP, "site", and one of streams, "echo". Started by ``locust_run.py``.

locust_site.py router PORT    listen, and pass on what others offer
locust_site.py site PORT      join the router there, and offer both services

Both end when their standard input does: with the process that has started them, however that ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gevent
import gevent.fileobject

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from astranet_gevent import AstraNet, Role, Stream
from astranet_gevent.server import StreamServer, WSGIServer

PAGE = b"<p>hello</p>" * 100


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/html")])
    return [f"{len(body)} bytes\n".encode()] if environ["REQUEST_METHOD"] == "POST" else [PAGE]


def echo(stream: Stream, _address: tuple[int, int]) -> None:
    try:
        while data := stream.recv(65536):
            stream.sendall(data)
    except ConnectionError:
        return  # the user has left in the middle


def end_with_input() -> None:
    """End this process at the end of standard input."""
    with gevent.fileobject.FileObject(0, "rb", closefd=False) as lines:
        for _ in lines:
            pass
    os._exit(0)


def main(what: str, port: int) -> None:
    gevent.spawn(end_with_input)
    with AstraNet(role=Role.ROUTER if what == "router" else Role.BOTH) as mesh:
        if what == "router":
            print(*mesh.listen(("127.0.0.1", port)).address, flush=True)
        else:
            WSGIServer(mesh.bind("site"), application, log=None).start()
            StreamServer(mesh.bind("echo"), echo).start()
            mesh.join(("127.0.0.1", port)).wait_ready(30)
            print("ready", flush=True)
        try:
            mesh.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
