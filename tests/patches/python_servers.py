"""Servers that Python brings or that packages have: `python_servers.py NAME FOLDER PORT...`, in a process that nobody has patched."""

from __future__ import annotations

import collections
import os
import socket
import ssl
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


def tls_context(folder: str) -> ssl.SSLContext:
    """A server's context, with the certificate of the stage."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(folder, "both.pem"))
    return context


class Flaky(BaseHTTPRequestHandler):
    """Fails in as many ways as its paths say."""

    protocol_version = "HTTP/1.1"
    attempts: ClassVar[collections.Counter[str]] = collections.Counter()

    def do_GET(self) -> None:
        kind, *arguments = self.path.strip("/").split("/")
        getattr(self, f"answer_{kind}")(*arguments)

    def answer_silent(self) -> None:
        """Wait for the client to give up."""
        self.rfile.read()

    def answer_short(self) -> None:
        """Less than what was announced."""
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"0123456789")
        self.close_connection = True

    def answer_fails(self, times: str, key: str) -> None:
        """Break the connection so many times, then answer with the number of the attempt; each key is counted for itself."""
        self.attempts[key] += 1
        if self.attempts[key] <= int(times):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        body = f"attempt {self.attempts[key]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class FlakyServer(ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request: Any) -> None:
        # Not shutdown(): a FIN would go before the reset.
        self.close_request(request)


def serve_flaky(folder: str, port: int, secure_port: int) -> None:
    secure = FlakyServer(("127.0.0.1", secure_port), Flaky)
    secure.socket = tls_context(folder).wrap_socket(secure.socket, server_side=True)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    FlakyServer(("127.0.0.1", port), Flaky).serve_forever()


def serve_websocket(folder: str, port: int, secure_port: int) -> None:
    """Sends back what it gets."""
    from websockets.sync.server import ServerConnection, serve

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    secure = serve(echo, "127.0.0.1", secure_port, ssl=tls_context(folder), max_size=None)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    serve(echo, "127.0.0.1", port, max_size=None).serve_forever()


def serve_mail(folder: str, port: int, secure_port: int) -> None:
    """Keeps letters as files named after their senders; with STARTTLS on the plain port."""
    from aiosmtpd.controller import Controller

    class Box:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            Path(folder, f"letter-{envelope.mail_from}").write_bytes(envelope.content)
            return "250 kept"

    more: dict[str, Any] = {"hostname": "127.0.0.1", "data_size_limit": 50_000_000, "enable_SMTPUTF8": True}
    Controller(Box(), port=secure_port, ssl_context=tls_context(folder), **more).start()
    Controller(Box(), port=port, tls_context=tls_context(folder), **more).start()
    threading.Event().wait()


def serve_files(folder: str, port: int, *passive_ports: int) -> None:
    """FTP, plain or by AUTH TLS."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import TLS_FTPHandler
    from pyftpdlib.servers import FTPServer

    home = Path(folder, "files", "home")
    home.mkdir(exist_ok=True)
    authorizer = DummyAuthorizer()
    authorizer.add_user("anna", "secret", str(home), perm="elradfmwMT")
    handler = TLS_FTPHandler
    handler.certfile = str(Path(folder, "both.pem"))
    handler.authorizer = authorizer
    handler.passive_ports = list(passive_ports)
    FTPServer(("127.0.0.1", port), handler).serve_forever()


def serve_rpc(folder: str, port: int) -> None:
    from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

    class Handler(SimpleXMLRPCRequestHandler):
        protocol_version = "HTTP/1.1"

    server = SimpleXMLRPCServer(("127.0.0.1", port), Handler, logRequests=False)
    server.register_function(pow)
    server.register_function(lambda text: text.upper(), "upper")
    server.serve_forever()


def serve_s3(folder: str, port: int) -> None:
    # Before moto reads it: the host is no bucket's.
    os.environ["S3_IGNORE_SUBDOMAIN_BUCKETNAME"] = "true"
    from gevent.pywsgi import WSGIServer
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    # Not with moto's own server, which closes the connection after each request.
    WSGIServer(("127.0.0.1", port), DomainDispatcherApplication(create_backend_app), log=None).serve_forever()


def serve_forwarded(folder: str, rpc_port: int, queue_port: int) -> None:
    """What is dialled by C code: a gRPC server and a ZeroMQ socket that echo."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    import zmq

    server = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: request.upper())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", {"Shout": method}),))
    server.add_insecure_port(f"127.0.0.1:{rpc_port}")
    server.start()
    with zmq.Context() as context, context.socket(zmq.REP) as replies:
        replies.bind(f"tcp://127.0.0.1:{queue_port}")
        while True:
            replies.send(replies.recv().upper())


SERVERS = {name.removeprefix("serve_"): function for name, function in dict(globals()).items() if name.startswith("serve_")}


if __name__ == "__main__":
    SERVERS[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
