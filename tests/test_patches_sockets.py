"""What the interpreter's own tests of sockets ask for beyond a plain client and server, each in a process of its own."""

from __future__ import annotations

import pytest
from integration.tools import run_script
from test_patches import PRELUDE

PROGRAMS = {
    "bound, then connected": """
serve(StreamServer(("echo", 7), echo))
client.service_map.wait_for("echo", 10)
with patches.apply(client):
    for waits in (True, False):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.bind(("from-here", 1234))
        number = sock.fileno()
        own = sock.getsockname()
        assert own[1] == 1234
        raises(OSError, errno.EINVAL, sock.bind, ("from-there", 5))
        if waits:
            sock.settimeout(10)
            sock.connect(("echo.mesh", 7))
        else:
            sock.setblocking(False)
            assert sock.connect_ex(("echo.mesh", 7)) == errno.EINPROGRESS
            assert sock.getsockname() == own
            assert select.select([], [sock], [], 10)[1] == [sock]
            sock.settimeout(10)
        assert sock.getsockname() == own and sock.getpeername() == (socket.gethostbyname("echo.mesh"), 7)
        assert sock.fileno() == number and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        sock.close()
    # A port that nobody chose is one that the node has chosen.
    with socket.create_connection(("echo.mesh", 7), 10, source_address=("from-here", 0)) as sock:
        assert sock.getsockname() == (own[0], sock.getsockname()[1]) and sock.getsockname()[1]
    # Refused: the socket is still bound, and may try another.
    sock = socket.socket()
    sock.bind(("from-here", 1234))
    raises(ConnectionRefusedError, None, sock.connect, ("echo.mesh", 8))
    sock.connect(("echo.mesh", 7))
    sock.sendall(b"x")
    assert exactly(sock, 1) == b"x"
    sock.close()
    with socket.socket() as sock:
        sock.bind(("from-here", 1234))
        sock.listen()
        raises(OSError, errno.EISCONN, sock.connect, ("echo.mesh", 7))
""",
    "numbers of what is bound": """
with patches.apply(server):
    sock = socket.socket()
    sock.bind(("numbered", 5))
    number = sock.fileno()
    assert number >= 0 and select.select([number], [], [], 0)[0] == []
    for wrong in ("5", 1.5, None):
        raises(TypeError, None, sock.listen, wrong)
    raises(OverflowError, None, sock.listen, 2**40)
    sock.listen(0)
    assert sock.fileno() == number
    sock.close()
    # Whoever closes the number has closed the socket, and is told so.
    sock = socket.socket()
    sock.bind(("numbered", 5))
    socket.close(sock.fileno())
    raises(OSError, errno.EBADF, sock.listen)
    raises(OSError, errno.EBADF, sock.close)
assert "numbered" not in {service.name for service in server.services()}
""",
    "two objects of one number": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    one = socket.create_connection(("echo.mesh", 7), 10)
    two = socket.socket(fileno=one.fileno())
    assert two.getpeername() == one.getpeername() and two.fileno() == one.fileno()
    two.settimeout(10)
    for sock in (one, two):
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
    # One lets go of it: the other goes on as if nothing had happened, and has a stream, not a copy of it.
    number = one.fileno()
    assert one.detach() == number
    two.sendall(b"y")
    assert exactly(two, 1) == b"y" and two.fileno() == number
    assert type(two._sock).__name__ == "RawStream"
    # One closes it: closed for both, and the second is told.
    three = socket.socket(fileno=number)
    two.close()
    raises(OSError, errno.EBADF, three.send, b"x")
    raises(OSError, errno.EBADF, three.close)
    # A number that the program has closed, and that the system has given away anew, is not ours any more.
    one = socket.create_connection(("echo.mesh", 7), 10)
    number = one.fileno()
    near, far = socket.socketpair()
    one.shutdown(socket.SHUT_RDWR)
    os.dup2(near.fileno(), number)
    other = socket.socket(fileno=number)
    assert other.family == socket.AF_UNIX
    far.sendall(b"z")
    assert other.recv(1) == b"z"
with patches.apply(server):
    bound = socket.socket()
    bound.bind(("twice", 5))
    again = socket.socket(fileno=bound.fileno())
    bound.detach()
    again.listen()
with patches.apply(client):
    with socket.create_connection(("twice.mesh", 5), 10) as sock:
        assert again.accept()[0].getpeername()
again.close()
""",
    "options": """
with patches.apply(server):
    listener = socket.socket()
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 30000),
    ):
        listener.setsockopt(level, option, value)
    size = listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    listener.bind(("options", 5))
    # Before and after it listens; what is accepted inherits them.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
