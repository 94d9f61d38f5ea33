"""What the interpreter's own tests of sockets ask for beyond a plain client and server, each in a process of its own."""

from __future__ import annotations

import pytest
from integration.tools import run_script
from test_patches import PRELUDE

PROGRAMS = {
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
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str) -> None:
    source = PRELUDE + "import gevent.event\n" + PROGRAMS[program] + '\nclient.close(1)\nserver.close(1)\nprint("done")\n'
    result = run_script(source, timeout=40.0)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    assert "Traceback" not in result.stderr, result.stderr
