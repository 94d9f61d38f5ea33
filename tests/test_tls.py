"""TLS over streams without descriptors: on gevent socket pairs and on the mesh's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import socket as stdlib_socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.select
import gevent.server
import gevent.socket
import gevent.ssl
import gevent.subprocess
import pytest
import trustme

from astranet_gevent import AstraNet
from astranet_gevent.errors import (
    ConcurrentUseError,
    StreamBrokenPipeError,
    StreamClosedError,
    StreamTimeout,
)
from astranet_gevent.tls import TLSStream, wrap_stream

NAME = "files.example"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
Pair = tuple[TLSStream, TLSStream]


class Certificates:
    """One authority, with contexts for both ends."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self.server_certificate = self.authority.issue_cert(NAME)
        self.client_certificate = self.authority.issue_cert("someone@files.example")

    def server(self, version: ssl.TLSVersion | None = None, **more: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_certificate.configure_cert(context)
        self.authority.configure_trust(context)
        return configure(context, version, more)

    def client(self, version: ssl.TLSVersion | None = None, **more: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        return configure(context, version, more)

    def client_with_certificate(self, **more: Any) -> ssl.SSLContext:
        context = self.client(**more)
        self.client_certificate.configure_cert(context)
        return context


ends_are_told = pytest.mark.skipif(
    bool(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).options & ssl.OP_IGNORE_UNEXPECTED_EOF),
    reason="this interpreter (before 3.11.4) takes an end without close_notify for a clean one, over sockets too",
)


def configure(context: ssl.SSLContext, version: ssl.TLSVersion | None, more: dict[str, Any]) -> ssl.SSLContext:
    if version is not None:
        context.minimum_version = context.maximum_version = version
    for name, value in more.items():
        setattr(context, name, value)
    return context


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture
def nodes() -> Iterator[tuple[AstraNet, AstraNet]]:
    """Two nodes with a link between them."""
    with AstraNet() as near, AstraNet() as far:
        left, right = gevent.socket.socketpair()
        far.attach(right)
        near.attach(left).wait_ready(5)
        yield near, far


@pytest.fixture(params=["socket pair", "mesh"])
def sockets(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Two connected streams with little room between them, so that writers do have to wait."""
    left: Any
    right: Any
    if request.param == "mesh":
        near, far = request.getfixturevalue("nodes")
        with far.bind("tls") as listener:
            left = near.dial("tls")
            right, _ = listener.accept()
    else:
        left, right = gevent.socket.socketpair()
        for end in (left, right):
            end.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 4096)
    for end in (left, right):
        end.settimeout(10)
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def shake(spawn: Callable[..., Any]) -> Callable[..., Pair]:
    """``shake(sockets, client context, server context, …) -> (client, server)``, hands shaken."""

    def connect(
        ends: tuple[Any, Any],
        client: ssl.SSLContext,
        server: ssl.SSLContext,
        name: str = NAME,
        session: ssl.SSLSession | None = None,
        **more: Any,
    ) -> Pair:
        other = spawn(wrap_stream, ends[1], server, server_side=True, **more)
        wrapped = wrap_stream(ends[0], client, server_hostname=name, session=session, **more)
        return wrapped, other.get(timeout=10)

    return connect


@pytest.fixture
def pair(sockets: tuple[Any, Any], shake: Callable[..., Pair], certificates: Certificates) -> Iterator[Pair]:
    client, server = shake(sockets, certificates.client(), certificates.server())
    yield client, server
    client.close()
    server.close()


def receive_all(stream: Any, size: int = 65536) -> bytes:
    parts = []
    while data := stream.recv(size):
        parts.append(data)
    return b"".join(parts)


def receive_exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        assert part, f"ended after {len(data)} of {size} bytes"
        data += part
    return data


def pattern(size: int) -> bytes:
    """Bytes in which anything lost, doubled or moved shows."""
    return b"".join(b"%07d\n" % number for number in range(size // 8 + 1))[:size]


class Faucet:
    """A stream that lets through what the test allows: for what real peers and links do at will."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._held: bytes | None = None
        self.room: int | None = None
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def send(self, data: memoryview) -> int:
        if self.broken:
            raise ConnectionResetError(104, "Connection reset by peer")
        if self._held is not None:
            self._held += data
            return len(data)
        if self.room is None:
            return int(self._stream.send(data))
        if self.room == 0:
            if self._stream.gettimeout() == 0.0:
                raise BlockingIOError
            raise TimeoutError("timed out")
        taken = self._stream.send(data[: self.room])
        self.room -= taken
        return int(taken)

    def hold(self, write: Callable[[], Any]) -> bytes:
        """What ``write`` would have sent."""
        self._held = b""
        write()
        held, self._held = self._held, None
        return held


# -- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_both_directions_at_once(
    version: ssl.TLSVersion,
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
    spawn: Callable[..., Any],
) -> None:
    client, server = shake(sockets, certificates.client(version), certificates.server(version))
    expected = {"up": pattern(3_000_000), "down": pattern(2_345_678)[::-1]}

    def write(stream: TLSStream, data: bytes) -> None:
        stream.sendall(data)
        stream.shutdown(stdlib_socket.SHUT_WR)

    writers = [spawn(write, client, expected["up"]), spawn(write, server, expected["down"])]
    readers = [spawn(receive_all, server), spawn(receive_all, client, 1000)]
    gevent.joinall(writers, timeout=30, raise_error=True)
    assert digest(readers[0].get(timeout=30)) == digest(expected["up"])
    assert digest(readers[1].get(timeout=30)) == digest(expected["down"])
    assert client.version() == server.version() == version.name.replace("_", ".")


def digest(data: bytes) -> str:
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


def test_recv_into_and_pending(pair: Pair) -> None:
    client, server = pair
    server.sendall(b"abcdef")
    buffer = bytearray(4)
    assert client.recv_into(buffer) == 4
    assert buffer == b"abcd"
    assert client.pending() == 2
    assert client.recv_into(buffer, 1) == 1
    assert buffer == b"ebcd"
    assert client.recv(0) == b""
    assert client.recv_into(bytearray(0)) == 0
    assert client.recv(100) == b"f"
    assert client.pending() == 0


def test_a_read_takes_one_record_only(pair: Pair, sockets: Any) -> None:
    client, server = pair
    server.sendall(b"first")
    server.sendall(b"second")
    assert client.recv(1) == b"f"
    # Whoever polls after draining pending() must see that there is more.
    assert client.recv(client.pending()) == b"irst"
    assert client.pending() == 0
    assert gevent.select.select([client], [], [], 0)[0] == [client]
    assert client.recv(100) == b"second"
    assert gevent.select.select([client], [], [], 0)[0] == []


def test_makefile(pair: Pair) -> None:
    client, server = pair
    with client.makefile("rwb") as file, server.makefile("r", encoding="utf-8") as lines:
        file.write("eins\nzwölf\n".encode())
        file.flush()
        assert lines.readline() == "eins\n"
        assert lines.readline() == "zwölf\n"
    writer = server.makefile("wb")
    reader = client.makefile("rb", buffering=0)
    server.close()
    client.close()
    writer.write(b"after close")
    writer.close()
    assert reader.readall() == b"after close"
    with pytest.raises(ValueError, match="invalid mode"):
        client.makefile("x")
    reader.close()
    with pytest.raises(StreamClosedError):
        client.recv(1)


def test_sendfile(pair: Pair, tmp_path: Any, spawn: Callable[..., Any]) -> None:
    client, server = pair
    path = tmp_path / "content"
    path.write_bytes(pattern(300_000))
    reader = spawn(receive_all, server)
    with path.open("rb") as file:
        assert client.sendfile(file, 1000, 2000) == 2000
        assert file.tell() == 3000
        assert client.sendfile(file, 3000) == 297_000
    client.close()
    assert reader.get(timeout=10) == pattern(300_000)[1000:]


def test_other_kinds_of_buffers(pair: Pair) -> None:
    client, server = pair
    assert client.send(b"") == 0
    client.sendall(b"")
    numbers = memoryview(b"abcdefgh").cast("I")
    client.sendall(numbers)
    assert receive_exactly(server, 8) == b"abcdefgh"
    server.sendall(bytearray(b"01234567"))
    target = memoryview(bytearray(8)).cast("I")
    assert client.recv_into(target) == 8
    assert target.tobytes() == b"01234567"


# -- who is it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_certificates_of_both_sides(version: ssl.TLSVersion, sockets: Any, shake: Callable[..., Pair], certificates: Certificates) -> None:
    server_context = certificates.server(version, verify_mode=ssl.CERT_REQUIRED)
    server_context.set_alpn_protocols(["one", "two"])
    client_context = certificates.client_with_certificate(version=version)
    client_context.set_alpn_protocols(["two"])
    client, server = shake(sockets, client_context, server_context)
    assert ("DNS", NAME) in client.getpeercert()["subjectAltName"]
    assert ("email", "someone@files.example") in server.getpeercert()["subjectAltName"]
    assert isinstance(client.getpeercert(True), bytes)
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "two"
    assert client.cipher() == server.cipher()
    assert client.server_hostname == NAME
    assert client.context is client_context
    assert client.compression() is None
    assert server.shared_ciphers()
    assert client.getpeername() == sockets[0].getpeername()
    assert client.fileno() == sockets[0].fileno()
    assert client.family == sockets[0].family
    assert client.type == stdlib_socket.SOCK_STREAM
    assert "TLSv1" in repr(client)
    assert "client open" in repr(client)


@pytest.mark.parametrize("kind", [ssl.SSLContext, gevent.ssl.SSLContext])
def test_sni_callback(
    kind: type[ssl.SSLContext],
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
) -> None:
    other = certificates.server()
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    seen = []

    def choose(connection: Any, name: str, _context: ssl.SSLContext) -> None:
        seen.append(name)
        connection.context = other

    context.sni_callback = choose
    _, server = shake(sockets, certificates.client(), context)
    assert seen == [NAME]
    assert server.context is other


def test_session_is_resumed(shake: Callable[..., Pair], certificates: Certificates) -> None:
    version = ssl.TLSVersion.TLSv1_2
    client_context, server_context = certificates.client(version), certificates.server(version)
    session = None
    for resumed in (False, True):
        client, server = shake(gevent.socket.socketpair(), client_context, server_context, session=session)
        assert client.session_reused is resumed
        session = client.session
        client.close()
        server.close()


def test_wrong_authority(sockets: Any, certificates: Certificates, spawn: Callable[..., Any]) -> None:
    stranger = Certificates()
    server = spawn(wrap_stream, sockets[1], certificates.server(), server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        wrap_stream(sockets[0], stranger.client(), server_hostname=NAME)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert unknown ca"):
        server.get(timeout=10)
    for end in sockets:
        assert end.fileno() == -1, "a failed handshake closes the stream"


def test_wrong_name(sockets: Any, certificates: Certificates, spawn: Callable[..., Any]) -> None:
    server = spawn(wrap_stream, sockets[1], certificates.server(), server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname mismatch"):
        wrap_stream(sockets[0], certificates.client(), server_hostname="other.example")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad certificate"):
        server.get(timeout=10)


@pytest.mark.parametrize("version", VERSIONS)
def test_client_without_certificate(
    version: ssl.TLSVersion,
    sockets: Any,
    certificates: Certificates,
    spawn: Callable[..., Any],
) -> None:
    context = certificates.server(version, verify_mode=ssl.CERT_REQUIRED)
    server = spawn(wrap_stream, sockets[1], context, server_side=True)
    # In TLS 1.3 the client is through before the server has looked at its certificate.
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate required|alert handshake failure"):
        wrap_stream(sockets[0], certificates.client(version), server_hostname=NAME).recv(1)
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        server.get(timeout=10)


def test_arguments_that_contradict(sockets: Any, certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="client mode"):
        wrap_stream(sockets[0], certificates.server(), server_side=True, server_hostname=NAME)
    with pytest.raises(ValueError, match="check_hostname requires server_hostname"):
        wrap_stream(sockets[0], certificates.client())
    sockets[0].setblocking(False)
    with pytest.raises(ValueError, match="blocking stream"):
        wrap_stream(sockets[0], certificates.client(), server_hostname=NAME)


def test_what_an_ssl_socket_refuses(pair: Pair) -> None:
    client, _ = pair
    buffer = bytearray(1)
    calls: list[Callable[[], Any]] = [
        lambda: client.recv(1, 1),
        lambda: client.recv_into(buffer, 1, 1),
        lambda: client.send(buffer, 1),
        lambda: client.sendall(buffer, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="non-zero flags"):
            call()
    for refused in (client.recvmsg, client.recvmsg_into, client.sendmsg, client.dup):
        with pytest.raises(NotImplementedError):
            refused()
    for refused in (client.recvfrom, client.recvfrom_into, client.sendto):
        with pytest.raises(ValueError, match="not allowed"):
            refused()
    with pytest.raises(ValueError, match="negative"):
        client.recv(-1)
    with pytest.raises(OSError) as caught:
        client.shutdown(17)
    assert caught.value.errno == 22


# -- handshakes that do not come to an end -------------------------------------------------------


def test_silence_in_the_handshake(sockets: Any, certificates: Certificates) -> None:
    sockets[1].settimeout(0.05)
    sockets[0].sendall(client_hello(certificates)[:100])
    with pytest.raises(StreamTimeout, match="The handshake operation timed out"):
        wrap_stream(sockets[1], certificates.server(), server_side=True)
    assert receive_all(sockets[0]) == b""


def test_drops_in_the_handshake_do_not_extend_it(sockets: Any, certificates: Certificates, spawn: Callable[..., Any]) -> None:
    hello = client_hello(certificates)

    def drip() -> None:
        for position in range(len(hello)):
            sockets[0].sendall(hello[position : position + 1])
            gevent.sleep(0.03)  # the peer's slowness is what is tested

    sockets[1].settimeout(0.1)
    dripping = spawn(drip)
    with pytest.raises(StreamTimeout, match="handshake"):
        wrap_stream(sockets[1], certificates.server(), server_side=True)
    dripping.kill()


def client_hello(certificates: Certificates) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = certificates.client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@ends_are_told
def test_end_in_the_handshake(sockets: Any, certificates: Certificates) -> None:
    sockets[0].sendall(client_hello(certificates)[:100])
    sockets[0].close()
    with pytest.raises(ssl.SSLEOFError):
        wrap_stream(sockets[1], certificates.server(), server_side=True)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"hello, who is there?\r\n"])
def test_not_tls_is_refused_at_once(words: bytes, sockets: Any, certificates: Certificates) -> None:
    # Its fourth and fifth byte say that a "record" of thousands of bytes follows. It never does.
    sockets[0].sendall(words)
    with pytest.raises(ssl.SSLError, match=r"(?i)http.request|wrong.version.number"):
        wrap_stream(sockets[1], certificates.server(), server_side=True)


def test_handshake_without_blocking(sockets: Any, certificates: Certificates, eventually: Callable[..., None]) -> None:
    ends = []
    for position, context in enumerate((certificates.client(), certificates.server())):
        sockets[position].setblocking(False)
        ends.append(
            wrap_stream(
                sockets[position],
                context,
                server_side=position == 1,
                server_hostname=None if position else NAME,
                do_handshake_on_connect=False,
            )
        )
    client, server = ends
    assert client.version() is None
    left = [client, server]

    def shaken() -> bool:
        for end in list(left):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                end.do_handshake()
                left.remove(end)
        return not left

    eventually(shaken, "both handshakes")
    with pytest.raises(ssl.SSLWantReadError):
        client.recv(1)
    server.sendall(b"x")
    client.settimeout(10)
    assert client.recv(1) == b"x"


def test_handshake_by_reading_and_writing(sockets: Any, certificates: Certificates, spawn: Callable[..., Any]) -> None:
    client = wrap_stream(sockets[0], certificates.client(), server_hostname=NAME, do_handshake_on_connect=False)
    server = wrap_stream(sockets[1], certificates.server(), server_side=True, do_handshake_on_connect=False)
    reader = spawn(server.recv, 10)
    client.sendall(b"hello")
    assert reader.get(timeout=10) == b"hello"


@pytest.mark.parametrize("version", VERSIONS)
def test_handshake_by_reading_and_writing_at_once(
    version: ssl.TLSVersion, sockets: Any, certificates: Certificates, spawn: Callable[..., Any]
) -> None:
    client = wrap_stream(sockets[0], certificates.client(version), server_hostname=NAME, do_handshake_on_connect=False)
    server = wrap_stream(sockets[1], certificates.server(version), server_side=True, do_handshake_on_connect=False)
    # Readers are in before any byte has come, so the handshake's answers are theirs to make and,
    # while a writer holds the line, the writer's to send.
    readers = [spawn(receive_exactly, end, 300_000) for end in (server, client)]
    writers = [spawn(end.sendall, pattern(300_000)) for end in (server, client)]
    gevent.joinall(writers, timeout=10, raise_error=True)
    assert [reader.get(timeout=10) for reader in readers] == [pattern(300_000)] * 2


# -- interrupted calls ---------------------------------------------------------------------------


def test_read_timeout(pair: Pair) -> None:
    client, server = pair
    client.settimeout(0.01)
    with pytest.raises(StreamTimeout, match="The read operation timed out"):
        client.recv(1)
    client.settimeout(0)
    assert client.getblocking() is False
    with pytest.raises(ssl.SSLWantReadError):
        client.recv(1)
    client.setblocking(True)
    assert client.timeout is None
    server.sendall(b"late")
    assert client.recv(10) == b"late"


def test_reader_interrupted_within_a_record(
    sockets: Any, shake: Callable[..., Pair], certificates: Certificates, spawn: Callable[..., Any]
) -> None:
    raw = Faucet(sockets[1])
    client, server = shake((sockets[0], raw), certificates.client(), certificates.server())
    record = raw.hold(lambda: server.sendall(b"a" * 1000))
    following = raw.hold(lambda: server.sendall(b"b" * 10))
    position = 0
    for part in (1, 3, 7, 500, 300):
        raw.sendall(record[position : position + part])
        position += part
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.005):
            client.recv(2000)
        client.settimeout(0.005)
        with pytest.raises(StreamTimeout):
            client.recv(2000)
        client.settimeout(None)
        reader = spawn(client.recv, 2000)
        gevent.idle()
        reader.kill()
    raw.sendall(record[position:] + following)
    assert client.recv(2000) == b"a" * 1000
    assert client.recv(2000) == b"b" * 10


def test_writer_interrupted(pair: Pair, spawn: Callable[..., Any]) -> None:
    client, server = pair
    messages = [bytes([65 + number]) * 1_000_000 for number in range(4)]
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        client.sendall(messages[0])
    writer = spawn(client.sendall, messages[1])
    gevent.idle()
    writer.kill()
    client.settimeout(0.01)
    with pytest.raises(StreamTimeout, match="The write operation timed out"):
        client.sendall(messages[2])
    client.settimeout(None)
    reader = spawn(receive_all, server)
    client.sendall(messages[3])
    client.close()
    got = reader.get(timeout=10)
    # The rest of what was encrypted goes first, whole; nothing is in it twice or mixed.
    assert got.endswith(messages[3])
    assert got == b"".join(bytes([letter]) * got.count(letter) for letter in b"ABCD")
    for letter in (b"A", b"B", b"C"):
        assert got.count(letter) < 1_000_000
        assert got.count(letter) % 65536 == 0


def test_time_covers_the_whole_call(pair: Pair, spawn: Callable[..., Any]) -> None:
    client, server = pair
    client.settimeout(0.1)

    def sip() -> None:
        while server.recv(100):
            gevent.sleep(0.02)  # the peer's slowness is what is tested

    drinking = spawn(sip)
    with pytest.raises(StreamTimeout, match="write"):
        client.sendall(bytes(10_000_000))
    drinking.kill()


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_failed_send_is_not_sent_twice(
    timeout: float,
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
    spawn: Callable[..., Any],
) -> None:
    faucet = Faucet(sockets[0])
    client, server = shake((faucet, sockets[1]), certificates.client(), certificates.server())
    client.settimeout(timeout)
    reader = spawn(receive_all, server)
    error: type[Exception] = StreamTimeout if timeout else ssl.SSLWantWriteError

    faucet.room = 100
    with pytest.raises(error):
        client.send(b"a" * 1000)
    with pytest.raises(error):
        client.send(b"a" * 1000)
    faucet.room = None
    # Half of the data again, then the other half: both are sent already.
    assert client.send(b"a" * 600) == 600
    assert client.send(b"a" * 400) == 400

    faucet.room = 100
    with pytest.raises(error):
        client.send(b"b" * 1000)
    faucet.room = None
    assert client.send(b"c" * 10) == 10
    assert client.send(b"b" * 10) == 10
    client.settimeout(None)
    client.close()
    assert reader.get(timeout=10) == b"a" * 1000 + b"b" * 1000 + b"c" * 10 + b"b" * 10


def test_success_means_sent(pair: Pair, spawn: Callable[..., Any]) -> None:
    client, server = pair
    client.setblocking(False)
    data, sent = pattern(400_000), 0
    while True:
        try:
            sent += client.send(data[sent:])
        except ssl.SSLWantWriteError:
            break
    # All that was reported is there for the peer, with no further call on this side.
    assert receive_exactly(server, sent) == data[:sent]
    reader = spawn(receive_all, server)
    client.setblocking(True)
    client.sendall(data[sent:])
    client.close()
    assert reader.get(timeout=10) == data[sent:]


def test_two_readers_are_refused_and_two_writers_take_turns(pair: Pair, spawn: Callable[..., Any]) -> None:
    client, server = pair
    reading = spawn(client.recv, 100)
    gevent.idle()
    with pytest.raises(ConcurrentUseError):
        client.recv(1)
    server.sendall(b"one")
    assert reading.get(timeout=10) == b"one"

    counting = spawn(receive_all, server)
    writers = [spawn(client.sendall, letter * 200_000) for letter in (b"x", b"y", b"z")]
    gevent.joinall(writers, timeout=10, raise_error=True)
    client.close()
    got = counting.get(timeout=10)
    assert [got.count(letter) for letter in (b"x", b"y", b"z")] == [200_000] * 3


# -- what arrives after the handshake ------------------------------------------------------------


def test_certificate_asked_for_later(
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
    spawn: Callable[..., Any],
) -> None:
    client_context = certificates.client_with_certificate(post_handshake_auth=True)
    server_context = certificates.server(post_handshake_auth=True, verify_mode=ssl.CERT_REQUIRED)
    server_context.verify_mode = ssl.CERT_OPTIONAL
    client, server = shake(sockets, client_context, server_context)
    server.verify_client_post_handshake()
    upload, download = pattern(1_000_000), pattern(900_000)
    # The answer to the request has to find its place between the records of the writer.
    writers = [spawn(client.sendall, upload), spawn(server.sendall, download)]
    reader = spawn(receive_exactly, client, len(download))
    assert receive_exactly(server, len(upload)) == upload
    assert reader.get(timeout=10) == download
    gevent.joinall(writers, timeout=10, raise_error=True)
    client.sendall(b"!")
    assert server.recv(1) == b"!"
    assert ("email", "someone@files.example") in server.getpeercert()["subjectAltName"]


def test_reading_goes_on_while_its_answer_cannot_leave(
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
    spawn: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    client_context = certificates.client_with_certificate(post_handshake_auth=True)
    server_context = certificates.server(post_handshake_auth=True, verify_mode=ssl.CERT_OPTIONAL)
    client, server = shake(sockets, client_context, server_context)
    client.settimeout(0)
    with contextlib.suppress(ssl.SSLWantWriteError):
        while True:
            client.send(b"x" * 100)
    client.settimeout(10)
    server.verify_client_post_handshake()
    server.sendall(b"hello")
    # The request came with it. Its answer has no room, and that is no reason to keep the data.
    assert client.recv(100) == b"hello"
    # Now there is room, and the answer leaves without any call on this side.
    spawn(receive_all, server)
    eventually(lambda: bool(server.getpeercert()), "the client's certificate")
    assert ("email", "someone@files.example") in server.getpeercert()["subjectAltName"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_key_updates(certificates: Certificates, spawn: Callable[..., Any], eventually: Callable[..., None]) -> None:
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    host, port = listener.getsockname()
    program: Any = gevent.subprocess.Popen(
        ["openssl", "s_client", "-tls1_3", "-connect", f"{host}:{port}"],
        stdin=gevent.subprocess.PIPE,
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.STDOUT,
    )
    try:
        connection, _ = listener.accept()
        server = wrap_stream(connection, certificates.server(), server_side=True)
        lines = [f"line {number:06d}\n" for number in range(2000)]

        def write() -> None:
            for line in lines:
                server.sendall(line.encode())
                gevent.idle()

        writing = spawn(write)
        text = bytearray()

        def collect() -> None:
            while part := program.stdout.read1(65536):
                text.extend(part)

        collecting = spawn(collect)
        for number in range(20):
            # "K" alone on a line: new keys, and the peer is asked for new ones too. Only at the start of what is read
            # from the terminal is it a command: so it must be gone before the next line comes.
            program.stdin.write(b"K\n")
            program.stdin.flush()
            eventually(lambda: text.count(b"KEYUPDATE") > number, "the key update")  # noqa: B023
            words = b"word %d\n" % number
            program.stdin.write(words)
            program.stdin.flush()
            assert receive_exactly(server, len(words)) == words
        writing.get(timeout=20)
        server.close()
        collecting.get(timeout=10)
        assert [line for line in lines if line.encode() not in text] == []
    finally:
        program.kill()
        program.wait()
        program.stdin.close()
        program.stdout.close()
        listener.close()


# -- the end -------------------------------------------------------------------------------------


def test_close_says_goodbye(sockets: Any, shake: Callable[..., Pair], certificates: Certificates) -> None:
    client, server = shake(sockets, certificates.client(), certificates.server(), suppress_ragged_eofs=False)
    client.sendall(b"bye")
    client.close()
    client.close()
    assert receive_all(server) == b"bye"
    assert server.recv(1) == b""
    with pytest.raises(StreamClosedError) as caught:
        client.sendall(b"x")
    assert caught.value.errno == 9


@ends_are_told
@pytest.mark.parametrize("suppress", [True, False])
@pytest.mark.parametrize("cut", [0, 3, 20])
def test_end_without_goodbye(
    suppress: bool,
    cut: int,
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
) -> None:
    raw = Faucet(sockets[1])
    contexts = certificates.client(), certificates.server()
    client, server = shake((sockets[0], raw), *contexts, suppress_ragged_eofs=suppress)
    record = raw.hold(lambda: server.sendall(b"never complete"))
    raw.sendall(record[:cut])
    sockets[1].close()
    for _ in range(2):
        if suppress:
            assert client.recv(10) == b""
        else:
            with pytest.raises(ssl.SSLEOFError):
                client.recv(10)


@pytest.mark.parametrize("version", VERSIONS)
def test_half_close(
    version: ssl.TLSVersion,
    sockets: Any,
    shake: Callable[..., Pair],
    certificates: Certificates,
    spawn: Callable[..., Any],
) -> None:
    client, server = shake(sockets, certificates.client(version), certificates.server(version))
    server.sendall(b"0123456789")
    assert client.recv(4) == b"0123"  # six bytes are decrypted and wait
    client.sendall(b"request")
    client.shutdown(stdlib_socket.SHUT_WR)
    client.shutdown(stdlib_socket.SHUT_WR)
    with pytest.raises(StreamBrokenPipeError):
        client.sendall(b"more")
    assert receive_all(server) == b"request"
    assert client.pending() == 6
    writing = spawn(server.sendall, pattern(200_000))
    assert client.recv(4) == b"4567"
    buffer = bytearray(10)
    assert client.recv_into(buffer, 20) == 2
    assert buffer[:2] == b"89"
    assert receive_exactly(client, 200_000) == pattern(200_000)
    writing.get(timeout=10)
    server.close()
    assert client.recv(1) == b""


def test_half_close_behind_a_full_stream(pair: Pair) -> None:
    client, server = pair
    client.settimeout(0)
    sent = 0
    with contextlib.suppress(ssl.SSLWantWriteError):
        while True:
            sent += client.send(b"x" * 100)
    client.settimeout(None)
    client.shutdown(stdlib_socket.SHUT_WR)
    # One message may be encrypted although its send has failed.
    assert len(receive_all(server)) in (sent, sent + 100)


def test_shutdown_of_reading(pair: Pair) -> None:
    client, server = pair
    server.sendall(b"unwanted")
    assert client.recv(2) == b"un"
    client.shutdown(stdlib_socket.SHUT_RD)
    assert client.recv(10) == b""
    client.sendall(b"still writing")
    assert receive_exactly(server, 13) == b"still writing"
    client.shutdown(stdlib_socket.SHUT_RDWR)
    assert server.recv(1) == b""


def test_unwrap_gives_the_stream_back(pair: Pair, sockets: Any, spawn: Callable[..., Any]) -> None:
    client, server = pair
    client.sendall(b"secret")
    assert server.recv(10) == b"secret"

    def leave() -> Any:
        plain = server.unwrap()
        # Right behind close_notify, perhaps in one piece with it.
        plain.sendall(b"in plain text")
        return plain

    leaving = spawn(leave)
    plain = client.unwrap()
    assert plain is sockets[0]
    assert receive_exactly(plain, 13) == b"in plain text"
    assert leaving.get(timeout=10) is sockets[1]
    with pytest.raises(ValueError, match="unwrapped"):
        client.sendall(b"not in plain text")


def test_unwrap_without_an_answer(pair: Pair, sockets: Any) -> None:
    sockets[1].shutdown(stdlib_socket.SHUT_WR)
    assert pair[0].unwrap() is sockets[0]


def test_close_wakes_the_reader(pair: Pair, spawn: Callable[..., Any]) -> None:
    client, server = pair
    reading = spawn(client.recv, 10)
    gevent.idle()
    client.close()
    with pytest.raises(OSError) as caught:
        reading.get(timeout=10)
    assert caught.value.errno == 9
    assert server.recv(1) == b"", "close_notify has been sent all the same"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_close_in_a_forked_child(pair: Pair) -> None:
    client, server = pair
    child = os.fork()
    if not child:
        client.close()
        os._exit(0)
    os.waitpid(child, 0)
    client.sendall(b"still here")
    assert server.recv(100) == b"still here"


def test_close_wakes_the_handshake(sockets: Any, certificates: Certificates, spawn: Callable[..., Any]) -> None:
    client = wrap_stream(sockets[0], certificates.client(), server_hostname=NAME, do_handshake_on_connect=False)
    shaking = spawn(client.do_handshake)
    gevent.idle()
    client.close()
    with pytest.raises(OSError) as caught:
        shaking.get(timeout=10)
    assert caught.value.errno == 9


@pytest.mark.parametrize("read", [False, True])
def test_tickets_do_not_turn_a_close_into_a_reset(read: bool, shake: Callable[..., Pair], certificates: Certificates) -> None:
    # Over TCP: a socket pair has no reset.
    with contextlib.closing(gevent.socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = gevent.socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    client, server = shake((near, far), certificates.client(), certificates.server(), suppress_ragged_eofs=False)
    if read:
        server.sendall(b"never read")
        select.select([near.fileno()], [], [], 5)
    client.sendall(b"only writing")
    client.close()
    assert receive_exactly(server, 12) == b"only writing"
    if read:
        with pytest.raises(ConnectionResetError):
            receive_all(server)
    else:
        assert server.recv(1) == b""
    server.close()


def test_broken_stream(sockets: Any, shake: Callable[..., Pair], certificates: Certificates) -> None:
    raw = Faucet(sockets[0])
    client, _ = shake((raw, sockets[1]), certificates.client(), certificates.server())
    raw.broken = True
    with pytest.raises(ConnectionResetError):
        client.sendall(b"x")
    client.close()


def test_nothing_is_left_behind(no_leaks: Any, shake: Callable[..., Pair], certificates: Certificates) -> None:
    client_context, server_context = certificates.client(), certificates.server()
    for _ in range(20):
        client, server = shake(gevent.socket.socketpair(), client_context, server_context)
        client.sendall(b"hello")
        assert server.recv(10) == b"hello"
        client.close()
        server.close()
