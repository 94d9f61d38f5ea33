"""gevent's servers over a Listener instead of a socket.

``StreamServer`` and ``WSGIServer`` are gevent's own, with their pools, stop, logs and limits; only where they touch the
listening descriptor are they changed. The listener calls when a stream waits: nothing polls.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import gevent
from gevent import pywsgi
from gevent import server as gevent_server

from .address import format_node_id
from .errors import LocalProtocolError, StreamClosedError
from .tls import TLSStream, wrap_stream
from .transport.listener import Listener

__all__ = ["StreamServer", "WSGIServer"]

# Bytes of a request that nobody wanted to read, taken off the stream after the response. Left there they would
# turn the close into a reset and could cost the client the response. gevent reads as many.
_UNWANTED_BYTES = 16384

# What wrap_stream takes besides the context.
_WRAP_ARGUMENTS = {
    "server_side", "server_hostname", "do_handshake_on_connect", "suppress_ragged_eofs", "session",
}  # fmt: skip
# What gevent.ssl.wrap_socket takes to make a context of.
_CONTEXT_ARGUMENTS = {"keyfile", "certfile", "cert_reqs", "ssl_version", "ca_certs", "ciphers"}


class _BacklogWatcher:
    """What BaseServer expects of ``loop.io``: calls back in the hub for as long as streams wait."""

    __slots__ = ("_callback", "_listener")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._callback: Callable[[], None] | None = None

    def start(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._listener.on_ready(self._run)

    def _run(self) -> None:
        if self._callback is None:
            return
        self._callback()
        if self._callback is not None:
            # The server takes max_accept streams per call. Asked again, the listener calls again if some are left.
            self._listener.on_ready(self._run)

    def stop(self) -> None:
        self._callback = None
        self._listener.on_ready(None)

    def close(self) -> None:
        pass


class _ListenerServer(gevent_server.StreamServer):
    """What StreamServer and WSGIServer share: accepting from a Listener, and TLS without descriptors."""

    #: Seconds for a TLS handshake, None for ever. gevent has no limit here, so that a client that says nothing
    #: occupies its greenlet, and its place in a pool, until it leaves. Not for ``do_handshake_on_connect=False``.
    handshake_timeout: float | None = 10.0

    _wrap: Callable[[Any], TLSStream] | None = None

    def set_listener(self, listener: Any) -> None:
        """Take the listener; raises TypeError for anything that ``AstraNet.bind`` did not make."""
        if not isinstance(listener, Listener):
            raise TypeError(f"expected a Listener, as AstraNet.bind() returns it, not {listener!r}")
        node_id, port = listener.getsockname()
        self.socket: Any = listener
        self.family = listener.family
        self.service = (listener.name or format_node_id(node_id), port)
        self.address = self.service

    def set_spawn(self, spawn: Any) -> None:
        """``"default"``, a number, a Pool, a function such as ``gevent.spawn_raw`` (or ``"raw"``), None."""
        raw: Any = gevent.spawn_raw
        super().set_spawn(raw if spawn == "raw" else spawn)

    def set_tls(self, arguments: dict[str, Any]) -> None:
        """Use TLS if there are arguments for it: those of ``gevent.server.StreamServer``."""
        if arguments:
            self._wrap = _make_wrapper(dict(arguments))

    @property
    def ssl_enabled(self) -> bool:
        """Whether streams are wrapped in TLS."""
        return self._wrap is not None

    def init_socket(self) -> None:
        """Called by ``start()``. A server whose listener is closed cannot start again."""
        if not hasattr(self, "socket"):
            raise LocalProtocolError(f"{self}: its listener is closed; bind a new one for a new server")
        self._handle = self.wrap_socket_and_handle if self.ssl_enabled else self.handle

    def start_accepting(self) -> None:
        """Begin to take streams. Called by BaseServer, also when a full pool has room again."""
        if self._watcher is None:
            self._watcher: _BacklogWatcher | None = _BacklogWatcher(self.socket)
            self._watcher.start(self._do_read)  # type: ignore[attr-defined]

    def do_read(self) -> Any:
        """The next ``(stream, (node_id, port))``, None if there is none."""
        if not self.socket.readable:
            return None
        try:
            return self.socket.accept_nowait()
        except StreamClosedError:
            # Closed by its owner, or with its node: the end of this server, and not an error.
            self.close()
            return None

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        """Shake hands, then handle the request; runs in the request's own greenlet."""
        assert self._wrap is not None
        timeout = client_socket.gettimeout()
        client_socket.settimeout(self.handshake_timeout)
        stream: Any
        with self._wrap(client_socket) as stream:
            stream.settimeout(timeout)
            return self.handle(stream, address)

    def _formatinfo(self) -> str:
        # gevent's own would ask for a descriptor, and so make one.
        name, port = self.service
        state = repr(self.socket) if hasattr(self, "socket") else "closed"
        # A method of the server's own has the server in its repr, without end.
        handle = getattr(self, "handle", None)
        own = getattr(handle, "__self__", None) is self
        return f"{name}:{port} {state} handle={'its own' if own else repr(handle)}"


