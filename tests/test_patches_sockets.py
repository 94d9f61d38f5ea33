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
    "duplicates of a listener": """
def dial(name):
    return socket.create_connection((name + ".mesh", 7), 10)

def offered(name):
    return name in {service.name for service in server.services()}

joined()
copies = {
    "dup": lambda sock: sock.dup(),
    "fromfd": lambda sock: socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM),
}
with patches.apply(server):
    for how, copy in copies.items():
        for listens_first in (True, False):
            for closed_first in (0, 1):
                name = f"{how}-{listens_first}-{closed_first}"
                count = len(os.listdir("/proc/self/fd"))
                one = socket.socket()
                one.settimeout(10)
                one.bind((name, 7))
                numbered = closed_first and one.fileno()
                if listens_first:
                    one.listen()
                two = copy(one)
                if not listens_first:
                    two.listen()
                assert one.gettimeout() == 10 and two.gettimeout() == (10 if how == "dup" else None)
                two.settimeout(10)
                assert one.getsockname() == two.getsockname() and one.fileno() != two.fileno()
                assert not numbered or one.fileno() == numbered
                two.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option in (socket.SO_ACCEPTCONN, socket.SO_KEEPALIVE):
                    assert [sock.getsockopt(socket.SOL_SOCKET, option) for sock in (one, two)] == [1, 1]
                assert select.select([one, two], [], [], 0)[0] == []
                with patches.apply(client):
                    client.service_map.wait_for(name, 10)
                    # Both wait, and each gets one.
                    waiting = [gevent.spawn(sock.accept) for sock in (one, two)]
                    dialled = [dial(name), dial(name)]
                    accepted = [each.get(timeout=10)[0] for each in waiting]
                    assert {sock.getpeername() for sock in accepted} == {sock.getsockname() for sock in dialled}
                    # Both can be polled.
                    dialled.append(dial(name))
                    assert select.select([one], [], [], 10)[0] == [one] and select.select([two], [], [], 10)[0] == [two]
                    accepted.append(two.accept()[0])
                    assert select.select([one, two], [], [], 0)[0] == []
                    # One is closed while it waits: the other goes on.
                    closed, left = (one, two) if closed_first == 0 else (two, one)
                    waits = gevent.spawn(raises, OSError, errno.EBADF, closed.accept)
                    gevent.sleep(0)
                    closed.close()
                    waits.get(timeout=10)
                    assert offered(name) and left.fileno() >= 0
                    waiting = gevent.spawn(left.accept)
                    dialled.append(dial(name))
                    accepted.append(waiting.get(timeout=10)[0])
                    left.close()
                    assert not offered(name)
                    for sock in dialled + accepted:
                        sock.close()
                with gevent.Timeout(10, AssertionError(name)):
                    while len(os.listdir("/proc/self/fd")) > count:
                        gevent.sleep(0.01)
    # By nobody but their last reference.
    import gc, warnings
    one = socket.create_server(("unclosed", 7))
    two = one.dup()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del one
        gc.collect()
        assert offered("unclosed")
        del two
        gc.collect()
        assert not offered("unclosed")
    # What a server is given.
    one = socket.create_server(("served", 7))
    echoing = StreamServer(one.dup(), echo)
    one.close()
    echoing.start()
with patches.apply(client):
    client.service_map.wait_for("served", 10)
    with dial("served") as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
echoing.stop()
assert not offered("served")
# A number that the program has copied itself is the number of something that is no socket.
with patches.apply(server):
    with socket.create_server(("copied", 7)) as one:
        copy = os.dup(one.fileno())
        raises(OSError, errno.ENOTSOCK, socket.socket, -1, -1, -1, copy)
        os.close(copy)
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
    "datagrams do not tell names": """
serve(StreamServer(("echo", 7), echo))
client.service_map.wait_for("echo", 10)
with patches.apply(client):
    synthetic = socket.gethostbyname("echo.mesh")
    for family, host in ((socket.AF_INET, "echo.mesh"), (socket.AF_INET, synthetic), (socket.AF_INET6, f"::ffff:{synthetic}")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            raises(socket.gaierror, socket.EAI_SERVICE, sock.sendto, b"x", (host, 9))
            raises(socket.gaierror, socket.EAI_SERVICE, sock.sendmsg, [b"x"], [], 0, (host, 9))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        one.settimeout(10)
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        for host in ("127.0.0.1", bytearray(b"127.0.0.1")):
            assert other.sendto(b"x", (host, port)) == other.sendmsg([b"x"], [], 0, (host, port)) == 1
            assert one.recv(9) == one.recv(9) == b"x"
    # The same address in the form that IPv6 sockets have for it is the mesh's to bind and to connect.
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind((f"::ffff:{synthetic}", 1234))
        sock.connect((f"::ffff:{synthetic}", 7))
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
    # Who is connected elsewhere stays so.
    plain = gevent.server.StreamServer(("127.0.0.1", 0), lambda sock, address: sock.sendall(b"plain"))
    plain.start()
    with socket.create_connection(("127.0.0.1", plain.server_port), 10) as sock:
        raises(OSError, errno.EISCONN, sock.connect, ("echo.mesh", 7))
        assert exactly(sock, 5) == b"plain"
    plain.stop()
""",
    "no descriptor left": """
import resource
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
def none_left():
    # The next number is the first that may not be.
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))

