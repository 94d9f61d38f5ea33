"""What ended greenlets leave to the next ones: in processes of their own, for it is of the whole process and cannot be undone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from astranet_gevent.builds import describe_build

TIMEOUT = 60.0
MOST = 128

COMPILED = describe_build() != "pure Python" and sys.version_info >= (3, 11)
compiled_only = pytest.mark.skipif(not COMPILED, reason="the pure build has no means of keeping it")

START = """
import gevent, os, sys, threading
from gevent.event import Event
from astranet_gevent import AstraNet

def handle(go):
    # A function in Python, which the frames of a greenlet are for.
    return [number for number in range(10)] and go.wait(30)

def run(count):
    go = Event()
    greenlets = [gevent.spawn(handle, go) for _ in range(count)]
    gevent.sleep(0)
    during = held()
    go.set()
    gevent.joinall(greenlets, timeout=30, raise_error=True)
    gevent.sleep(0)
    return during
"""

HELD = "from astranet_gevent._greenlet_memory import held\n"


def said(source: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=TIMEOUT, check=False, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@compiled_only
def test_ended_greenlets_leave_it_to_the_next_ones() -> None:
    """Up to a limit, whose greenlets it may be of."""
    said(f"""{HELD}{START}
assert run(300) == 0 and held() == 0
mesh = AstraNet().start()
run(300)
assert held() == {MOST}, held()
during = run(50)
assert {MOST} - 60 <= during <= {MOST} - 50, during
assert held() == {MOST}, held()
assert run(300) == 0
assert held() == {MOST}, held()
mesh.close()
""")


@compiled_only
def test_threads_share_it() -> None:
    """Each with a hub of its own; now and then two ask at once."""
    said(f"""{HELD}{START}
mesh = AstraNet().start()
sys.setswitchinterval(1e-5)
def work():
    for _ in range(40):
        run(30)
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(50)
    assert not thread.is_alive()
assert 0 < held() <= {MOST}, held()
mesh.close()
""")


@compiled_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_goes_on_with_its_own() -> None:
    said(f"""{HELD}{START}
mesh = AstraNet().start()
run(200)
pid = os.fork()
before = held()
during = run(20)
assert before - 30 <= during <= before - 20, (before, during)
assert held() == before, held()
if not pid:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
mesh.close()
""")


@compiled_only
def test_it_is_not_kept_if_the_environment_says_so() -> None:
    assert said(f"{HELD}{START}mesh = AstraNet().start(); run(50); print(held()); mesh.close()", ASTRANET_GREENLET_MEMORY="0") == "0"


def test_pure_python_has_no_means_of_it() -> None:
    source = "from astranet_gevent.greenlet_memory import keep_greenlet_memory as keep; print(keep())"
    assert said(source, ASTRANET_GEVENT_PURE="1") == "False"
