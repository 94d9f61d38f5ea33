"""Patched programs that fork or have threads: children have nodes of their own, and nothing of the parent's is used by two."""

from __future__ import annotations

from integration.tools import check_script

# A patched program whose node has joined a router, with a service of another node to talk to; children report through their status.
PRELUDE = """
from gevent import monkey
monkey.patch_all()
import os, socket, sys, threading, traceback, warnings
# From Python 3.12 on a fork beside other threads (the resolver has some) is warned of.
warnings.simplefilter("ignore", DeprecationWarning)
import gevent
from gevent.server import StreamServer
from astranet_gevent import AstraNet, ForkedError, WrongThreadError, patches

host, port = sys.argv[1].rsplit(":", 1)
mesh = AstraNet(join=[(host, int(port))], loopback=True).start()
patch = patches.apply(mesh)

def ask(name, port=80):
    with socket.create_connection((name, port), 10) as sock:
        return sock.recv(100)

def in_child(function):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid

def ended(pid):
    with gevent.Timeout(20, AssertionError("the child does not end")):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def serve_once(listener):
    greenlet = gevent.spawn(ask, "site")
    sock, _ = listener.accept()
    sock.sendall(b"served")
    sock.close()
    assert greenlet.get(timeout=10) == b"served"

def raises(kind, function, *args):
    try:
        function(*args)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} from {function}")
"""


def check(source: str, address: str) -> None:
    assert check_script(PRELUDE + source + '\nprint("done")', address, timeout=40) == "done\n"


def test_a_child_dials_with_a_node_of_its_own(address: str) -> None:
    check(
        """
assert ask("greeting") == b"hello"
open_socket = socket.create_connection(("greeting", 80), 10)
poll_number = open_socket.fileno()

def child():
    # What was connected before the fork is the parent's.
    assert "fork" in raises(ForkedError, open_socket.recv, 1)
    assert "fork" in raises(ForkedError, open_socket.send, b"x")
    open_socket.close()
    assert ask("greeting") == b"hello" and ask("greeting.mesh") == b"hello"
    assert patch.mesh is not mesh and patch.mesh.node_id != mesh.node_id and not patch.mesh.forked
    own = patch.mesh
    # A child of the child has its own again.
    def grandchild():
        assert ask("greeting") == b"hello" and patch.mesh is not own
    assert ended(in_child(grandchild)) == 0
    assert ask("greeting") == b"hello" and patch.mesh is own
    patch.undo()
    assert own.closed and not patch.applied

children = [in_child(child) for _ in range(2)]
assert [ended(pid) for pid in children] == [0, 0]
# The parent has noticed nothing.
assert open_socket.recv(100) == b"hello" and ask("greeting") == b"hello" and patch.mesh is mesh and patch.applied
open_socket.close()
""",
        address,
    )


def test_children_that_use_nothing_have_no_node(address: str) -> None:
    check(
        """
assert ask("greeting") == b"hello"
before = len(os.listdir("/proc/self/fd"))
def child():
    assert socket.gethostbyname("127.0.0.1") == "127.0.0.1"
    assert patch._mesh is mesh and len(os.listdir("/proc/self/fd")) <= before + 5
assert ended(in_child(child)) == 0
""",
        address,
    )


