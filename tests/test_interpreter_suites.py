"""The interpreter's own network tests, and gevent's, do not notice that a mesh carries their streams: what is quick of `make suites`."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMPARE = Path(__file__).parent / "patches" / "compare.py"

# Seconds; it takes 40 to 100 on two cores, depending on what else they do.
LIMIT = 240


@pytest.mark.timeout(LIMIT + 30)
@pytest.mark.skipif(
    importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None,
    reason="the interpreter's tests are not installed",
)
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="differences are known for 3.10 to 3.13")
def test_what_passes_on_sockets_passes_on_a_mesh(tmp_path: Path) -> None:
    output = tmp_path / "outcomes.json"
    command = [sys.executable, str(COMPARE), "--quick", "--jobs", "2", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    modules = {module["module"]: module for module in json.loads(output.read_text())["modules"]}
    # Not an empty comparison, nor one of tests that open no connection.
    assert sum(module["passed_on_mesh"] for module in modules.values()) > 600, done.stdout
    assert sum(module["carried"] for module in modules.values()) > 400, done.stdout
    for name in ("test.test_socket", "test.test_ssl", "test.test_httplib", "gevent.tests.test__pywsgi"):
        assert modules[name]["carried"] > 0


# One of each kind of test that a run has to survive, and one that passes on sockets only.
SAMPLE = """
import os, signal, socket, sys, threading, unittest

class Sample(unittest.TestCase):
    def test_a_stream(self):
        listener = socket.create_server(("127.0.0.1", 0))
        with listener, socket.create_connection(listener.getsockname()) as sock:
            self.assertEqual(sock.getpeername(), listener.getsockname())
    def test_b_differs(self):
        self.assertNotEqual(sys.argv[1], "mesh")
    def test_c_waits_for_ever(self):
        threading.Event().wait(3600)
    def test_d_never_waits(self):
        while True:
            pass
    def test_e_dies(self):
        os._exit(3)
    def test_f_cannot_be_interrupted(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        while True:
            pass
    def test_g_is_skipped(self):
        self.skipTest("because")
    def test_h_still_runs(self):
        pass

class Fixture(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if sys.argv[1] == "mesh":
            raise OSError("not here")
    def test(self):
        pass
"""


def test_a_comparison_loses_only_what_hangs_or_dies(tmp_path: Path) -> None:
    (tmp_path / "sample_suite.py").write_text(SAMPLE)
    output = tmp_path / "outcomes.json"
    command = [sys.executable, str(COMPARE), "sample_suite", "not_installed_suite", "--limit", "2", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not_installed_suite: not installed" in done.stdout
    (module,) = json.loads(output.read_text())["modules"]
    expected = {
        "a_stream": "ok",
        "c_waits_for_ever": "failed: TestHungError",
        "d_never_waits": "failed: TestHungError",
        "e_dies": "failed: the process ended with status 3",
        "f_cannot_be_interrupted": "failed: hung, and could not be interrupted",
        "g_is_skipped": "skipped: because",
        "h_still_runs": "ok",
    }
    for carrier, outcomes in module["outcomes"].items():
        for name, text in expected.items():
            assert outcomes[f"sample_suite.Sample.test_{name}"]["text"].startswith(text), (carrier, outcomes)
    assert set(module["unexplained"]) == {"sample_suite.Sample.test_b_differs", "sample_suite.Fixture.test"}
    assert module["carried"] == 1
    assert "OSError: not here" in module["unexplained"]["sample_suite.Fixture.test"]


def test_a_comparison_that_is_ended_ends_its_processes(tmp_path: Path) -> None:
    (tmp_path / "sample_suite.py").write_text(
        "import os, unittest\nclass Sample(unittest.TestCase):\n    def test(self):\n"
        "        os.write(os.open(os.environ['PIPE'], os.O_WRONLY), b'x')\n        while True: pass\n"
    )
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PIPE": str(pipe)}
    process = subprocess.Popen([sys.executable, str(COMPARE), "sample_suite", "--jobs", "1"], stdout=subprocess.DEVNULL, env=environment)
    with pipe.open("rb") as reading:
        assert reading.read(1) == b"x"
        process.send_signal(signal.SIGTERM)
        # The end comes when the last process that has it open is gone.
        assert reading.read() == b""
    assert process.wait(20) == 128 + signal.SIGTERM