with patches.apply(client):
    dialled = socket.create_connection(("options.mesh", 5), 10)
    assert dialled.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    accepted, _ = listener.accept()
    for sock in (listener, accepted):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    # SO_LINGER takes effect: a reset.
    accepted.close()
    raises(ConnectionResetError, errno.ECONNRESET, dialled.recv, 1)
    dialled.close()
listener.close()
with patches.apply(server):
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("six", 5))
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert listener.getsockname()[0].startswith("::ffff:239.") and len(listener.getsockname()) == 4
""",
    "while it connects": """
# Nobody answers before the gate opens.
gate = gevent.event.Event()
serve(StreamServer(("echo", 7), echo))
client.service_map.wait_for("echo", 10)
with patches.apply(client) as patch:
    dial = patch.dial
    def slow(*args):
        assert gate.wait(20)
        return dial(*args)
    patch.dial = slow
    for port, outcome in ((7, 0), (8, errno.ECONNREFUSED)):
        for asked_before in (True, False):
            gate.clear()
            sock = socket.socket()
            sock.setblocking(False)
            asked_before and sock.fileno()
            assert sock.connect_ex(("echo.mesh", port)) == errno.EINPROGRESS
            # Neither, as a socket of the system: what polls readable would be read, and what is read raises.
            assert select.select([sock], [sock], [], 0) == ([], [], [])
            # Who polls already is told: what stands under the number stays the same.
            poller = gevent.spawn(select.select, [sock], [sock], [], 10)
            gevent.sleep(0)
            gate.set()
            assert poller.get(timeout=10) == ([sock] if outcome else [], [sock], [])
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == outcome
            if not outcome:
                assert select.select([sock], [sock], [], 0) == ([], [sock], [])
                sock.send(b"x")
                assert select.select([sock], [], [], 10)[0] == [sock] and sock.recv(1) == b"x"
                assert select.select([sock], [], [], 0)[0] == []
            sock.close()
""",
    "TLS around a listener, and without waiting": """
import trustme
authority = trustme.CA()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("secure.mesh").configure_cert(context)
trusting = ssl.create_default_context()
authority.configure_trust(trusting)

def serve_one(listener):
    sock, address = listener.accept()
    assert isinstance(sock, ssl.SSLSocket) and address == sock.getpeername()
    with sock:
        sock.sendall(sock.recv(100).upper())

with patches.apply(server):
    for port, listens_before in ((443, True), (444, False)):
        sock = socket.socket()
        sock.bind(("secure", port))
        if listens_before:
            sock.listen()
        listener = context.wrap_socket(sock, server_side=True)
        if not listens_before:
            listener.listen()
        gevent.spawn(serve_one, listener)
with patches.apply(client):
    client.service_map.wait_for("secure", 10)
    for port in (443, 444):
        sock = trusting.wrap_socket(socket.socket(), server_hostname="secure.mesh", do_handshake_on_connect=False)
        sock.setblocking(False)
        assert sock.connect_ex(("secure.mesh", port)) == errno.EINPROGRESS
        assert select.select([], [sock], [], 10)[1] == [sock]
        deadline = time.monotonic() + 10
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                assert select.select([sock], [], [], deadline - time.monotonic())[0]
            except ssl.SSLWantWriteError:
                assert select.select([], [sock], [], deadline - time.monotonic())[1]
        sock.settimeout(10)
        sock.sendall(b"shout")
        assert exactly(sock, 5) == b"SHOUT"
        sock.close()
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str) -> None:
    source = PRELUDE + "import gevent.event\n" + PROGRAMS[program] + '\nclient.close(1)\nserver.close(1)\nprint("done")\n'
    result = run_script(source, timeout=40.0)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    assert "Traceback" not in result.stderr, result.stderr
