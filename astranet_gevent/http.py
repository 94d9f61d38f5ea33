"""HTTP to services of the mesh: ``http.client`` connections that dial by service name."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import TYPE_CHECKING, Any

from .address import parse_service
from .tls import wrap_stream

if TYPE_CHECKING:
    from .mesh import AstraNet
    from .protocol.selectors import Selector

__all__ = ["HTTPConnection", "HTTPSConnection"]

# http.client's own way to say "no timeout was given": None is a timeout, namely none.
_NOT_GIVEN: Any = getattr(socket, "_GLOBAL_DEFAULT_TIMEOUT", None)


class HTTPConnection(http.client.HTTPConnection):
    """An ``http.client.HTTPConnection`` to ``"service"`` or ``"service:port"``.

    ``timeout`` seconds are for the dial, and for each read or write after it; without one the dial
    has the node's ``dial_timeout`` and the stream its default. ``selector`` chooses among the
    servers, anew for each connection. The Host header is the service as given. Connects at the
    first request, and again after a response that ended the connection, as ``http.client`` does.
    Raises what ``AstraNet.dial`` raises, and ``InvalidURL`` for a name with spaces or control
    characters, which no Host header can carry.
    """

    sock: Any

    def __init__(
        self,
        mesh: AstraNet,
        service: str,
        timeout: float | None = _NOT_GIVEN,
        selector: Selector | None = None,
        blocksize: int = 8192,
    ) -> None:
        name, port = parse_service(service)
        # Passed apart: http.client takes any colon for the beginning of a port, and a name may have one.
        super().__init__(name, port or self.default_port, timeout=timeout, blocksize=blocksize)
        self.mesh = mesh
        self.service = service
        self.selector = selector
        self._target = service if port else f"{service}:{self.default_port}"

    def connect(self) -> None:
        """Dial the service; called by the first request."""
        given = self.timeout is not _NOT_GIVEN
        stream = self.mesh.http_dial(self._target, self.timeout if given else None, selector=self.selector)
        if given:
            stream.settimeout(self.timeout)
        self.sock = stream
        if self._tunnel_host:  # type: ignore[attr-defined]
            self._tunnel()  # type: ignore[attr-defined]

    def putrequest(
        self,
        method: str,
        url: str,
        skip_host: bool = False,
        skip_accept_encoding: bool = False,
    ) -> None:
        """Begin a request, as ``http.client`` does, with the service as its host."""
        # An absolute URL (to a proxy) names its own host, and so does a tunnel.
        other_host = url.startswith("http") or self._tunnel_host  # type: ignore[attr-defined]
        if skip_host or other_host:
            super().putrequest(method, url, skip_host, skip_accept_encoding)
            return
        super().putrequest(method, url, True, skip_accept_encoding)
        # http.client would write an international name in IDNA, which the service never heard of.
        self.putheader("Host", self.service.encode("utf-8", "surrogateescape"))


class HTTPSConnection(HTTPConnection):
    """The same over TLS; ``server_hostname`` is the name in the certificate (default: the service's).

    Without a ``context`` it is ``ssl.create_default_context()`` that judges the certificate.
    Raises ``ssl.SSLError`` besides, SSLCertVerificationError for a certificate that is not good.
    """

    default_port = 443

    def __init__(
        self,
        mesh: AstraNet,
        service: str,
        timeout: float | None = _NOT_GIVEN,
        selector: Selector | None = None,
        blocksize: int = 8192,
        context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(mesh, service, timeout, selector, blocksize)
        if context is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
        self.context = context
        self.server_hostname = server_hostname

    def connect(self) -> None:
        """Dial the service and shake hands; called by the first request."""
        super().connect()
        # None meanwhile: after a failed handshake the next request has to dial again.
        stream, self.sock = self.sock, None
        tunnel_host: str | None = self._tunnel_host  # type: ignore[attr-defined]
        self.sock = wrap_stream(
            stream,
            self.context,
            server_hostname=self.server_hostname or tunnel_host or self.host,
        )
