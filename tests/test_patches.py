"""Programs that know nothing of the mesh, each in a process of its own: clients, servers, TLS, and what sockets have to do."""

from __future__ import annotations

import pytest
from integration.tools import run_script

# Two nodes in one program, a server behind a name on one of them, patched as a program would be.
PRELUDE = """
from gevent import monkey
monkey.patch_all()
import errno, hashlib, http.client, os, select, selectors, socket, ssl, struct, sys, time, urllib.request
import gevent
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer
from astranet_gevent import AstraNet, patches

server, client = AstraNet().start(), AstraNet().start()
client.join(server.listen(("127.0.0.1", 0)).address)

def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['HTTP_HOST']} {environ['PATH_INFO']} {hashlib.sha256(body).hexdigest()}".encode()]

def echo(sock, address):
    while data := sock.recv(65536):
        sock.sendall(data)

def serve(server_object):
    with patches.apply(server):
        server_object.start()
    return server_object

def joined():
    # Then the greenlets and descriptors of the mesh are all there.
    with gevent.Timeout(10, AssertionError("the nodes do not join")):
        client.peerings()[0].wait_ready()
        while [link.state for link in server.links()] != ["ready"]:
            gevent.sleep(0.01)

def exactly(sock, size):
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        assert part, len(parts)
        parts += part
    return bytes(parts)

def tls_contexts(name):
    import trustme
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return context, trusting

def raises(kind, code, function, *args):
    try:
        function(*args)
    except kind as error:
        assert code is None or error.errno == code, error
        return error
    raise AssertionError(f"no {kind.__name__}")
"""

