"""locust over the mesh: unchanged locustfiles by the environment, and the users of ``astranet_gevent.locust``; in one process and more."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest
from conftest import wait_until
from gevent import subprocess
from integration.tools import check_script, echo_one, free_port, script_environment

from astranet_gevent import AstraNet, Role
from astranet_gevent.server import StreamServer, WSGIServer

# With this locust writes its statistics there, and prints no table.
JSON = ("--json-file", "report")

LOAD = Path(__file__).resolve().parent.parent / "load"


class Site:
    """A router with a service of HTTP and one of streams; notes which node has asked for what."""

    def __init__(self, mesh: AstraNet) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.listener = mesh.bind("site")
        WSGIServer(self.listener, self._answer, log=None).start()
        StreamServer(mesh.bind("echo"), lambda stream, _: echo_one(stream)).start()
        host, port = mesh.listen(("127.0.0.1", 0)).address
        self.address = f"{host}:{port}"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.seen.add((environ["REMOTE_ADDR"], environ["PATH_INFO"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"here"]


@pytest.fixture
def site() -> Iterator[Site]:
    with AstraNet(role=Role.ROUTER) as mesh:
        yield Site(mesh)


# With JSON statistics there is no table of failures.
SAY_FAILURES = """
from locust import events

@events.request.add_listener
def say(name, exception=None, **_):
    if exception is not None:
        print("failed:", name, repr(exception), flush=True)
"""


def run_locust(folder: Path, source: str, *options: str, status: int = 0, **environment: str) -> str:
    """Run a locustfile for some seconds; what it said.

    Locust counts them from before it has imported everything, which takes two on a busy machine.
    """
    (folder / "locustfile.py").write_text(source + SAY_FAILURES)
    command = [sys.executable, "-m", "locust", "--headless", "--users", "8", "--spawn-rate", "8", "--run-time", "5s", "--only-summary"]
    done = subprocess.run(
        [*command, *options],
        env={**script_environment(), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    # Locust ends with 1 when a request has failed.
    assert done.returncode == status, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def several_processes() -> tuple[str, ...]:
    """Options for two forked workers, whose master takes a port that nobody else has."""
    port = str(free_port())
    return "--processes", "2", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Of the JSON report: the CSV one is up to a second behind when a run ends."""
    return {row["name"]: row for row in json.loads((folder / "report.json").read_text())}


UNCHANGED = """
from locust import FastHttpUser, HttpUser, constant, task

class Plain(HttpUser):
    wait_time = constant(0.05)

    @task
    def look(self):
        self.client.get("/plain")

class Fast(FastHttpUser):
    wait_time = constant(0.05)

    @task
    def look(self):
        self.client.get("/fast")
"""


def test_an_unchanged_file_by_environment(site: Site, tmp_path: Path) -> None:
    """With users over requests and over geventhttpclient, in two forked processes: each is a node of its own."""
    environment = {"ASTRANET_PATCH": "1", "ASTRANET_JOIN": site.address}
    run_locust(tmp_path, UNCHANGED, "--host", "http://site", *several_processes(), *JSON, **environment)
    rows = read_rows(tmp_path)
    assert set(rows) == {"/plain", "/fast"}
    assert {path for _, path in site.seen} == {"/plain", "/fast"}
    assert len({node for node, _ in site.seen}) == 2


MESH_USERS = """
from locust import constant, task
from astranet_gevent.locust import MeshFastHttpUser, MeshHttpUser, MeshStreamUser

class Plain(MeshHttpUser):
    host = "site"
    wait_time = constant(0.05)

    @task
    def look(self):
        self.client.get("/plain")

class Fast(MeshFastHttpUser):
    host = "http://site:80"
    wait_time = constant(0.05)

    @task
    def look(self):
        self.client.get("/fast")

class Talker(MeshStreamUser):
    service = "echo"
    wait_time = constant(0.05)

    @task
    def talk(self):
        with self.client.open() as stream:
            assert stream.exchange(b"x" * 100, name="hundred") == b"x" * 100
            assert stream.exchange(b"") == b""
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_mesh_users(processes: str, site: Site, tmp_path: Path) -> None:
    options = several_processes() if processes == "2" else ()
    run_locust(tmp_path, MESH_USERS, "--mesh-join", site.address, *options, *JSON)
    rows = read_rows(tmp_path)
    assert set(rows) == {"/plain", "/fast", "echo: open", "hundred", "echo: exchange"}
    for row in rows.values():
        assert row["num_requests"] > 0
        assert row["num_failures"] == 0
    assert rows["hundred"]["total_content_length"] == 100 * rows["hundred"]["num_requests"]
    assert rows["hundred"]["method"] == "STREAM"
    assert len({node for node, _ in site.seen}) == int(processes)


@contextlib.contextmanager
def locust_process(folder: Path, *options: str) -> Iterator[Any]:
    """A process of locust that runs beside others; what it says goes into a file of the folder."""
    with open(folder / "said", "ab") as said:
        command = [sys.executable, "-m", "locust", "-f", str(folder / "locustfile.py"), *options]
        process = subprocess.Popen(command, env=script_environment(), cwd=folder, stdout=said, stderr=said)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("who", ["master", "workers"])
def test_a_master_and_workers(who: str, site: Site, tmp_path: Path) -> None:
    """The node to join is said to the master, which tells its workers, or to the workers alone."""
    (tmp_path / "locustfile.py").write_text(MESH_USERS)
    port = str(free_port())
    join = ("--mesh-join", site.address)
    worker = ("--worker", "--master-host", "127.0.0.1", "--master-port", port, *(join if who == "workers" else ()))
    # Locust counts --run-time of a master from when its workers are there.
    master = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2", "--headless")
    load = ("--users", "8", "--spawn-rate", "8", "--run-time", "3s", *JSON, *(join if who == "master" else ()))
    with (
        locust_process(tmp_path, *master, *load) as one,
        locust_process(tmp_path, *worker) as two,
        locust_process(tmp_path, *worker) as three,
        gevent.Timeout(50),
    ):
        statuses = [process.wait() for process in (one, two, three)]
    assert statuses == [0, 0, 0], (tmp_path / "said").read_text()
    rows = read_rows(tmp_path)
    assert set(rows) == {"/plain", "/fast", "echo: open", "hundred", "echo: exchange"}
    for row in rows.values():
        assert row["num_requests"] > 0
        assert row["num_failures"] == 0
    assert len({node for node, _ in site.seen}) == 2


def ask_page(port: int, path: str, **form: Any) -> str:
    """What locust's web page answers; with a form it is a POST. Asked in a thread: the mesh of this process is to go on."""
    data = urllib.parse.urlencode(form).encode() if form else None
    answer = gevent.get_hub().threadpool.apply(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, 5).read())
    return answer.decode()


