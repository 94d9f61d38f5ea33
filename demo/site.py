"""The site: a WSGI application that serves a folder's files, bound to a service name.

It has no port that anybody could connect to. It joins the router and is reached through it.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

from astranet_gevent import AstraNet, Role
from astranet_gevent.server import WSGIServer

from .library import BLOCK, Entry, read_folder
from .process import SERVICE, join, tell, wait_for_end

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

FILES = "/files/"


class Site:
    """The application: `/index` is JSON with each file's Entry, `/files/<path>` a file.

    Only paths of the index are answered. What a request asks for is looked up there, and never put
    together with the folder's path, so no request can lead elsewhere.
    """

    def __init__(self, root: Path, entries: Sequence[Entry]) -> None:
        self._files = {entry.path: root / entry.path for entry in entries}
        self._index = json.dumps({"files": [entry._asdict() for entry in entries]}).encode()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # WSGI hands over bytes dressed as Latin-1 text.
        path = os.fsdecode(environ["PATH_INFO"].encode("latin-1"))
        if environ["REQUEST_METHOD"] != "GET":
            return self._refuse(start_response, HTTPStatus.METHOD_NOT_ALLOWED)
        if path == "/index":
            self._accept(start_response, "application/json", len(self._index))
            return [self._index]
        file_path = self._files.get(path.removeprefix(FILES)) if path.startswith(FILES) else None
        if file_path is None:
            return self._refuse(start_response, HTTPStatus.NOT_FOUND)
        file = file_path.open("rb")
        self._accept(start_response, "application/octet-stream", os.fstat(file.fileno()).st_size)
        return FileWrapper(file, BLOCK)

    @staticmethod
    def _accept(start_response: StartResponse, kind: str, size: int) -> None:
        start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(size))])

    @staticmethod
    def _refuse(start_response: StartResponse, status: HTTPStatus) -> list[bytes]:
        body = f"{status.phrase}\n".encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]


class CountingServer(WSGIServer):
    """Counts the streams that it accepts, so that the client's count can be checked."""

    accepted = 0

    def do_handle(self, *accepted: Any) -> None:
        self.accepted += 1
        super().do_handle(*accepted)


def run(options: Namespace) -> int:
    # Before the service is announced: hashing keeps this process busy.
    entries = read_folder(options.root, options.limit)
    with AstraNet(role=Role.SERVER) as mesh:
        join(mesh, options.join, options.wait)
        server = CountingServer(mesh.bind(SERVICE), Site(options.root, entries), log=None)
        server.start()
        tell(files=len(entries), bytes=sum(entry.size for entry in entries))
        wait_for_end(options.until_eof)
        tell(accepted=server.accepted)
        server.stop()
    return 0