client.join(server.listen(("127.0.0.1", 0)).address).wait_ready(10)
with patches.apply(server, name_wait=0.2):
    sock = socket.socket()
    sock.bind(("site", 7))
    sock.fileno()
    none_left()
    raises(OSError, errno.EMFILE, sock.listen)
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert "site" not in server.service_map
    sock.listen()
    client.service_map.wait_for("site", 10)
    gevent.spawn(client.dial, "site:7", 10)
    assert select.select([sock], [], [], 10)[0] == [sock]
    sock.accept()[0].close()
    sock.close()
    # A connect that fails needs none to put things back.
    before = len(os.listdir("/proc/self/fd"))
    for asked in ("before", "meanwhile"):
        sock = socket.socket()
        sock.bind(("from-here", 1234))
        number = sock.fileno() if asked == "before" else None
        greenlet = gevent.spawn(sock.connect_ex, ("nobody.mesh", 7))
        greenlet.start()
        with gevent.Timeout(10, AssertionError("it does not connect")):
            while type(sock._sock).__name__ != "RawStream":
                gevent.sleep(0)
        number = number or sock.fileno()
        assert sock.fileno() == number
        none_left()
        try:
            with gevent.Timeout(10, AssertionError("it does not end")):
                raises(socket.gaierror, socket.EAI_NONAME, greenlet.get)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert sock.fileno() == number
        sock.close()
    with gevent.Timeout(10, False):
        while len(os.listdir("/proc/self/fd")) > before:
            gevent.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before
""",
    "closed by another thread while it waits": """
joined()
gevent.get_hub().NOT_ERROR += (OSError,)
with patches.apply(client, name_wait=30):
    sock = socket.socket()
    greenlet = gevent.spawn(sock.connect, ("nobody.mesh", 7))
    with gevent.Timeout(10, AssertionError("it does not connect")):
        while type(sock._sock).__name__ != "RawStream":
            gevent.sleep(0)
    gevent.get_hub().threadpool.apply(sock.close)
    with gevent.Timeout(10, AssertionError("it does not end")):
        raises(OSError, errno.EBADF, greenlet.get)
""",
    "closed while it waits to be connected": """
# The far side answers nothing while its cable is frozen, and has everything afterwards.
from astranet_gevent.testing import Network
network = Network()
near, far = network.node(), network.node()
cable = network.connect(near, far)
far.bind("silent:7")
near.service_map.wait_for("silent", 10)

# What is expected to end with an error.
gevent.get_hub().NOT_ERROR += (OSError,)

import gc
def state():
    streams = [(link.stream_count, len(link.dialing)) for node in (near, far) for link in node._node.links]
    greenlets = sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())
    return streams, greenlets, len(os.listdir("/proc/self/fd"))

def settled(what):
    with gevent.Timeout(10, False):
        while state() != before:
            gevent.sleep(0.01)
    assert state() == before, (what, state(), before)

def waiting(sock, method, host):
    greenlet = gevent.spawn(getattr(sock, method), (host, 7))
    with gevent.Timeout(10, AssertionError("it does not connect")):
        while type(sock._sock).__name__ != "RawStream":
            gevent.sleep(0)
    # Now it waits: for the name, or for an answer.
    for _ in range(5):
        gevent.sleep(0)
    assert not greenlet.ready()
    return greenlet

joined()
before = state()
with patches.apply(near, name_wait=30):
    plain = ssl.create_default_context()
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    for host in ("silent.mesh", "nobody.mesh"):
        for timeout in (None, 20):
            for wrapped in (False, True):
                for method in ("connect", "connect_ex"):
                    for end in ("close", "detach"):
                        cable.freeze()
                        sock = socket.socket()
                        if wrapped:
                            sock = plain.wrap_socket(sock)
                        sock.settimeout(timeout)
                        greenlet = waiting(sock, method, host)
                        started = time.monotonic()
                        if end == "detach":
                            raises(OSError, errno.EOPNOTSUPP, sock.detach)
                        else:
                            sock.close()
                        if method == "connect":
                            error = raises(OSError, errno.EBADF, greenlet.get, True, 10)
                            assert type(error) is gevent.socket.cancel_wait_ex
                        else:
                            assert greenlet.get(timeout=10) == errno.EBADF
                        assert time.monotonic() - started < 2
                        raises(OSError, errno.EBADF, sock.connect, (host, 7))
                        cable.thaw()
                        settled((host, timeout, wrapped, method, end))
    # Whoever is killed, or runs out of time, has ended the dial too.
    cable.freeze()
    sock = socket.socket()
    greenlet = waiting(sock, "connect", "silent.mesh")
    greenlet.kill()
    with gevent.Timeout(0.05, False):
        sock.connect(("silent.mesh", 7))
    sock.settimeout(0.05)
    raises(TimeoutError, None, sock.connect, ("silent.mesh", 7))
    raises(TimeoutError, None, sock.connect, ("silent.mesh", 7))
    assert sock.connect_ex(("silent.mesh", 7)) == errno.EAGAIN
    cable.thaw()
    sock.settimeout(10)
    sock.connect(("silent.mesh", 7))
    sock.close()
    settled("given up")