PROGRAMS = {
    "http.client and urllib": """
web = serve(WSGIServer(("users-api", 80), application, log=None))
with patches.apply(client):
    for host in ("users-api.mesh", "users-api", "Users-API.mesh"):
        connection = http.client.HTTPConnection(host, timeout=10)
        for path in ("/one", "/two"):
            connection.request("GET", path)
            assert connection.getresponse().read().split()[:3] == [b"GET", host.encode(), path.encode()]
        connection.close()
    body = os.urandom(3_000_000)
    reply = urllib.request.urlopen("http://users-api.mesh/put", data=body, timeout=10).read()
    assert reply.split()[3] == hashlib.sha256(body).hexdigest().encode()
""",
    "names": """
serve(WSGIServer(("users-api", 80), application, log=None))
with patches.apply(client, name_wait=0.3) as patch:
    (found,) = socket.getaddrinfo("users-api.mesh", "http", type=socket.SOCK_STREAM)
    address = found[4][0]
    assert found == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80)) and address.startswith("239."), found
    assert socket.gethostbyname("users-api") == socket.gethostbyname_ex("users-api.mesh")[2][0] == address
    assert socket.gethostbyaddr(address)[0] == "users-api.mesh"
    assert socket.getnameinfo((address, 80), 0) == ("users-api.mesh", "80")
    assert socket.getnameinfo((address, 80), socket.NI_NUMERICHOST) == (address, "80")
    raises(socket.gaierror, socket.EAI_NONAME, socket.getaddrinfo, "users-api.mesh", 80, socket.AF_INET6)
    raises(socket.gaierror, socket.EAI_SERVICE, socket.getaddrinfo, "users-api.mesh", 80, 0, socket.SOCK_DGRAM)
    assert "nobody" in str(raises(socket.gaierror, socket.EAI_NONAME, socket.create_connection, ("nobody.mesh", 80)))
    # An address of the block that stands for nothing is the system's business: refused at once, and nothing is sent.
    raises(OSError, errno.ENETUNREACH, socket.create_connection, ("239.1.2.3", 80), 5)
    assert socket.gethostbyname("localhost") == "127.0.0.1"
    assert os.environ["no_proxy"].split(",")[-1] == ".mesh"
    # What is somebody else's stays so; a bare name is the mesh's once it is offered, and not after.
    for host in ("www.example.org", "127.0.0.1", "::1", "localhost", "Localhost", "later", "later."):
        assert patch.service_of(host) is None is patch.service_of(host), host
    later = serve(StreamServer(("Later", 7), echo))
    client.service_map.wait_for("Later", 10)
    assert patch.service_of("later") == patch.service_of("LATER.") == patch.service_of("later.mesh") == "Later"
    assert patch.service_of("www.example.org") is None is patch.service_of("localhost")
    later.stop()
    with client.service_map.watch() as changes:
        while "Later" in client.service_map:
            changes.get(10)
    assert patch.service_of("later") is None and patch.service_of("later.mesh") == "later"
    # An address of ours stands for nothing until somebody has asked for the name.
    from astranet_gevent.patches.names import AddressBook
    soon = AddressBook(patch.rules.block).address_of("soon")
    unconnected = socket.socket()
    for expected in (None, ("soon", 7)):
        for host in (soon, "::ffff:" + soon, soon.encode()):
            assert patch.target_of(unconnected._sock, (host, 7)) == expected, host
        assert patch.address_of("soon") == soon
    unconnected.close()
    # A name that appears while somebody waits for it.
    late = gevent.spawn(socket.create_connection, ("late.mesh", 7), 10)
    gevent.sleep(0.05)
    serve(StreamServer(("late", 7), echo))
    late.get(timeout=10).close()
""",
    "links are not the mesh's": """
# However its host is called, what a node joins is joined over TCP; everything else that uses the name is the mesh's.
with patches.apply(client, names=["localhost"], name_wait=0.2):
    third = AstraNet().start()
    third.join(("localhost", server.listen(("127.0.0.1", 0)).address[1])).wait_ready(10)
    raises(socket.gaierror, socket.EAI_NONAME, socket.create_connection, ("localhost", 80))
    third.close(1)
""",
    "bare names at the start": """
# A node that has only just been started waits for what its peers are about to say: not for those that refuse, and not for ever.
serve(StreamServer(("echo", 7), echo))
silent = socket.create_server(("127.0.0.1", 0))
address = server.listen(("127.0.0.1", 0)).address
for joined, name_wait, known in ((address, 30, "echo"), (("127.0.0.1", 1), 30, None), (silent.getsockname(), 0.1, None)):
    with AstraNet(join=[joined]) as node, patches.apply(node, name_wait=name_wait) as patch:
        with gevent.Timeout(15):
            assert patch.service_of("ECHO") == known, (joined, known)
            # Once only.
            assert patch.service_of("other") is None
silent.close()
""",
    "ports": """
for port in (7, 8):
    serve(StreamServer(("ported", port), lambda sock, address, port=port: sock.sendall(str(port).encode())))
serve(StreamServer(("any", 0), lambda sock, address: sock.sendall(b"any")))
with patches.apply(client):
    def ask(name, port):
        with socket.create_connection((name, port), 10) as sock:
            return sock.recv(100)
    client.service_map.wait_for("any", 10)
    assert [ask("ported.mesh", 7), ask("ported.mesh", 8), ask("any.mesh", 1234)] == [b"7", b"8", b"any"]
    assert ask("ported.mesh", 80) in (b"7", b"8")
    assert "not with 9" in str(raises(ConnectionRefusedError, errno.ECONNREFUSED, ask, "ported.mesh", 9))
""",
    "sockets": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    sock = socket.create_connection(("echo.mesh", 7), 10)
    assert isinstance(sock, socket.socket) and type(sock) is socket.socket
    assert (sock.family, sock.type, sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)) == (socket.AF_INET, socket.SOCK_STREAM, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    address, port = sock.getpeername()
    assert address == socket.gethostbyname("echo.mesh") and port == 7 and sock.getsockname()[1]
    # Nobody polls it: no descriptor.
    before = len(os.listdir("/proc/self/fd"))
    others = [socket.create_connection(("echo.mesh", 7), 10) for _ in range(20)]
    for other in others:
        other.sendall(b"x")
        assert other.recv(1) == b"x"
    assert len(os.listdir("/proc/self/fd")) == before
    for other in others:
        other.close()
    data = os.urandom(1_000_000)
    writer = gevent.spawn(sock.sendall, data)
    assert exactly(sock, len(data)) == data
    sock.settimeout(0.05)
    raises(TimeoutError, None, sock.recv, 1)
    sock.settimeout(10)
    sock.sendall(b"abc")
    while not select.select([sock], [], [], 10)[0]:
        pass
    assert sock.recv(10, socket.MSG_PEEK) == b"abc" and sock.recv(2) == b"ab" and sock.recv_into(bytearray(5)) == 1
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        assert selector.select(0) == []
        sock.sendall(b"x")
        assert selector.select(10)
    assert sock.recv(1) == b"x"
    with sock.makefile("rwb") as file:
        file.write(b"line\\n")
        file.flush()
        assert file.readline() == b"line\\n"
    # Somebody else closes it: who waits is told.
    waiting = gevent.spawn(raises, OSError, errno.EBADF, sock.recv, 1)
    gevent.sleep(0.01)
    sock.close()
    waiting.get(timeout=10)
    assert sock.fileno() == -1
    raises(OSError, errno.EBADF, sock.send, b"x")
    with socket.create_connection(("echo.mesh", 7), 10) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        raises(BrokenPipeError, errno.EPIPE, sock.send, b"x")
""",
    "send in parts": """
def swallow(sock, address):
    buffer = bytearray(65536)
    while sock.recv_into(buffer):
        pass
serve(StreamServer(("hole", 7), swallow))
with patches.apply(client):
    sock = socket.create_connection(("hole.mesh", 7), 10)
    left = bytes(30_000_000)
    sizes = []
    while left:
        # As httpcore does: what was not sent is copied each time.
        sizes.append(sock.send(left))
        left = left[sizes[-1]:]
    # 0 is "connection broken" to those who look at it. TCP takes some megabytes a time; here it is the queue's limit at best.
    assert min(sizes) > 0 and max(sizes) >= 500_000 and len(sizes) < 150, (len(sizes), min(sizes), max(sizes))
    sock.close()
""",
    "files over sockets": """
def swallow(sock, address):
    sock.sendall(hashlib.sha256(exactly(sock, 30_000_000)).digest())
serve(StreamServer(("hole", 7), swallow))
with patches.apply(client):
    sock = socket.create_connection(("hole.mesh", 7), 10)
    data = os.urandom(30_000_000)
    with sock.makefile("wb") as file:
        for start in range(0, len(data), 60_000):
            # BufferedWriter hands on a view of memory that is gone, or used again, as soon as write() has returned.
            file.write(data[start : start + 60_000])
    assert exactly(sock, 32) == hashlib.sha256(data).digest()
    sock.close()
""",
    "connect without waiting": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    client.service_map.wait_for("echo", 10)
    for asked_before in (True, False):
        sock = socket.socket()
        sock.setblocking(False)
        number = sock.fileno() if asked_before else -1
        assert sock.connect_ex(("echo.mesh", 7)) == errno.EINPROGRESS
        assert sock.connect_ex(("echo.mesh", 7)) == errno.EALREADY
        raises(BlockingIOError, errno.EAGAIN, sock.recv, 1)
        raises(OSError, errno.ENOTCONN, sock.getpeername)
        assert not asked_before or sock.fileno() == number
        assert select.select([], [sock], [], 0)[1] == []
        assert select.select([], [sock], [], 10)[1] == [sock]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.connect_ex(("echo.mesh", 7)) == errno.EISCONN
        sock.send(b"x")
        assert select.select([sock], [], [], 10)[0] == [sock] and sock.recv(1) == b"x"
        sock.close()
    sock = socket.socket()
    sock.setblocking(False)
    assert sock.connect_ex(("echo.mesh", 8)) == errno.EINPROGRESS
    assert select.select([], [sock], [], 10)[1] == [sock]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    sock.close()
""",
    "dup and detach": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    sock = socket.create_connection(("echo.mesh", 7), 10)
    twin = sock.dup()
    sock.close()
    twin.sendall(b"still there")
    assert exactly(twin, 11) == b"still there"
    number = twin.fileno()
    assert twin.detach() == number
    real = socket.socket(fileno=number)
    data = os.urandom(500_000)
    writer = gevent.spawn(real.sendall, data)
    assert exactly(real, len(data)) == data
    real.shutdown(socket.SHUT_WR)
    assert real.recv(1) == b""
    real.close()
""",
    "sockets that nobody closes": """
import gc, warnings
ended, accepted = [], []
def drop(sock, address):
    accepted.append(sock.recv(1))
def note(sock, address):
    ended.append(sock.recv(1))
serve(StreamServer(("drop", 7), drop))
serve(StreamServer(("note", 7), note))
with patches.apply(client), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    # The last reference goes here, or in another thread, and with it the socket.
    sock = socket.create_connection(("note.mesh", 7), 10)
    del sock
    things = [socket.create_connection(("note.mesh", 7), 10)]
    gevent.get_hub().threadpool.apply(things.clear)
    with gevent.Timeout(10):
        while len(ended) < 2:
            gevent.sleep(0.001)
    assert ended == [b"", b""]
    assert sum("unclosed" in str(warning.message) for warning in caught) >= 2, caught
    # gevent's server closes what its handler has dropped.
    sock = socket.create_connection(("drop.mesh", 7), 10)
    sock.send(b"x")
    assert sock.recv(1) == b""
    sock.close()
    listener = socket.create_server(("forgotten", 7))
    assert "forgotten" in client.service_map
    del listener
    assert "forgotten" not in client.service_map
    things = [socket.create_server(("forgotten", 7))]
    gevent.get_hub().threadpool.apply(things.clear)
    with gevent.Timeout(10):
        while "forgotten" in client.service_map:
            gevent.sleep(0.001)
""",
    "servers and sockets that outlive their patch": """
def accept_one(listener):
    sock, address = listener.accept()
    with sock:
        echo(sock, address)
with patches.apply(server):
    echoing = StreamServer(("echo", 7), echo)
    echoing.start()
    looping = socket.create_server(("loop", 7))
with patches.apply(client):
    client.service_map.wait_for("loop", 10)
    old = socket.create_connection(("echo.mesh", 7), 10)
assert not hasattr(socket.socket.__init__, "__wrapped__") and "astranet" not in socket.socket.__init__.__module__
data = os.urandom(500_000)
gevent.spawn(accept_one, looping)
for name in ("echo", "loop"):
    with client.dial(name, 10) as stream:
        writer = gevent.spawn(stream.sendall, data)
        assert exactly(stream, len(data)) == data
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""
old.sendall(b"still")
assert select.select([old], [], [], 10)[0] == [old] and exactly(old, 5) == b"still"
old.close()
echoing.stop()
looping.close()
""",
    "servers": """
import socketserver, threading, xmlrpc.client, xmlrpc.server
from wsgiref.simple_server import WSGIRequestHandler, make_server

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass

with patches.apply(server, bindings={("0.0.0.0", 8000): "mapped"}):
    threaded = socketserver.ThreadingTCPServer(("lines", 7), Handler)
    rpc = xmlrpc.server.SimpleXMLRPCServer(("rpc", 80), logRequests=False)
    rpc.register_function(pow)
    wsgi = make_server("wsgi", 80, application, handler_class=Quiet)
    mapped = StreamServer(("", 8000), echo)
    plain = StreamServer(("127.0.0.1", 0), echo)
    for each in (mapped, plain):
        each.start()
    for each in (threaded, rpc, wsgi):
        threading.Thread(target=each.serve_forever, daemon=True).start()
with patches.apply(client):
    with socket.create_connection(("lines.mesh", 7), 10) as sock:
        sock.sendall(b"shout\\n")
        assert exactly(sock, 6) == b"SHOUT\\n"
    assert xmlrpc.client.ServerProxy("http://rpc.mesh/").pow(2, 10) == 1024
    assert urllib.request.urlopen("http://wsgi.mesh/x", timeout=10).read().startswith(b"GET wsgi.mesh /x")
    for address in (("mapped.mesh", 1), ("127.0.0.1", plain.server_port)):
        with socket.create_connection(address, 10) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
with patches.apply(server):
    early = socket.socket()
    number = early.fileno()
    early.bind(("early", 5))
    assert early.fileno() == number and early.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
    early.listen()
    assert early.fileno() == number and early.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert select.select([early], [], [], 0)[0] == []
with patches.apply(client):
    dialled = socket.create_connection(("early.mesh", 5), 10)
    assert select.select([early], [], [], 10)[0] == [early]
    accepted, address = early.accept()
    assert address == accepted.getpeername() and address[0].startswith("240.") and accepted.getsockname() == early.getsockname()
    for each in (dialled, accepted, early):
        each.close()
with patches.apply(server):
    raises(OSError, errno.EADDRINUSE, make_server, "wsgi", 80, application)
for each in (threaded, rpc, wsgi):
    each.shutdown()
    each.server_close()
gevent.sleep(0.05)
assert {service.name for service in server.services()} == {"mapped"}, server.services()
""",
    "tls": """
import tempfile
import trustme
authority = trustme.CA()
certificate = authority.issue_cert("secure.mesh")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
certificate.configure_cert(context)
context.set_alpn_protocols(["echo/1"])
names = []
context.sni_callback = lambda sock, name, ctx: names.append((type(sock).__name__, name))
serve(StreamServer(("secure", 443), echo, ssl_context=context))
trusting = ssl.create_default_context()
authority.configure_trust(trusting)
trusting.set_alpn_protocols(["echo/1"])
with patches.apply(client):
    client.service_map.wait_for("secure", 10)
    session = None
    for order in ("connect, wrap", "wrap, connect"):
        if order == "connect, wrap":
            sock = trusting.wrap_socket(socket.create_connection(("secure.mesh", 443), 10), server_hostname="secure.mesh")
        else:
            sock = trusting.wrap_socket(socket.socket(), server_hostname="secure.mesh", session=session)
            sock.settimeout(10)
            sock.connect(("secure.mesh", 443))
            assert sock.session_reused
        assert isinstance(sock, ssl.SSLSocket) and sock.version() == "TLSv1.3" and sock.selected_alpn_protocol() == "echo/1"
        data = os.urandom(2_000_000)
        writer = gevent.spawn(sock.sendall, data)
        assert exactly(sock, len(data)) == data
        sock.sendall(b"abc")
        assert sock.recv(1) == b"a" and sock.pending() == 2 and sock.recv(5) == b"bc"
        assert dict(sock.getpeercert())["subjectAltName"] == (("DNS", "secure.mesh"),)
        session = sock.session
        sock.settimeout(0.05)
        raises(TimeoutError, None, sock.recv, 1)
        sock.close()
    assert names == [("SSLSocket", "secure.mesh")] * 2, names
    # The server's handshake fails too, and gevent would print that.
    gevent.get_hub().NOT_ERROR += (OSError,)
    wrong = trusting.wrap_socket(socket.socket(), server_hostname="other.mesh")
    wrong.settimeout(10)
    raises(ssl.SSLCertVerificationError, None, wrong.connect, ("secure.mesh", 443))
""",
    "another library holds socket.socket": """
import warnings
held = socket.socket
class Proxied(held):
    pass
socket.socket = Proxied
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with patches.apply(client):
        pass
(warning,) = caught
assert "socket.socket is __main__.Proxied, not gevent's" in str(warning.message), warning
assert warning.filename == "<string>", warning.filename
socket.socket = held
""",
    "classes of errors": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    sock = socket.create_connection(("echo.mesh", 7), 10)
    sock.sendall(b"x")
    assert exactly(sock, 1) == b"x"
    sock.setblocking(False)
    # redis-py compares the class, and takes any other for a broken connection.
    for function in (sock.recv, sock.recvfrom, sock.recvmsg, lambda size: sock.recv_into(bytearray(size))):
        assert type(raises(BlockingIOError, errno.EAGAIN, function, 1)) is BlockingIOError
    full = bytes(1_000_000)
    def fill():
        while True:
            assert sock.send(full) > 0
    assert type(raises(BlockingIOError, errno.EAGAIN, fill)) is BlockingIOError
    sock.close()
""",
    "tls without waiting": """
context, trusting = tls_contexts("secure.mesh")
def digest(sock, address):
    sock.sendall(hashlib.sha256(exactly(sock, 10_000_000)).digest())
serve(StreamServer(("secure", 443), digest, ssl_context=context))
with patches.apply(client):
    sock = trusting.wrap_socket(socket.create_connection(("secure.mesh", 443), 10), server_hostname="secure.mesh")
    sock.setblocking(False)
    raises(ssl.SSLWantReadError, None, sock.recv, 1)
    data = os.urandom(10_000_000)
    left, waits = memoryview(data), 0
    while left:
        try:
            sent = sock.send(left)
            # 0 would mean that it may be forgotten. A program that polls begins again with all that is left, so little is taken at a time.
            assert 0 < sent <= 65536
            left = left[sent:]
        except BlockingIOError:
            waits += 1
            gevent.idle()
    assert waits
    sock.setblocking(True)
    assert exactly(sock, 32) == hashlib.sha256(data).digest()
""",
    "tls sends that are given up": """
import array
import gevent.event
context, trusting = tls_contexts("secure.mesh")
received = {}
gate = gevent.event.Event()
def take(sock, address):
    gate.wait(20)
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    received[address[1]] = b"".join(parts)
serve(StreamServer(("secure", 443), take, ssl_context=context))

def send(sock, data):
    # Until all of it is taken.
    left = memoryview(data)
    with gevent.Timeout(10, AssertionError("the stream takes no more")):
        while left:
            try:
                left = left[sock.send(left):]
            except BlockingIOError:
                gevent.sleep(0.001)

with patches.apply(client):
    for waits in (False, True):
        # Shorter, longer, of another kind; and what was begun again, with something behind it.
        for then in (b"QUIT", b"B" * 20_000, array.array("i", range(100)), None):
            gate.clear()
            sock = trusting.wrap_socket(socket.create_connection(("secure.mesh", 443), 10), server_hostname="secure.mesh")
            port = sock.getsockname()[1]
            sock.settimeout(0.02 if waits else 0)
            expected = bytearray()
            while True:
                # One record, so that it is taken or not.
                begun = os.urandom(16_000)
                try:
                    assert sock.send(begun) == len(begun)
                except (TimeoutError, BlockingIOError):
                    break
                expected += begun
            data = begun + b"and more" if then is None else bytes(then)
            sock.setblocking(False)
            raises(BlockingIOError, None, sock.send, data if then is None else then)
            gate.set()
            send(sock, data)
            sock.setblocking(True)
            sock.shutdown(socket.SHUT_WR)
            with gevent.Timeout(10, AssertionError("nothing has come")):
                while port not in received:
                    gevent.sleep(0.001)
            sock.close()
            got = received.pop(port)
            # What was begun may go out, but whole; what is sent after it does.
            assert got in ((expected + data,) if then is None else (expected + data, expected + begun + data)), (waits, then, len(got))
""",
    "reset under tls": """
import gevent.event
context, trusting = tls_contexts("secure.mesh")
ended = gevent.event.Event()
def end(sock, address):
    assert sock.recv(5) == b"hello"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    ended.set()
serve(StreamServer(("secure", 443), end, ssl_context=context))
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    sock = trusting.wrap_socket(socket.create_connection(("secure.mesh", 443), 10), server_hostname="secure.mesh")
    sock.sendall(b"hello")
    assert ended.wait(10)
    # Over the same link: what it brings has come after the reset.
    with socket.create_connection(("echo.mesh", 7), 10) as fence:
        fence.sendall(b"x")
        assert fence.recv(1) == b"x"
    raises(ConnectionResetError, errno.ECONNRESET, sock.sendall, b"anybody?")
    raises(BrokenPipeError, errno.EPIPE, sock.sendall, b"nobody")
""",
    "more peers than addresses": """
# Who accepts from ever new nodes forgets the oldest, and goes on accepting.
from astranet_gevent.patches.names import AddressBook
from astranet_gevent.errors import LimitError
book = AddressBook("240.7.0.0/24", forgets=True)
addresses = [book.address_of(number) for number in range(1000)]
assert book.thing_of(book.address_of(999)) == 999 and sum(book.thing_of(f"240.7.0.{n}") is not None for n in range(256)) == 127
names = AddressBook("239.7.0.0/24")
raises(LimitError, errno.EMFILE, lambda: [names.address_of(number) for number in range(1000)])
with patches.apply(server, peer_block="240.7.0.0/24"):
    listener = socket.create_server(("site", 80))
    address = server.listen(("127.0.0.1", 0)).address
    for number in range(130):
        with AstraNet(join=[address]) as node:
            stream = node.dial("site", 10)
            sock, peer = listener.accept()
            assert sock.getpeername() == peer
            stream.close()
            sock.close()
    listener.close()
""",
    "closed while it connects": """
# What gevent's server would print of streams that are given up.
gevent.get_hub().NOT_ERROR += (OSError,)
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    client.service_map.wait_for("echo", 10)
    before = [link.stream_count for node in (client, server) for link in node.links()]
    for number in range(300):
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(("echo.mesh", 7)) == errno.EINPROGRESS
        for _ in range(number % 7):
            gevent.sleep(0)
        sock.close()
    with gevent.Timeout(10):
        while [link.stream_count for node in (client, server) for link in node.links()] != before:
            gevent.sleep(0.01)
""",
    "names do not leak": """
serve(StreamServer(("echo", 7), echo))
asked = []
with patches.apply(client, name_wait=0.2) as patch:
    client.service_map.wait_for("echo", 10)
    for host in ("echo.mesh", b"echo.mesh", "ECHO.Mesh.", "echo\u3002mesh", "echo.\uff4desh", "echo.mesh\\0.example.com"):
        with socket.socket() as sock:
            sock.settimeout(10)
            sock.connect((host, 7))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for host in ("echo.mesh", b"nobody.mesh", socket.gethostbyname("echo.mesh")):
        for call in (lambda: datagrams.sendto(b"x", (host, 7)), lambda: datagrams.connect((host, 7)), lambda: datagrams.bind((host, 7))):
            assert "streams only" in str(raises(socket.gaierror, socket.EAI_SERVICE, call))
    datagrams.sendto(b"x", ("127.0.0.1", 9))
    datagrams.close()
    named = socket.socket()
    named.bind((b"bytes.mesh", 7))
    named.listen()
    assert "bytes" in client.service_map
    named.close()
    for port in (-1, 70000):
        raises(OverflowError, None, socket.socket().bind, ("site.mesh", port))
    # A name is waited for as long when it is connected to, and found in whatever case it is offered.
    raises(socket.gaierror, socket.EAI_NONAME, socket.socket().connect, ("nobody.mesh", 7))
    late = gevent.spawn(socket.create_connection, ("late.mesh", 7), 10)
    gevent.sleep(0.02)
    serve(StreamServer(("Late", 7), echo))
    late.get(timeout=10).close()
client.close(1)
""",
    "a node's own sockets are not the mesh's": """
# Whatever is mapped or named: where a node listens and whom it joins is TCP.
import gevent
probe = socket.create_server(("127.0.0.1", 0))
port = probe.getsockname()[1]
probe.close()
with patches.apply(client, bindings={("127.0.0.1", port): "web"}, names=["localhost"]):
    assert server.listen(("127.0.0.1", port)).address == ("127.0.0.1", port)
    with AstraNet() as node:
        node.join(("localhost", port)).wait_ready(10)
    assert "web" not in client.service_map
    # Somebody else's socket there is.
    mapped = socket.create_server(("127.0.0.1", port))
    assert "web" in client.service_map
    mapped.close()
""",
    "proxies": """
import urllib.request
os.environ.pop("no_proxy", None)
os.environ["NO_PROXY"] = "internal.corp"
with patches.apply(client):
    assert urllib.request.proxy_bypass("internal.corp") and urllib.request.proxy_bypass("users.mesh")
    assert "no_proxy" not in os.environ
    other = patches.apply(client)
    other.undo()
    assert urllib.request.proxy_bypass("users.mesh")
assert os.environ["NO_PROXY"] == "internal.corp"
os.environ["no_proxy"] = "host.mesh, .mesh"
one, two = patches.apply(client), patches.apply(server)
one.undo()
two.undo()
assert os.environ["no_proxy"] == "host.mesh, .mesh"
""",
    "two nodes, one suffix": """
serve(StreamServer(("older", 7), echo))
third = AstraNet().start()
with patches.apply(client, name_wait=5), patches.apply(third, name_wait=5):
    client.service_map.wait_for("older", 10)
    with gevent.Timeout(3):
        socket.create_connection(("older.mesh", 7), 10).close()
third.close(1)
""",
    "connected twice": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    sock = socket.socket()
    sock.settimeout(10)
    for _ in range(2):
        sock.connect(("echo.mesh", 7))
    assert sock.connect_ex(("echo.mesh", 7)) == 0
    sock.setblocking(False)
    assert sock.connect_ex(("echo.mesh", 7)) == errno.EISCONN
    sock.close()
    # Begun without waiting, and then waited for.
    sock = socket.socket()
    sock.setblocking(False)
    assert sock.connect_ex(("echo.mesh", 7)) == errno.EINPROGRESS
    sock.settimeout(10)
    sock.connect(("echo.mesh", 7))
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    sock.close()
    sock = socket.socket()
    sock.setblocking(False)
    assert sock.connect_ex(("echo.mesh", 8)) == errno.EINPROGRESS
    sock.settimeout(10)
    raises(ConnectionRefusedError, errno.ECONNREFUSED, sock.connect, ("echo.mesh", 8))
    sock.close()
""",
    "no descriptors left": """
serve(StreamServer(("echo", 7), echo))
with patches.apply(client):
    client.service_map.wait_for("echo", 10)
    socket.create_connection(("echo.mesh", 7), 10).close()
    count = len(os.listdir("/proc/self/fd"))
    make, none_left = os.eventfd, OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    sock = socket.socket()
    sock.settimeout(10)
    sock.fileno()
    def fail(*args):
        raise none_left
    os.eventfd = fail
    try:
        raises(OSError, errno.EMFILE, sock.connect, ("echo.mesh", 7))
    finally:
        os.eventfd = make
    # As if nothing had been.
    sock.connect(("echo.mesh", 7))
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    sock.close()
    with gevent.Timeout(10):
        while len(os.listdir("/proc/self/fd")) > count:
            gevent.sleep(0.01)
""",
    "listeners under two objects, or none": """
with patches.apply(server):
    listener = socket.create_server(("site", 7))
    listener.settimeout(10)
    twin = socket.socket(fileno=listener.fileno())
    twin.settimeout(0.05)
    waiting = gevent.spawn(listener.accept)
    raises(TimeoutError, None, twin.accept)
with patches.apply(client):
    dialled = socket.create_connection(("site.mesh", 7), 10)
    sock, _ = waiting.get(timeout=10)
    sock.close()
    dialled.close()
twin.detach()
listener.close()
with patches.apply(server):
    for name in ("gone", "next"):
        # A number that nobody makes a socket of again.
        os.close(socket.create_server((name, 8)).detach())
        # gevent's close() is done by the loop.
        gevent.sleep(0.01)
    assert "gone" not in server.service_map and "next" in server.service_map
""",
    "a closed node": """
with AstraNet() as node:
    patch = patches.apply(node, name_wait=0.2)
assert "closed" in str(raises(socket.gaierror, socket.EAI_NONAME, socket.getaddrinfo, "users.mesh", 80))
raises(socket.gaierror, socket.EAI_NONAME, socket.create_connection, ("users.mesh", 80))
patch.undo()
""",
    "rules that cannot work": """
from astranet_gevent import ConfigError
from astranet_gevent.patches import Rules
for wrong in (
    dict(suffix=None), dict(suffix="mesh"), dict(suffix=".mesh."), dict(suffix=".me sh"), dict(suffix=".mesh,.x"), dict(bare="no"),
    dict(names=(3,)), dict(names=("",)), dict(names="users"), dict(bindings={("0.0.0.0", 99999): "a"}),
    dict(bindings={("0.0.0.0", 80): "a", ("", 80): "b"}), dict(block="239.0.0.0/30"), dict(name_wait=-1),
):
    raises(ConfigError, None, lambda: Rules(**wrong))
""",
    "hooks that come when they are needed": """
untouched = vars(socket.socket)["__init__"]
patch = patches.apply(server)
# Of programs that use TCP only no socket is made in another way.
with socket.create_server(("127.0.0.1", 0)) as plain:
    near = socket.create_connection(plain.getsockname(), 10)
    far, _ = plain.accept()
    assert near.fileno() >= 0
    near.close()
    far.close()
assert vars(socket.socket)["__init__"] is untouched
# A listener outlives the patch with which it was made, and is one for the next.
listener = socket.create_server(("site", 7))
listener.settimeout(10)
assert vars(socket.socket)["__init__"] is not untouched
patch.undo()
assert vars(socket.socket)["__init__"] is untouched
patches.apply(client).undo()
with patches.apply(client):
    client.service_map.wait_for("site", 10)
    with socket.create_connection(("site.mesh", 7), 10):
        far, _ = listener.accept()
        assert far._sock.__class__.__name__ == "RawStream"
        far.close()
        # A number that was asked of a socket is not kept for another that has it later.
        sock = socket.socket()
        number = sock.fileno()
        sock.close()
        same = socket.socket()
        assert number == same._sock.fileno()
        count = len(os.listdir("/proc/self/fd"))
        same.connect(("site.mesh", 7))
        # Nobody has asked this one: it has none.
        assert same._sock.fileno() == -1 and len(os.listdir("/proc/self/fd")) == count - 1
        same.close()
listener.close()
assert vars(socket.socket)["__init__"] is untouched
# Whose bindings may take over a listener that was there before has to see each.
with patches.apply(client, bindings={("127.0.0.1", 1): "site"}):
    assert vars(socket.socket)["__init__"] is not untouched
assert vars(socket.socket)["__init__"] is untouched
""",
    "the resolver of a hub": """
hub = gevent.get_hub()
own = hub.resolver
class Fixed:
    def __init__(self, address):
        self.address = address
    def getaddrinfo(self, host, port, *args):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, port))]
    def close(self):
        pass