def test_children_serve_what_was_bound_before_the_fork(address: str) -> None:
    """Who forked has never accepted: it leaves that to its children, until it does."""
    check(
        """
listener = socket.create_server(("site", 80))
listener.set_inheritable(True)

def child():
    server = StreamServer(listener, lambda sock, address: sock.sendall(str(os.getpid()).encode()))
    server.start()
    gevent.sleep(60)

def await_servers(count):
    with gevent.Timeout(20, AssertionError(f"not {count} servers")), mesh.service_map.watch() as changes:
        while len(mesh.service_map.get("site", ())) != count:
            changes.get()

assert len(mesh.service_map["site"]) == 1
children = [in_child(child), in_child(child)]
await_servers(2)
assert all(service.node_id != mesh.node_id for service in mesh.service_map["site"])
assert {int(ask("site")) for _ in range(40)} == set(children)
os.kill(children[0], 9)
ended(children[0])
await_servers(1)
assert int(ask("site")) == children[1]
# Now the parent accepts too.
own = StreamServer(listener, lambda sock, address: sock.sendall(b"parent"))
own.start()
await_servers(2)
assert {ask("site") for _ in range(40)} == {b"parent", str(children[1]).encode()}
# A parent that has accepted goes on doing so, whatever it forks.
assert ended(in_child(lambda: None)) == 0
await_servers(2)
os.kill(children[1], 9)
ended(children[1])
await_servers(1)
assert ask("site") == b"parent"
own.stop()
""",
        address,
    )


def test_programs_that_start_others_go_on_offering(address: str) -> None:
    """A child that becomes another program accepts nothing: what was bound is offered all the while, under the same port."""
    check(
        """
import subprocess
from gevent.subprocess import check_call
sys.unraisablehook = lambda unraisable: os._exit(9)

# The services of others are all there.
mesh.service_map.wait_for("greeting", 10)
ways = {
    "gevent": lambda: check_call(["true"]),
    "standard": lambda: subprocess.check_call(["true"]),
    "preexec": lambda: subprocess.check_call(["true"], preexec_fn=os.getpid),
    "spawn": lambda: os.spawnlp(os.P_NOWAIT, "true", "true"),
    "fails": lambda: raises(FileNotFoundError, check_call, ["/nowhere/at/all"]),
}
for way, start in ways.items():
    listener = socket.create_server(("site", 0))
    (offered,) = mesh.service_map["site"]
    with mesh.service_map.watch() as changes:
        # What is there already.
        while changes.get(0):
            pass
        start()
        assert list(mesh.service_map["site"]) == [offered], way
        assert changes.get(0.1) is None, way
    # Nobody has looked yet: what forks to serve is still told from this.
    serve_once(listener)
    listener.close()
    assert "site" not in mesh.service_map

listener = socket.create_server(("site", 0))
assert ended(in_child(lambda: None)) == 0
assert "site" not in mesh.service_map
listener.close()
""",
        address,
    )


def test_a_fork_while_a_program_is_started_is_one_for_all_that(address: str) -> None:
    check(
        """
from gevent.subprocess import check_call
listener = socket.create_server(("site", 0))
def functions(frame):
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back
held, let_go = os.pipe()
def hold():
    # It would keep itself waiting if this failed.
    os.close(let_go)
    os.read(held, 1)
# It has forked, and waits until its child has become that program.
starting = gevent.spawn(check_call, ["true"], preexec_fn=hold)
with gevent.Timeout(10, AssertionError("it does not start a program")):
    while "_execute_child" not in functions(starting.gr_frame):
        gevent.sleep(0)
assert "site" in mesh.service_map
assert ended(in_child(lambda: None)) == 0
assert "site" not in mesh.service_map
os.write(let_go, b"x")
starting.get(timeout=10)
serve_once(listener)
listener.close()
""",
        address,
    )


def test_a_fork_in_another_thread_is_not_noticed(address: str) -> None:
    """What is offered belongs to the thread that offers it: a hook of another one leaves it alone, and raises nothing."""
    check(
        """
sys.unraisablehook = lambda unraisable: os._exit(9)
listener = socket.create_server(("site", 80))
def fork():
    # gevent's own is for the main thread only.
    pid = monkey.get_original("os", "fork")()
    if not pid:
        os._exit(0)
    return pid
for _ in range(5):
    pid = gevent.get_hub().threadpool.apply(fork)
    assert ended(pid) == 0
assert "site" in mesh.service_map
greenlet = gevent.spawn(ask, "site")
sock, _ = listener.accept()
sock.sendall(b"served")
sock.close()
assert greenlet.get(timeout=10) == b"served"
listener.close()
""",
        address,
    )