def stop_users(port: int) -> str:
    """By POST, or by GET before locust 2.47, which is the first for which Python 3.10 is too old."""
    try:
        return ask_page(port, "/stop", now="yes")
    except urllib.error.HTTPError as error:
        if error.code != 405:
            raise
        return ask_page(port, "/stop")


def ask_until(condition: Callable[[Any], bool], port: int, path: str) -> Any:
    """Ask until the answer, which is JSON, is as it should be. Locust answers anew every other second."""
    answer: Any = None

    def holds() -> bool:
        nonlocal answer
        answer = json.loads(ask_page(port, path))
        return condition(answer)

    assert wait_until(holds, 20), answer
    return answer


def test_the_web_page(site: Site, tmp_path: Path) -> None:
    """Users that are started and stopped from the page."""
    (tmp_path / "locustfile.py").write_text(MESH_USERS)
    port = free_port()
    with locust_process(tmp_path, "--web-host", "127.0.0.1", "--web-port", str(port), "--mesh-join", site.address) as process:

        def is_there() -> bool:
            assert process.poll() is None, (tmp_path / "said").read_text()
            try:
                return "<title>Locust" in ask_page(port, "/")
            except OSError:
                return False

        assert wait_until(is_there, 20), (tmp_path / "said").read_text()
        assert json.loads(ask_page(port, "/swarm", user_count=6, spawn_rate=6))["success"] is True
        names = {"/plain", "/fast", "echo: open", "hundred", "echo: exchange", "Aggregated"}
        stats = ask_until(lambda stats: {row["name"] for row in stats["stats"]} == names, port, "/stats/requests")
        assert all(row["num_requests"] > 0 and row["num_failures"] == 0 for row in stats["stats"]), stats
        assert stats["user_count"] == 6
        assert stats["errors"] == []
        assert json.loads(stop_users(port))["success"] is True
        ask_until(lambda stats: stats["state"] == "stopped" and stats["user_count"] == 0, port, "/stats/requests")
        process.terminate()
        with gevent.Timeout(10):
            assert process.wait() == 0, (tmp_path / "said").read_text()
    assert {path for _, path in site.seen} == {"/plain", "/fast"}


def test_what_fails_is_counted(site: Site, tmp_path: Path) -> None:
    source = MESH_USERS.replace('service = "echo"', 'service = "nobody"\n    timeout = 0.2')
    said = run_locust(tmp_path, source, "--mesh-join", site.address, "Talker", status=1)
    assert re.search(r"^STREAM +nobody: open +[1-9]\d* +[1-9]\d*\(100\.00%\)", said, re.MULTILINE), said
    assert "nobody offered service 'nobody' within 0.2 s" in said
    # Counted, and not an error of the program.
    assert "Traceback" not in said


def test_a_node_that_cannot_be_made_ends_the_run(tmp_path: Path) -> None:
    said = run_locust(tmp_path, MESH_USERS, "--mesh-join", "nonsense", "Talker", status=2)
    assert "the mesh cannot be used" in said


def test_hosts_get_the_suffix() -> None:
    check_script("""
import locust
from astranet_gevent.locust import _mesh_url
for host, url in {
    "site": "http://site.mesh",
    "http://site": "http://site.mesh",
    "https://site:8443/base": "https://site.mesh:8443/base",
    "http://name:secret@site/": "http://name:secret@site.mesh/",
    "http://site.mesh": "http://site.mesh",
    "http://example.com:80/x?y": "http://example.com:80/x?y",
    "http://127.0.0.1:8080": "http://127.0.0.1:8080",
    "http://[::1]:8080": "http://[::1]:8080",
    "http://localhost:8080": "http://localhost:8080",
}.items():
    assert _mesh_url(host, ".mesh") == url, (host, _mesh_url(host, ".mesh"))
""")


