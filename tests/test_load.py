"""The measurements run, and what they print and write makes sense. What they measure is not judged here."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pty
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

LOAD = Path(__file__).resolve().parent.parent / "load"


def run(script: str, tmp_path: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """The table, and the rows as JSON, of one short round."""
    values = tmp_path / "values.json"
    command = [sys.executable, str(LOAD / script), "--quick", "--json", str(values), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "round 1/1" in done.stderr
    return done.stdout, json.loads(values.read_text())["rows"]


def check(rows: list[dict[str, Any]], table: str, names: set[str]) -> None:
    assert {row["name"] for row in rows} == names
    for row in rows:
        assert row["title"] in table
        assert [len(values) for values in row["values"].values()] == [1, 1], row
        assert (row["met"] is None) == (row["asked"] == ""), row


def test_bench_on_loopback(tmp_path: Path) -> None:
    names = ("round-trip", "echoes", "churn", "bulk", "one-way")
    numbers = ("--streams", "100", "--seconds", "0.1")
    table, rows = run("bench.py", tmp_path, *numbers, *(part for name in names for part in ("--only", name)))
    wanted = {"rtt", "rtt p99", "rtt cpu", "echoes 100", "echo cpu 100", "churn 1", "churn 100"}
    wanted |= {f"{way} {what}{streams}" for way in ("upload", "download") for what in ("", "cpu ") for streams in (1, 100)}
    wanted |= {f"one way {size}" for size in (64, 1024, 16384)}
    check(rows, table, wanted)
    assert all(value > 0 for row in rows for value in row["ratios"])


def relayed(prefix: str) -> set[str]:
    return {f"{prefix} {what}" for what in ("echoes", "echoes many", "upload", "upload many")}


def test_bench_over_relays_and_slow_paths(tmp_path: Path) -> None:
    table, rows = run("bench.py", tmp_path, "--seconds", "0.1", "--only", "pings", "--only", "relay")
    wanted = {f"ping {what} {path}" for what in ("p50", "p99", "bulk") for path in ("loopback", "100 MB/s")}
    check(rows, table, wanted | relayed("relay"))
    assert all(value > 0 for row in rows for value in row["ratios"])
    processes = json.loads((tmp_path / "values.json").read_text())["processes"]
    assert {one["side"] for one in processes} == {"server", "client", "relay", "100 MB/s"}
    assert {one["scenario"] for one in processes} == {"pings", "relay"}
    assert all(one["cpu"] > 0 and one["resident"] > 2**20 for one in processes), processes


@pytest.mark.skipif(not shutil.which("cc"), reason="it is written in C")
def test_bench_of_a_relay_that_only_copies(tmp_path: Path) -> None:
    table, rows = run("bench.py", tmp_path, "--seconds", "0.1", "--only", "copier")
    check(rows, table, relayed("copied") | relayed("relayed"))
    assert all(value > 0 for row in rows for value in row["ratios"])
    processes = json.loads((tmp_path / "values.json").read_text())["processes"]
    assert {one["side"] for one in processes} == {"server", "client", "relay", "copier"}
    assert all(one["cpu"] > 0 for one in processes), processes


def test_a_copier_passes_on_every_byte_both_ways_and_ends_with_either_end() -> None:
    source = """
import hashlib, random, socket, sys, threading
from copier import Copier, missing
if missing():
    sys.exit(77)