def test_a_detached_listener_is_rebuilt_in_the_child(address: str) -> None:
    """As gunicorn's worker does: from the number that detach() gave."""
    check(
        """
listener = socket.create_server(("site", 80))
def child():
    rebuilt = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=listener.detach())
    assert rebuilt.getsockname() == name and rebuilt.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    rebuilt.settimeout(10)
    sock, _ = rebuilt.accept()
    sock.sendall(b"child")
    sock.close()
    rebuilt.close()
    patch.undo()
name = listener.getsockname()
pid = in_child(child)
assert ask("site") == b"child"
assert ended(pid) == 0
listener.close()
""",
        address,
    )


def test_other_threads_are_refused(address: str) -> None:
    """A native thread with a hub of its own is told, whatever it tries; it never waits for something that cannot come."""
    check(
        """
assert ask("greeting") == b"hello"
sock = socket.create_connection(("greeting", 80), 10)
gevent.sleep(0.01)
number = sock.fileno()

def in_thread(function, *args):
    with gevent.Timeout(10, AssertionError(f"{function} hangs")):
        return gevent.get_hub().threadpool.apply(function, args)

def tries():
    assert "another thread" in raises(WrongThreadError, ask, "greeting")
    assert "another thread" in raises(WrongThreadError, ask, "nobody.mesh")
    assert "another thread" in raises(WrongThreadError, sock.recv, 1)
    assert "another thread" in raises(WrongThreadError, sock.send, b"x")
    assert "another thread" in raises(WrongThreadError, sock.sendall, b"x" * 1000000)
    assert "another thread" in raises(WrongThreadError, socket.create_server, ("site", 80))
    assert "another thread" in raises(WrongThreadError, listener.accept)
    # What is not the mesh's works there as ever.
    plain = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(plain.getsockname(), 10) as near:
        far, _ = plain.accept()
        near.sendall(b"x")
        assert far.recv(1) == b"x"
        far.close()
    plain.close()
    assert isinstance(raises(socket.gaierror, socket.getaddrinfo, "nobody.invalid", 80), str)
    return True

listener = socket.create_server(("here", 80))
assert in_thread(tries)
assert sock.recv(100) == b"hello"
sock.close()
listener.close()
""",
        address,
    )


def test_the_thread_that_forked_has_the_node(address: str) -> None:
    """Another thread of the child that asks first is refused, and takes nothing away."""
    check(
        """
assert ask("greeting") == b"hello"
def child():
    apply = gevent.get_hub().threadpool.apply
    assert "thread" in apply(raises, (WrongThreadError, socket.getaddrinfo, "greeting.mesh", 80))
    assert ask("greeting.mesh") == b"hello"
assert ended(in_child(child)) == 0
""",
        address,
    )


def test_children_of_multiprocessing_send_all_that_they_wrote(address: str) -> None:
    """They end without atexit: what they have written and closed is sent all the same."""
    check(
        """
import multiprocessing
received = []
def take(sock, address):
    size = 0
    while data := sock.recv(65536):
        size += len(data)
    received.append(size)
from astranet_gevent.server import StreamServer as MeshServer
other = AstraNet(join=[(host, int(port))]).start()
server = MeshServer(other.bind("sink:80"), take)
server.start()

def child(streams):
    for _ in range(streams):
        sock = socket.create_connection(("sink", 80), 10)
        sock.sendall(b"x" * 60000)
        sock.close()

process = multiprocessing.get_context("fork").Process(target=child, args=(100,))
process.start()
process.join()
assert process.exitcode == 0
with gevent.Timeout(20, AssertionError(f"{len(received)} of 100, {sum(received)} bytes")):
    while len(received) < 100:
        gevent.sleep(0.01)
assert received == [60000] * 100
other.close(1)
""",
        address,
    )