class StreamServer(_ListenerServer):
    """``gevent.server.StreamServer`` over a Listener: calls ``handle(stream, (node_id, port))``.

    ``spawn`` limits and places the handlers as in gevent: a number, a Pool, ``"raw"`` … The stream is closed when the handler
    returns or raises; what it raises is reported as gevent does. ``stop()`` closes the listener and waits ``stop_timeout``
    seconds (1) for the handlers of a pool.

    TLS: ``ssl_context=`` (any ``ssl.SSLContext``), or ``certfile=``, ``keyfile=``, ``ca_certs=``, ``cert_reqs=``,
    ``ssl_version=``, ``ciphers=``; with both ``suppress_ragged_eofs=``, ``do_handshake_on_connect=``, ``server_side=``. Raises
    TypeError for anything else, ValueError or ``ssl.SSLError`` for certificates that cannot be used.
    """

    def __init__(
        self,
        listener: Listener,
        handle: Callable[[Any, Any], object] | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        **ssl_args: Any,
    ) -> None:
        self.set_tls(ssl_args)
        initialize: Any = super().__init__
        initialize(listener, handle, backlog, spawn)


class WSGIServer(_ListenerServer, pywsgi.WSGIServer):
    """``gevent.pywsgi.WSGIServer`` over a Listener; TLS arguments as for StreamServer.

    In the environ SERVER_NAME is the service's name (the node's id, if it is bound by port only) and REMOTE_ADDR the client
    node's id, both as text; SERVER_PORT and REMOTE_PORT are ports of the mesh.
    """

    def __init__(
        self,
        listener: Listener,
        application: Callable[..., Any] | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        log: Any = "default",
        error_log: Any = "default",
        handler_class: type[pywsgi.WSGIHandler] | None = None,
        environ: dict[str, Any] | None = None,
        **ssl_args: Any,
    ) -> None:
        self.set_tls(ssl_args)
        initialize: Any = super().__init__
        initialize(listener, application, backlog, spawn, log, error_log, handler_class, environ)

    def init_socket(self) -> None:
        """As StreamServer; gevent's own calls its base class by name and would pass this one by."""
        _ListenerServer.init_socket(self)
        self.update_environ()

    def update_environ(self) -> None:
        """Name and port of the service. gevent's own would look the name up in DNS."""
        name, port = self.service
        self.environ.setdefault("SERVER_NAME", name)
        self.environ.setdefault("SERVER_PORT", str(port))

    def handle(self, sock: Any, address: Any) -> None:
        """Serve the requests of one stream."""
        node_id, port = address
        client_address: Any = (format_node_id(node_id), port)
        handler = self.handler_class(sock, client_address, self)
        # Kept, because the stream stays open as long as its files: gevent closes the socket under them.
        requests = getattr(handler, "rfile", None)
        try:
            handler.handle()
        finally:
            _take_unwanted(sock)
            if requests is not None:
                requests.close()
            sock.close()


def _take_unwanted(stream: Any) -> None:
    left = _UNWANTED_BYTES
    try:
        stream.settimeout(0)
        while left > 0:
            data = stream.recv(left)
            if not data:
                return
            left -= len(data)
    except OSError:
        pass  # nothing more is here, or the stream is at its end


def _make_wrapper(arguments: dict[str, Any]) -> Callable[[Any], TLSStream]:
    """A function that puts TLS over an accepted stream, from the arguments of gevent's servers."""
    wrap_arguments = {name: arguments.pop(name) for name in _WRAP_ARGUMENTS & arguments.keys()}
    wrap_arguments.setdefault("server_side", True)
    if "ssl_context" in arguments:
        context = arguments.pop("ssl_context")
        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not {context!r}")
    else:
        known = {name: arguments.pop(name) for name in _CONTEXT_ARGUMENTS & arguments.keys()}
        context = _make_context(server_side=wrap_arguments["server_side"], **known)
    if arguments:
        raise TypeError(f"unknown TLS argument {sorted(arguments)[0]!r}")
    return lambda stream: wrap_stream(stream, context, **wrap_arguments)


def _make_context(
    server_side: bool,
    certfile: Any = None,
    keyfile: Any = None,
    ca_certs: Any = None,
    cert_reqs: Any = ssl.CERT_NONE,
    ssl_version: Any = None,
    ciphers: str | None = None,
) -> ssl.SSLContext:
    """The context that ``gevent.ssl.wrap_socket`` would make for each connection."""
    if server_side and not certfile:
        raise ValueError("certfile must be specified for server-side operations")
    if keyfile and not certfile:
        raise ValueError("certfile must be specified")
    if ssl_version is None:
        ssl_version = ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(ssl_version)
    context.check_hostname = False
    context.verify_mode = cert_reqs
    if ca_certs:
        context.load_verify_locations(ca_certs)
    if certfile:
        context.load_cert_chain(certfile, keyfile)
    if ciphers:
        context.set_ciphers(ciphers)
    return context