network.close()
""",
    "the socket of a connect that fails": """
serve(StreamServer(("echo", 7), echo))
client.service_map.wait_for("echo", 10)
gate = gevent.event.Event()
# What is expected to end with an error.
gevent.get_hub().NOT_ERROR += (OSError,)
with patches.apply(client, name_wait=0.1) as patch:
    dial = patch.dial
    def slow(*args):
        assert gate.wait(20)
        return dial(*args)

    def use(sock):
        sock.settimeout(10)
        sock.connect(("echo.mesh", 7))
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"

    failures = (("echo.mesh", ConnectionRefusedError, errno.ECONNREFUSED), ("nobody.mesh", socket.gaierror, socket.EAI_NONAME))
    for bound in (False, True):
        for asked in ("never", "before", "meanwhile"):
            for host, kind, code in failures:
                count = len(os.listdir("/proc/self/fd"))
                sock = socket.socket()
                bound and sock.bind(("from-here", 1234))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                system, number = sock._sock, sock.fileno() if asked == "before" else None
                if asked == "meanwhile":
                    gate.clear()
                    patch.dial = slow
                    connecting = gevent.spawn(sock.connect, (host, 8))
                    gevent.sleep(0)
                    number = sock.fileno()
                    # Of a bound one it is a number of its own; of another the system's.
                    assert bound or number == system.fileno() or system.fileno() == -1
                    # Neither readable nor writable, and whoever waits for it is told of the end.
                    assert select.select([sock], [sock], [], 0) == ([], [], [])
                    poller = gevent.spawn(select.select, [sock], [sock], [], 10)
                    reader = gevent.spawn(sock.recv, 1)
                    again = gevent.spawn(sock.connect_ex, (host, 8))
                    gevent.sleep(0)
                    gate.set()
                    raises(kind, code, connecting.get, True, 10)
                    patch.dial = dial
                    assert poller.get(timeout=10) != ([], [], [])
                    raises(OSError, errno.ENOTCONN, reader.get, True, 10)
                    assert again.get(timeout=10) != 0
                else:
                    raises(kind, code, sock.connect, (host, 8))
                assert type(sock._sock) is type(system) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert asked == "meanwhile" or sock._sock is system
                assert number is None or sock.fileno() == number
                raises(OSError, errno.ENOTCONN, sock.getpeername)
                if asked == "meanwhile" and not bound:
                    # It can go anywhere.
                    with socket.create_server(("127.0.0.1", 0)) as listener:
                        other = socket.socket()
                        sock.settimeout(10)
                        sock.connect(listener.getsockname())
                        accepted = listener.accept()[0]
                        accepted.sendall(b"y")
                        assert sock.recv(1) == b"y" and sock.fileno() == number
                        accepted.close()
                        other.close()
                else:
                    use(sock)
                    assert number is None or sock.fileno() == number
                    assert number is None or (sock.send(b"z"), select.select([sock], [], [], 10)[0])[1] == [sock]
                sock.close()
                with gevent.Timeout(10, AssertionError((bound, asked, host))):
                    while len(os.listdir("/proc/self/fd")) > count:
                        gevent.sleep(0.01)
    # Asked meanwhile of a connect that succeeds: the number stays what it was.
    for bound in (False, True):
        gate.clear()
        patch.dial = slow
        sock = socket.socket()
        bound and sock.bind(("from-here", 1234))
        connecting = gevent.spawn(sock.connect, ("echo.mesh", 7))
        gevent.sleep(0)
        number = sock.fileno()
        reader, poller = gevent.spawn(sock.recv, 1), gevent.spawn(select.select, [], [sock], [], 10)
        gevent.sleep(0)
        gate.set()
        connecting.get(timeout=10)
        assert poller.get(timeout=10)[1] == [sock] and sock.fileno() == number
        sock.sendall(b"w")
        assert reader.get(timeout=10) == b"w"
        sock.sendall(b"v")
        assert select.select([number], [], [], 10)[0] == [number] and sock.recv(1) == b"v"
        sock.close()
""",
    "TLS around a listener, and without waiting": """
context, trusting = tls_contexts("secure.mesh")

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
