"""Names and addresses of the mesh in gevent's resolver; everything else goes to the resolver that was there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .names import host_text

if TYPE_CHECKING:
    from .applying import Patch

__all__ = ["MeshResolver", "in_order"]

_STREAM_PROTOCOLS: Final = (0, socket.IPPROTO_TCP)

# Plain numbers: "and" with an IntFlag takes longer than all of the look-up.
_PASSIVE: Final = int(socket.AI_PASSIVE)
_NUMERIC_HOST: Final = int(socket.AI_NUMERICHOST)


def in_order(patches: list[Patch], host: Any) -> Sequence[Patch]:
    """Whom to ask: the newest first, but before all others those that know a service of that name."""
    if len(patches) < 2:
        return tuple(patches)
    return sorted(patches, key=lambda patch: not patch.knows(host))


class MeshResolver:
    """Shaped as gevent's resolvers: answers what one of the patches knows, and asks ``inner`` for the rest."""

    def __init__(self, inner: Any, patches: list[Patch]) -> None:
        self._inner = inner
        self._patches = patches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _address_of(self, host: Any, *, to_bind: bool = False) -> str | None:
        """The synthetic address of a host name; None when it is not the mesh's. Raises gaierror for a name that nobody offers."""
        text = host_text(host)
        if not text:
            return None
        for patch in in_order(self._patches, text):
            if text in patch.foreign:
                continue
            if patch.names.thing_of(text) is not None:
                return text
            if to_bind:
                # Who is about to offer a name does not wait until somebody offers it.
                service = patch.bindable(text)
                if service is not None:
                    return patch.address_of(service)
            else:
                service = patch.service_of(text)
                if service is not None:
                    return patch.resolve(service)
        return None

    def _name_of(self, address: Any) -> str | None:
        """What a synthetic address stands for."""
        if isinstance(address, str):
            for patch in self._patches:
                name = patch.name_of(address)
                if name is not None:
                    return name
        return None

    def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if host.__class__ is str:
            # Written out for programs that use TCP, as a connect is.
            for patch in self._patches:
                if host not in patch.foreign:
                    break
            else:
                return self._inner.getaddrinfo(host, port, family, type, proto, flags)
        to_bind = bool(flags & _PASSIVE)
        address = None if flags & _NUMERIC_HOST and not self._name_of(host) else self._address_of(host, to_bind=to_bind)
        if address is None:
            return self._inner.getaddrinfo(host, port, family, type, proto, flags)
        if family not in (socket.AF_UNSPEC, socket.AF_INET):
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is a service of the mesh: its address is AF_INET only")
        if type not in (0, socket.SOCK_STREAM) or proto not in _STREAM_PROTOCOLS:
            raise socket.gaierror(socket.EAI_SERVICE, f"{host!r} is a service of the mesh: it has streams only")
        canonical = str(host) if flags & socket.AI_CANONNAME else ""
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, canonical, (address, _port_number(port)))]

    def gethostbyname(self, hostname: Any, *args: Any) -> Any:
        return self._address_of(hostname) or self._inner.gethostbyname(hostname, *args)

    def gethostbyname_ex(self, hostname: Any, *args: Any) -> Any:
        address = self._address_of(hostname)
        return (str(hostname), [], [address]) if address else self._inner.gethostbyname_ex(hostname, *args)

    def gethostbyaddr(self, ip_address: Any) -> Any:
        name = self._name_of(ip_address)
        if name is not None:
            return name, [], [ip_address]
        address = self._address_of(ip_address)
        return (str(ip_address), [], [address]) if address else self._inner.gethostbyaddr(ip_address)

    def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        name = self._name_of(sockaddr[0]) if isinstance(sockaddr, tuple) and len(sockaddr) >= 2 else None
        if name is None:
            return self._inner.getnameinfo(sockaddr, flags)
        host, port = sockaddr[:2]
        return (host if flags & socket.NI_NUMERICHOST else name), str(port)


def _port_number(port: Any) -> int:
    """A port given as a number, as digits, as the name of a service, or not at all."""
    if port is None:
        return 0
    if isinstance(port, (bytes, bytearray)):
        port = bytes(port).decode("ascii", "replace")
    if isinstance(port, str):
        if not port.strip():
            return 0
        try:
            return int(port)
        except ValueError:
            try:
                return socket.getservbyname(port, "tcp")
            except OSError as error:
                raise socket.gaierror(socket.EAI_SERVICE, f"{port!r} is no port and no service: {error}") from error
    return int(port)