def resolved(host):
    return socket.getaddrinfo(host, 80)[0][4][0]

serve(StreamServer(("echo", 7), echo))
client.service_map.wait_for("echo", 10)
before = dict(vars(hub))
with patches.apply(client):
    assert hub.resolver is hub.resolver and resolved("echo.mesh").startswith("239.")
    # One that the program sets while the patch is in force is asked, and stays.
    hub.resolver = Fixed("127.0.0.9")
    assert resolved("elsewhere.example") == "127.0.0.9" and resolved("echo.mesh").startswith("239.")
    hub.resolver = Fixed("127.0.0.8")
    assert resolved("elsewhere.example") == "127.0.0.8"
    del hub.resolver
    assert resolved("127.0.0.7") == "127.0.0.7" and type(hub.resolver._inner) is type(own)
    hub.resolver = own
    resolved("echo.mesh")
    # Each hub has its own.
    inner = hub.threadpool.apply(lambda: (gevent.get_hub().resolver._inner, gevent.get_hub()))
    assert inner[0] is not own and inner[1] is not hub
    with patches.apply(server, suffix=".other"):
        assert resolved("echo.mesh").startswith("239.")
assert hub.resolver is own and vars(hub).keys() == before.keys() | {"_resolver"} and "_resolver" in vars(inner[1])
assert not [name for each in (hub, inner[1]) for name in vars(each) if "astranet" in name]
""",
    "undo": """