def test_the_ready_made_scenario(tmp_path: Path) -> None:
    """Users against a service behind a router: no failures, and reports."""
    command = [
        sys.executable,
        str(LOAD / "locust_run.py"),
        "--users",
        "30",
        "--run-time",
        "5s",
        "--only-summary",
        "--output",
        str(tmp_path),
    ]
    with gevent.Timeout(55):
        done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path)
    assert {"/page", "/page (geventhttpclient)", "echo: open", "echo: 64 B"} <= set(rows)
    assert sum(row["num_failures"] for row in rows.values()) == 0
    assert "<html" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "report_stats.csv").read_text().startswith("Type,Name,Request Count")


QUIET = """
import astranet_gevent.locust
from locust import User, constant, task

class Quiet(User):
    wait_time = constant(0.1)

    @task
    def nothing(self):
        pass
"""

FAILING = """
from locust import constant, task
from astranet_gevent.locust import MeshHttpUser

class Failing(MeshHttpUser):
    host = "site"
    wait_time = constant(0.05)

    @task
    def page(self):
        self.client.get("/page")
        with self.client.get("/page", catch_response=True) as response:
            response.failure("as it is to be")
"""


@pytest.mark.parametrize(
    ("source", "options", "status", "message"),
    [
        (QUIET, (), 1, "locust_run: nothing was requested"),
        # Even when locust is told to end with 0 then.
        (FAILING, ("--exit-code-on-error", "0"), 1, r"locust_run: [\d,]+ of [\d,]+ requests failed"),
        (QUIET, ("--nonsense",), 2, "locust_run: locust has failed, with status 2"),
        # It ends as with a request that has failed, and writes no report.
        ("nonsense", (), 2, "locust_run: locust has failed, with status 1"),
    ],
)
def test_exit_statuses_of_the_ready_made_scenario(source: str, options: tuple[str, ...], status: int, message: str, tmp_path: Path) -> None:
    file = tmp_path / "users.py"
    file.write_text(source)
    # Of a former run.
    (tmp_path / "report.json").write_text('[{"num_requests": 1, "num_failures": 0}]')
    command = [sys.executable, str(LOAD / "locust_run.py"), "--users", "1", "--run-time", "6s", "--output", str(tmp_path), "-f", str(file)]
    done = subprocess.run([*command, *options], env=script_environment(), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert re.search(f"^{message}$", done.stderr, re.MULTILINE), done.stderr


@pytest.mark.parametrize("option", ["--users=0", "--spawn-rate=0", f"--output={__file__}", f"--output={__file__}/reports"])
def test_the_ready_made_scenario_refuses(option: str) -> None:
    command = [sys.executable, str(LOAD / "locust_run.py"), option]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert f"argument {option.partition('=')[0]}: " in done.stderr


def test_help_of_the_ready_made_scenario() -> None:
    command = [sys.executable, str(LOAD / "locust_run.py"), "--help"]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0
    assert "exit status is 0 when requests were made and none has failed" in done.stdout


@pytest.fixture
def scenario(tmp_path: Path) -> Iterator[tuple[Any, list[psutil.Process]]]:
    """The ready-made scenario in the middle of its work, and all of its processes: a router, a site, locust and two workers of it."""
    command = [sys.executable, str(LOAD / "locust_run.py"), "--users", "4", "--run-time", "300s", "--output", str(tmp_path)]
    with open(tmp_path / "said", "ab") as said:
        process = subprocess.Popen(
            [*command, *several_processes()],
            env=script_environment(),
            stdout=said,
            stderr=said,
            # Whoever runs the tests in the background has it ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    children: list[psutil.Process] = []
    try:
        assert wait_until(lambda: "All users spawned" in (tmp_path / "said").read_text(), 40), (tmp_path / "said").read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 5
        yield process, children
    finally:
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_the_ready_made_scenario(number: signal.Signals, scenario: Any, tmp_path: Path) -> None:
    """It is sent to the script alone, as by a program that has started it."""
    process, children = scenario
    process.send_signal(number)
    with gevent.Timeout(20):
        assert process.wait() == 128 + number, (tmp_path / "said").read_text()
    assert wait_until(lambda: not any(child.is_running() for child in children), 5.0), children
    # Locust itself may complain that it has closed a report too early.
    assert 'locust_run.py", line' not in (tmp_path / "said").read_text()


def test_killed_the_ready_made_scenario_leaves_no_servers(scenario: Any) -> None:
    """Locust itself ends with its --run-time."""
    process, children = scenario
    servers = [child for child in children if "locust_site.py" in " ".join(child.cmdline())]
    assert len(servers) == 2
    process.kill()
    assert wait_until(lambda: not any(child.is_running() for child in servers), 10.0), servers