target = socket.create_server(("127.0.0.1", 0))
port = Copier(target.getsockname()[1]).port
for closes_first in (0, 1):
    ends = [socket.create_connection(("127.0.0.1", port), 10), target.accept()[0]]
    sent, got = [random.Random(i).randbytes(9_000_000) for i in (0, 1)], [b"", b""]
    def read(i):
        ends[i].settimeout(10)
        while len(got[i]) < len(sent[0]):
            got[i] += ends[i].recv(1 << 20)
    threads = [threading.Thread(target=read, args=(i,)) for i in (0, 1)]
    threads += [threading.Thread(target=ends[i].sendall, args=(sent[i],)) for i in (0, 1)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(20)
    assert got == sent[::-1]
    ends[closes_first].close()
    assert ends[1 - closes_first].recv(10) == b""
"""
    done = run_with_load(source)
    if done.returncode == 77:
        pytest.skip("it is written in C")
    assert done.returncode == 0, done.stderr


def test_a_copier_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, str(LOAD / "bench.py"), "--quick", "--only", "copier"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "copier: it is written in C, and there is no compiler (cc)" in done.stderr


def run_with_load(source: str) -> subprocess.CompletedProcess[str]:
    """A script that imports from load/, in a process of its own."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(LOAD)!r})\n{source}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def skip_without_groups() -> None:
    reason = run_with_load("import cgroup; print(cgroup.missing())").stdout.strip()
    if reason:
        pytest.skip(reason)


def test_bench_with_half_a_core_each(tmp_path: Path) -> None:
    skip_without_groups()
    table, rows = run("bench.py", tmp_path, "--seconds", "0.1", "--only", "shares")
    check(rows, table, relayed("shares"))
    assert all(value > 0 for row in rows for value in row["ratios"])
    processes = json.loads((tmp_path / "values.json").read_text())["processes"]
    assert {one["side"] for one in processes} == {"server", "client", "relay"}


def test_a_share_of_a_core_limits_a_process_and_leaves_nothing() -> None:
    skip_without_groups()
    source = """
import os, subprocess, sys, time
import cgroup
root = cgroup.find_hierarchy(cgroup.MOUNTS.read_text())[0]
def groups():
    return list(root.glob(f"bench-{os.getpid()}-*"))
busy = "import time; end = time.monotonic() + 20\\nwhile time.monotonic() < end: pass"
child = subprocess.Popen([sys.executable, "-c", busy])
try:
    with cgroup.Shares(0.25) as shares:
        try:
            shares.limit(child.pid)
            (group,) = groups()
            assert (group / "cgroup.procs").read_text().split() == [str(child.pid)]
            def throttled():
                return int(dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())["nr_throttled"])
            while not throttled():
                assert child.poll() is None, "it was never stopped"
                time.sleep(0.02)
            try:
                shares.limit(2**22 + 1)
            except cgroup.ChildFailed as error:
                assert str(2**22 + 1) in str(error)
            else:
                raise AssertionError("no such process")
        finally:
            child.kill()
            child.wait()
finally:
    child.kill()
assert not groups()
child = subprocess.Popen([sys.executable, "-c", busy])
try:
    with cgroup.Shares(0.25) as shares:
        shares.limit(child.pid)
        shares.make_group()
except cgroup.ChildFailed as error:
    assert "could not be removed" in str(error)
else:
    raise AssertionError("a process is in it")
finally:
    child.kill()
    child.wait()
(group,) = groups()
group.rmdir()
"""
    done = run_with_load(source)
    assert done.returncode == 0, done.stderr


def test_groups_for_shares_of_a_core_are_found_in_both_versions(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory cpu pids\n")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "cgroup.subtree_control").write_text("memory cpuset\n")
    source = f"""
from pathlib import Path
from cgroup import find_hierarchy
found = Path({str(tmp_path)!r})
other = "proc /proc proc rw,relatime 0 0\\ncgroup /c/set cgroup rw,cpuset 0 0\\n"
assert find_hierarchy(other + "cgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\\n") == (Path("/c/cpu"), False)
assert find_hierarchy(other + f"cgroup2 {{found}}/without cgroup2 rw 0 0\\ncgroup2 {{found}} cgroup2 rw 0 0\\n") == (found, True)
for nothing in (other, other + f"cgroup2 {{found}}/without cgroup2 rw 0 0\\n", other + f"cgroup2 {{found}}/gone cgroup2 rw 0 0\\n"):
    try:
        find_hierarchy(nothing)
    except FileNotFoundError:
        continue
    raise AssertionError(nothing)
"""
    done = run_with_load(source)
    assert done.returncode == 0, done.stderr


def test_bench_says_why_it_cannot_share_cores(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("proc /proc proc rw,relatime 0 0\n")
    source = f"""
from pathlib import Path
import cgroup, bench
cgroup.MOUNTS = Path({str(tmp_path / "mounts")!r})
bench.main(["--quick", "--only", "shares"])
"""
    done = run_with_load(source)
    assert done.returncode == 2
    assert "shares: it needs control groups of Linux for processor time" in done.stderr


def test_bench_far_and_http(tmp_path: Path) -> None:
    table, rows = run("bench.py", tmp_path, "--seconds", "0.1", "--only", "far", "--only", "http")
    wanted = {f"http {what}{clients}" for what in ("", "cpu ") for clients in (1, 32)}
    check(rows, table, wanted | {"far open", "far echo", "far early", "far upload"})
    assert all(value > 0 for row in rows for value in row["ratios"])
    # What a path of 10 ms costs does not depend on the machine: two round trips, not one less. An echo that was late makes it seem less.
    opening = next(row for row in rows if row["name"] == "far open")
    assert opening["values"]["astranet"][0] > 1.5


def test_bench_of_http_over_sockets_that_block(tmp_path: Path) -> None:
    table, rows = run("bench.py", tmp_path, "--seconds", "0.1", "--only", "blocking")
    check(rows, table, {f"{kind} {what}" for kind in ("blocking", "astranet") for what in ("http", "http cpu")})
    assert all(value > 0 for row in rows for value in row["ratios"])
    processes = json.loads((tmp_path / "values.json").read_text())["processes"]
    assert [(one["kind"], one["side"]) for one in processes] == [
        (kind, side) for kind in ("gevent", "blocking", "astranet") for side in ("server", "client")
    ]


def test_a_server_that_blocks_sends_a_response_at_once_and_lets_others_run_while_nothing_comes() -> None:
    source = """
from gevent import monkey
monkey.patch_all()
import os, socket
import blocking, web
accepted = socket.socket()
accepted.setblocking(False)
with blocking.ServedSocket(accepted.detach()) as served:
    assert os.get_blocking(served.fileno())  # one that is not would poll all the time
server = blocking.BlockingServer(("127.0.0.1", 0), web.application, log=None)
server.start()
with socket.create_connection(server.address, 10) as client:
    for number in range(3):  # this client has its turn when a read of the server's has found nothing
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: web\\r\\n\\r\\n")
        response = client.recv(65536)
        assert response.startswith(b"HTTP/1.1 200 OK") and response.endswith(b"\\r\\n\\r\\n" + web.BODY), response
server.stop(1)
"""
    done = run_with_load(source)
    assert done.returncode == 0, done.stderr


def test_charts(tmp_path: Path) -> None:
    numbers = ("--seconds", "0.1", "--streams", "1", "--streams", "5", "--idle-streams", "1500")
    table, rows = run("bench.py", tmp_path, *numbers, "--only", "streams", "--only", "idle", "--plot", str(tmp_path / "charts"))
    wanted = {f"{what} {streams}" for what in ("rate", "p50", "p90", "p99") for streams in (1, 5)}
    wanted |= {f"{what} {side}{at}" for what in ("idle", "whole") for side in ("client", "server") for at in ("", " 1000")}
    check(rows, table, wanted | {"idle opening", "idle echo"})
    for row in rows:
        if not row["name"].startswith("idle "):
            assert all(value > 0 for value in row["ratios"]), row
    by_name = {row["name"]: row["values"] for row in rows}
    assert all(by_name["p50 5"][kind][0] <= by_name["p90 5"][kind][0] <= by_name["p99 5"][kind][0] for kind in ("gevent", "astranet"))

    files = sorted((tmp_path / "charts").iterdir())
    assert [file.name for file in files] == ["latency.png", "memory.png", "throughput.png"]
    assert all(f"chart: {file}" in table for file in files)
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert 5_000 < file.stat().st_size < 100_000


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))


@pytest.mark.parametrize(("numbers", "status"), [(["20", "5000", "20"], 0), (["5000"], 1)])
def test_more_streams_than_descriptors(numbers: list[str], status: int, tmp_path: Path) -> None:
    """What is not measured is said; a number given twice is measured once."""
    values = tmp_path / "values.json"
    command = [sys.executable, str(LOAD / "bench.py"), "--quick", "--seconds", "0.1", "--only", "echoes", "--json", str(values)]
    command += [part for number in numbers for part in ("--streams", number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, preexec_fn=few_descriptors)
    assert done.returncode == status, done.stderr
    content = json.loads(values.read_text())
    warning = "not measured: echoes of 5,000 streams: the baseline needs a descriptor for each, and a process has 1,024"
    assert warning in done.stdout
    assert warning in content["warnings"]
    assert "quiet enough" not in done.stdout
    if status:
        assert content["rows"] == []
        assert done.stdout.endswith("nothing was measured\n")
    else:
        check(content["rows"], done.stdout, {"echoes 20", "echo cpu 20"})


@pytest.mark.parametrize("end", ["interrupted", "failed: "])
def test_what_was_measured_until_then(end: str, tmp_path: Path) -> None:
    """A run that is ended has its table and its file all the same."""
    values = tmp_path / "values.json"
    command = [sys.executable, str(LOAD / "bench.py"), "--only", "round-trip", "--rounds", "500", "--seconds", "0.1", "--json", str(values)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has it ignored, and children inherit that. No other thread runs here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        try:
            assert process.stderr is not None
            assert any("round 2/500  gevent" in line for line in process.stderr)
            if end == "interrupted":
                process.send_signal(signal.SIGINT)
            else:
                # Whichever there are now: between two measurements there may be none.
                while process.poll() is None:
                    for child in psutil.Process(process.pid).children():
                        with contextlib.suppress(psutil.NoSuchProcess):
                            child.kill()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.02)
            table, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == (130 if end == "interrupted" else 1), said
    content = json.loads(values.read_text())
    assert {row["name"] for row in content["rows"]} == {"rtt", "rtt p99", "rtt cpu"}
    assert all(row["title"] in table and len(row["ratios"]) >= 1 for row in content["rows"])
    assert content["warnings"][0].startswith(end)
    assert content["warnings"][0].endswith(": this is what was measured until then")
    assert content["warnings"][0] in table


def plots() -> Any:
    spec = importlib.util.spec_from_file_location("plots", LOAD / "plots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_series_of_a_chart() -> None:
    """Sorted by streams, with what each kind had; a point that the baseline cannot have is ours alone."""

    def row(of: str, base: tuple[int, list[float]], ours: tuple[int, list[float]]) -> dict[str, Any]:
        curve = {"of": of, "streams": {"gevent": base[0], "astranet": ours[0]}}
        return {"curve": curve, "values": {"gevent": base[1], "astranet": ours[1]}}

    rows = [
        row("idle client", (15, [9.0]), (1000, [4.0])),
        row("idle client", (10, [8.0, 6.0, 7.0]), (10, [3.0, 5.0, 4.0])),
        row("idle client", (100, []), (100, [2.0])),
        row("idle server", (10, [1.0]), (10, [1.0])),
        {"curve": None, "values": {"gevent": [1.0], "astranet": [1.0]}},
    ]
    assert plots().series({"rows": rows}, "idle client") == {
        "gevent": [(10, 7.0, 6.0, 8.0), (15, 9.0, 9.0, 9.0)],
        "astranet": [(10, 4.0, 3.0, 5.0), (100, 2.0, 2.0, 2.0), (1000, 4.0, 4.0, 4.0)],
    }


def start_without(modules: Iterable[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run bench.py where some modules are not installed."""
    hidden = dict.fromkeys(modules)
    hide = f"import runpy, sys; sys.modules.update({hidden}); sys.path.insert(0, {str(LOAD)!r}); sys.argv[0] = 'bench.py'"
    command = [sys.executable, "-c", f"{hide}; runpy.run_path({str(LOAD / 'bench.py')!r}, run_name='__main__')", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_charts_without_matplotlib(tmp_path: Path) -> None:
    """It is said before anything is measured, and what to do about it."""
    done = start_without(["matplotlib"], "--quick", "--plot", str(tmp_path / "charts"))
    assert done.returncode == 2
    assert "pip install matplotlib" in done.stderr
    assert "round 1/1" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "charts").exists()


def test_charts_of_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(LOAD / "bench.py"), "--quick", "--only", "churn", "--plot", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "idle, streams" in done.stderr


@pytest.mark.parametrize("place", ["file", "file/charts"])
def test_charts_where_a_file_is(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = start_without([], "--quick", "--plot", str(tmp_path / place))
    assert done.returncode == 2
    assert "argument --plot: " in done.stderr
    assert "is no folder and cannot be made" in done.stderr
    assert "round 1/1" not in done.stderr


def test_peers(tmp_path: Path) -> None:
    """Those that are installed are measured like ours; the others are named and left out."""
    values = tmp_path / "values.json"
    arguments = ("--quick", "--peers", "--only", "round-trip", "--seconds", "0.1", "--json", str(values))
    done = start_without(["libp2p", "paramiko", "zerorpc"], *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "left out: paramiko, zerorpc, libp2p (pip install paramiko zerorpc libp2p)" in done.stderr
    content = json.loads(values.read_text())
    assert [part.split()[0] for part in content["peers"].split(", ")] == ["h2", "uvloop"]
    wanted = {f"{peer} {what}" for peer in ("h2", "uvloop") for what in ("rtt", "echoes", "churn", "upload")}
    check(content["rows"], done.stdout, wanted | {"rtt", "rtt p99", "rtt cpu"})
    for row in content["rows"]:
        assert all(value > 0 for values in row["values"].values() for value in values), row


FORGETTING = """
import asyncio
from peers.uvloop_tcp import UvloopTcp

async def nothing():
    pass

program = UvloopTcp()
for _ in range(100):
    program.spawn(nothing)
# In the order in which they were begun: when this one ends the others have.
program._call(asyncio.sleep(0))
assert len(program._tasks) == 0, program._tasks
"""

STUCK = """
import gevent.event, web

asked = gevent.event.Event()

class Session:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get(self, url, timeout):
        asked.set()
        gevent.event.Event().wait()

web.STEP_LIMIT = 0.05
load = web.Requests(Session)
load.start(2)
assert asked.wait(5)
try:
    load.stop()
except TimeoutError as error:
    assert str(error) == "2 of 2 requests have no answer", error
else:
    raise AssertionError("nothing was noticed")
"""


@pytest.mark.parametrize("source", [FORGETTING, STUCK])
def test_of_a_process(source: str) -> None:
    """Coroutines that have ended are forgotten; requests that do not end are an error."""
    done = run_with_load(source)
    assert done.returncode == 0, done.stderr


SAMPLED = """
from types import SimpleNamespace
import scenarios
from scenarios import Window

class Process:
    def __init__(self, **samples):
        self.samples = [dict(zip(samples, each), clock=float(n), cpu=0.0) for n, each in enumerate(zip(*samples.values()))]
    def ask(self, what):
        assert what == "sample"
        return self.samples.pop(0)

pair = SimpleNamespace(client=Process(count=[5, 5, 5, 6, 9]), server=Process(count=[7] * 5))
window = Window.of(pair, 0.01)
assert window.client["count"] == 1 and len(pair.client.samples) == 1, pair.client.samples
pair = SimpleNamespace(client=Process(count=[5, 5, 5], bytes=[0, 0, 0]), server=Process(count=[7] * 3, bytes=[1, 1, 8]))
assert Window.of(pair, 0.01, "uploaded").server["bytes"] == 7
scenarios.STEP_LIMIT = 0.0
try:
    Window.of(SimpleNamespace(client=Process(count=[5] * 9), server=Process(count=[5] * 9)), 0.01)
except scenarios.ChildFailed as error:
    assert "nothing was answered" in str(error), error
else:
    raise AssertionError("a window in which nothing happened has no rate")
"""


def test_a_window_lasts_until_there_is_something_to_count() -> None:
    """On a machine that is busy with something else: nothing can be divided by a rate of 0."""
    done = run_with_load(SAMPLED)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--peers"], ["--only", "h2"]])
def test_peers_that_are_not_installed(arguments: list[str]) -> None:
    """None of all, or one by name: nothing is measured, and it is said what to install."""
    done = start_without(["h2", "libp2p", "paramiko", "uvloop", "zerorpc"], "--quick", *arguments)
    assert done.returncode == 2
    assert "pip install h2" in done.stderr
    assert "pip install -e '.[peers]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "round 1/1" not in done.stderr


@pytest.mark.parametrize("script", ["bench.py", "patched.py"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--seconds", "nan", "nan is not above 0"), ("--rounds", "0", "0 is not above 0"), ("--json", "/nowhere/x", "cannot be written")],
)
def test_wrong_options_are_said_before_anything_is_measured(script: str, option: str, value: str, message: str) -> None:
    ended = subprocess.run([sys.executable, str(LOAD / script), option, value], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"argument {option}: " in ended.stderr
    assert message in ended.stderr


@pytest.mark.parametrize("bar", [True, False])
def test_progress_on_a_terminal(bar: bool) -> None:
    """A bar that names the scenario; lines where it is not wanted. Without a terminal there are lines: see run()."""
    command = [sys.executable, str(LOAD / "bench.py"), "--quick", "--only", "round-trip", "--seconds", "0.1"]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    try:
        with subprocess.Popen([*command, *([] if bar else ["--no-progress"])], stdout=subprocess.PIPE, stderr=slave) as process:
            table, _ = process.communicate(timeout=30)
        # What a terminal buffers is more than this writes, so that nothing had to be read meanwhile.
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert process.returncode == 0
    assert b"64 B echo" in table
    assert "|" not in table.decode()
    assert ("round-trip round 1/1:" in shown) is bar
    assert ("rtt p99" in shown and "\r\n" in shown) is not bar


def test_patched_requests_and_memory(tmp_path: Path) -> None:
    numbers = ("--seconds", "0.2", "--connections", "200")
    table, rows = run("patched.py", tmp_path, *numbers, "--only", "http-1", "--only", "http-32", "--only", "memory")
    http = {f"{what} {greenlets}" for what in ("http", "client", "server") for greenlets in (1, 32)}
    idle = {f"{what} {side}" for what in ("memory", "descriptors") for side in ("client", "server")}
    check(rows, table, http | idle)
    for row in rows:
        if row["name"] in http:
            assert all(value > 0 for values in row["values"].values() for value in values), row
        if row["name"].startswith("descriptors"):
            # The one figure that no machine's speed changes.
            assert row["values"] == {"plain": [0], "patched": [0]}
            assert row["met"] is True


def test_patched_others(tmp_path: Path) -> None:
    table, rows = run("patched.py", tmp_path, "--seconds", "0.2", "--only", "others")
    check(rows, table, {"connect number", "connect name", "socket", "accept"})
    assert all(value > 0 for row in rows for values in row["values"].values() for value in values)


def test_help() -> None:
    for script in ("bench.py", "patched.py"):
        done = subprocess.run([sys.executable, str(LOAD / script), "--help"], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "--quick" in done.stdout