import gevent.hub
from gevent import ssl as gevent_ssl
classes = (socket.socket, gevent_ssl.SSLSocket, gevent.hub.Hub)
modules = (socket, gevent.socket)
def snapshot():
    return [dict(vars(thing)) for thing in (*classes, *modules)], dict(os.environ)
os.environ["NO_PROXY"] = "a, b"
before = snapshot()
one, two = patches.apply(client), patches.apply(server, suffix=".other")
assert snapshot() != before and os.environ["NO_PROXY"] == "a, b,.mesh,.other"
one.undo()
one.undo()
assert one.applied is False and two.applied and os.environ["NO_PROXY"] == "a, b,.other"
two.undo()
after = snapshot()
for old, new in zip(before[0], after[0]):
    assert old.keys() == new.keys() and all(old[name] is new[name] for name in old)
assert before[1] == after[1]
raises(patches.Patch.__init__.__globals__["LocalProtocolError"], None, patches.apply, AstraNet())
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str) -> None:
    source = PRELUDE + PROGRAMS[program] + '\nclient.close(1)\nserver.close(1)\nprint("done")\n'
    result = run_script(source, timeout=40.0)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    assert "Traceback" not in result.stderr, result.stderr


def test_without_monkey_patching() -> None:
    """The error says what to write."""
    source = "from astranet_gevent import AstraNet, patches\npatches.apply(AstraNet().start())"
    result = run_script(source)
    assert result.returncode == 1
    assert "monkey.patch_all()" in result.stderr


def test_the_bare_folder_is_not_imported() -> None:
    result = run_script("import sys; sys.path.insert(0, sys.argv[1]); import patches", __file__.rsplit("/", 2)[0])
    assert result.returncode == 1
    assert "astranet_gevent.patches" in result.stderr
