"""churn.py, soak.py and storm.py of load/: short runs, how they end, and that they find what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest
from conftest import wait_until
from gevent import subprocess
from gevent.socket import socketpair
from integration.tools import echo_one, script_environment

from astranet_gevent import AstraNet, Role
from astranet_gevent.server import StreamServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "load"))

import churn
import soak
import storm
from endurance import BOUNDS, Bound, Check, Facts, Sample, growth_checks
from parties import Times
from traffic import HEADER, Service

LOAD = Path(__file__).resolve().parent.parent / "load"

# Of one that runs for some seconds, on a machine that is busy with other tests.
DEADLINE = 50.0
SHORT = {
    "churn.py": ("--seconds", "1.5", "--interval", "0.1", "--at-once", "10"),
    # A few samples have no median to speak of: what a link holds of the last large piece may be in one and not in the next. Two seconds
    # do not warm Python up: it has some hundred blocks more after each of them, and none more a minute later.
    "soak.py": ("--seconds", "2", "--interval", "0.1", "--at-once", "20", "--bound", "heap=1e6,300", "--bound", "blocks=1000,1"),
    "storm.py": ("--storms", "2", "--clients", "12", "--processes", "2", "--down", "0.3", "--up", "0.1"),
}
# Until somebody ends it.
LONG = {
    "churn.py": ("--minutes", "5", "--interval", "0.1"),
    "soak.py": ("--minutes", "5", "--interval", "0.1"),
    "storm.py": ("--storms", "50", "--clients", "12", "--processes", "2", "--down", "0.3", "--up", "0.1"),
}


def run(script: Path | str, *arguments: str, status: int = 0, traceback: bool = False) -> tuple[str, str]:
    """What a script of load/ says on both outputs; a traceback only where a fault of the scripts themselves is played."""
    with gevent.Timeout(DEADLINE):
        command = [sys.executable, str(LOAD / script), *arguments]
        done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("Traceback" in done.stderr) is traceback, done.stderr
    return done.stdout, done.stderr


def run_json(
    tmp_path: Path, script: Path | str, *arguments: str, status: int = 0, traceback: bool = False
) -> tuple[str, str, dict[str, Any]]:
    """The same, and what it has written."""
    file = tmp_path / "values.json"
    out, err = run(script, *arguments, "--json", str(file), status=status, traceback=traceback)
    values = json.loads(file.read_text())
    assert values["status"] == status
    return out, err, values


# --- short runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "kinds"), [("churn.py", 1), ("soak.py", 16)])
def test_traffic_passes(script: str, kinds: int, tmp_path: Path) -> None:
    out, err, values = run_json(tmp_path, script, *SHORT[script])
    assert len(values["kinds"]) == kinds
    for name, kind in values["kinds"].items():
        assert kind["count"] > 0, name
        assert kind["failed"] == kind["wrong"] == 0, name
        assert f"\n{name} " in out
    checks = {check["name"]: check for check in values["checks"]}
    for process in ("router", "service", "client"):
        assert {f"growth of {what}, {process}" for what in BOUNDS} <= set(checks)
        assert {f"{what} at the end, {process}" for what in ("descriptors", "greenlets", "streams", "entries")} <= set(checks)
    assert f"passed: {len(checks)} checks" in out
    lines = [line for line in err.splitlines() if " ops " in line]
    assert len(lines) == len(values["samples"]) > 5
    for part in ("/s", "p50", "p99", "router", "service", "client", "MB", "fd", "gl", "st"):
        assert part in lines[-1]


def test_a_storm_passes(tmp_path: Path) -> None:
    out, err, values = run_json(tmp_path, "storm.py", *SHORT["storm.py"])
    assert len(values["storms"]) == 2
    for row in values["storms"]:
        # Noticed while the router was away, and back not before it was there again.
        assert 0 < row["lost"] < row["complete"]
        assert 0 < row["joined"] <= row["called"] <= row["complete"]
        assert row["links"] == 12
        assert row["cpu"] > 0
    assert "passed:" in out
    assert "storm 2: noticed" in err
    assert {f"growth of {what}, nodes {number}" for what in BOUNDS for number in (1, 2)} <= {check["name"] for check in values["checks"]}


# --- a mesh that there is already -------------------------------------------------------------


@pytest.fixture
def router() -> Iterator[AstraNet]:
    """A router that offers an echo itself."""
    with AstraNet(role=Role.ROUTER) as mesh:
        StreamServer(mesh.bind("echo"), lambda stream, _: echo_one(stream)).start()
        yield mesh


@pytest.fixture
def address_with_echo(router: AstraNet) -> str:
    host, port = router.listen(("127.0.0.1", 0)).address
    return f"{host}:{port}"


def test_churn_in_a_mesh_that_there_is(address_with_echo: str, tmp_path: Path) -> None:
    given = ("--address", address_with_echo, "--service", "echo")
    out, _, values = run_json(tmp_path, "churn.py", *SHORT["churn.py"], *given)
    assert values["kinds"]["churn"]["count"] > 0
    assert set(values["samples"][0]["facts"]) == {"client"}
    # Nobody can ask that service.
    assert [check["name"] for check in values["checks"] if check["holds"] is None] == ["errors that the service met"]
    assert re.search("^errors that the service met +- +<= 0 +not checked$", out, re.MULTILINE)
    assert f"passed: {len(values['checks']) - 1} checks" in out
    out, _ = run("churn.py", "--address", address_with_echo, "--service", "nobody", status=1)
    assert "FAILED: client" in out
    assert "nobody offered service 'nobody'" in out


def test_soak_in_a_mesh_that_there_is(router: AstraNet, address_with_echo: str, tmp_path: Path) -> None:
    given = ("--address", address_with_echo, "--service", "there")
    with open(tmp_path / "said", "ab") as said:
        command = [sys.executable, str(LOAD / "parties.py"), *given]
        with subprocess.Popen(command, env=script_environment(), stdout=said, stderr=said) as service:
            try:
                # The last of its three names. The script waits for some seconds only, in which a busy machine may not start the service.
                router.service_map.wait_for("there-http", DEADLINE)
                _, _, values = run_json(tmp_path, "soak.py", *SHORT["soak.py"], *given)
            finally:
                service.terminate()
    assert all(kind["count"] > 0 for kind in values["kinds"].values())


# --- the end ----------------------------------------------------------------------------------


class Running:
    """A script of load/ that is in the middle of its work, and its processes."""

    def __init__(self, script: str, *options: str, until: bytes = b" | ") -> None:
        command = [sys.executable, str(LOAD / script), *LONG[script], *options]
        self.process = subprocess.Popen(
            command,
            env=script_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Whoever runs the tests in the background has it ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        line = b""
        with gevent.Timeout(DEADLINE):
            while until not in line:
                line = self.process.stderr.readline()
                assert line, "the script has ended"
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        # Of a storm the router may be away.
        assert len(self.children) == 3 or (script == "storm.py" and len(self.children) == 2)

    def end(self) -> tuple[int, str]:
        """Wait for the end of all processes, within some seconds; the exit status and what was said on standard output."""
        with gevent.Timeout(30):
            out = self.process.communicate()[0].decode()
        assert wait_until(lambda: not any(child.is_running() for child in self.children), 5.0), self.children
        return self.process.returncode, out


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(script: str, *options: str, **until: bytes) -> Running:
        started.append(Running(script, *options, **until))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize(("script", "number"), [*((script, signal.SIGINT) for script in LONG), ("churn.py", signal.SIGTERM)])
def test_a_signal_ends_it_with_a_summary(script: str, number: signal.Signals, running: Callable[..., Running]) -> None:
    one = running(script)
    one.process.send_signal(number)
    status, out = one.end()
    assert status == 128 + number, out
    assert "interrupted: this is what was done until then" in out
    assert "failed operations" in out or "nodes that did not come back, storm 1" in out


def test_nothing_is_checked_before_the_first_sample(running: Callable[..., Running]) -> None:
    one = running("churn.py", "--interval", "60", until=b"operations at once")
    one.process.send_signal(signal.SIGINT)
    status, out = one.end()
    assert status == 128 + signal.SIGINT, out
    for check in ("failed operations", "wrong answers", "errors that the service met", "operations of the rarest kind"):
        assert re.search(f"^{check} +- +[<>]= [01] +not checked$", out, re.MULTILINE), out
    assert " ok" not in out


def test_killed_it_leaves_no_process(running: Callable[..., Running]) -> None:
    one = running("churn.py")
    one.process.kill()
    status, _ = one.end()
    assert status == -signal.SIGKILL


def test_a_process_that_dies_fails_the_run(running: Callable[..., Running]) -> None:
    one = running("churn.py")
    service = next(child for child in one.children if child.cmdline()[-1] == "service")
    os.kill(service.pid, signal.SIGKILL)
    status, out = one.end()
    assert status == 1
    assert "FAILED: service: " in out


OBEDIENT = f"""
import sys
sys.path.insert(0, {str(LOAD)!r})
import harness

def spin():
    while True:
        pass

harness.UNYIELDING = 0.8
harness.obey({{"answer": lambda: 42, "spin": spin}}, None)
"""


def test_a_process_may_be_idle_but_not_spin() -> None:
    """Its last resort is for what never yields, and not for what is asked nothing for long."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OBEDIENT], stdin=pipe, stdout=pipe, stderr=pipe) as process, gevent.Timeout(DEADLINE):

        def ask(do: str) -> None:
            process.stdin.write(json.dumps({"do": do, "limit": 0.1}).encode() + b"\n")
            process.stdin.flush()

        ask("answer")
        assert json.loads(process.stdout.readline()) == {"value": 42}
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.0)
        ask("answer")
        assert json.loads(process.stdout.readline()) == {"value": 42}
        ask("spin")
        assert process.wait() == 1
        assert b"in spin" in process.stderr.read()


@pytest.mark.parametrize("main", [churn.main, soak.main])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seconds 0", "not above 0"),
        ("--seconds 5 --minutes 1", "not allowed with"),
        ("--at-once x", "invalid"),
        ("--address nowhere", "not HOST:PORT"),
        ("--service mine", "--service needs --address"),
        ("--bound cpu=1", "not one of memory, heap"),
        ("--bound heap=1,2,3", "not WHAT=SLACK"),
        ("--bound heap=inf", "have to be finite"),
        ("--bound heap=1,nan", "have to be finite"),
        ("--json /nowhere/file", "cannot be written"),
        ("more", "unrecognized"),
    ],
)
def test_wrong_arguments(main: Callable[[list[str]], int], arguments: str, message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--storms 0", "not above 0"), ("--clients 3 --processes 4", "3 clients cannot fill 4"), ("--down -1", "not above 0")],
)
def test_wrong_arguments_of_storm(arguments: str, message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        storm.main(arguments.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help() -> None:
    for script in LONG:
        out, _ = run(script, "--help")
        assert "--json FILE" in out


# --- finding what is wrong --------------------------------------------------------------------

# The script with processes that have been tampered with.
TAMPERED = """
import os, sys
sys.path.insert(0, {load!r})
import gevent, gevent.event, endurance, {script}, {parties} as parties, traffic
from traffic import Service, Way
{tampering}
if "--child" in sys.argv:
    tamper()
    parties.main()
else:
    # What leaks does not come back, however long one waits.
    endurance.GOING_BACK = 0.5
    sys.exit({script}.main(sys.argv[1:], script=__file__))
"""


def tampered(tmp_path: Path, script: str, tampering: str, *options: str, traceback: bool = False) -> tuple[str, dict[str, Any]]:
    """A short run that has to fail."""
    file = tmp_path / "tampered.py"
    parties = "crowd" if script == "storm" else "parties"
    file.write_text(TAMPERED.format(load=str(LOAD), script=script, parties=parties, tampering=tampering))
    out, _, values = run_json(tmp_path, file, *SHORT[f"{script}.py"], *options, status=1, traceback=traceback)
    return out, values


LEAKS = """
def tamper():
    kept, echo, dial, turn = [], Service.echo, Way.dial_plain, [0]

    def leak(self, stream, address=None):
        turn[0] += 1
        kept.append(bytes(10000))
        kept.extend(str(number) for number in range(1000, 1010))
        if turn[0] % 10 == 0:
            kept.append(os.dup(0))
            kept.append(gevent.spawn(gevent.event.Event().wait))
        echo(self, stream, address)

    def dial_and_keep(self):
        turn[0] += 1
        if turn[0] % 10 == 0:
            kept.append(dial(self))
        return dial(self)

    Service.echo, Way.dial_plain = leak, dial_and_keep
"""


def test_leaks_are_found(tmp_path: Path) -> None:
    out, values = tampered(tmp_path, "churn", LEAKS)
    failed = {check["name"] for check in values["checks"] if not check["holds"]}
    assert {f"growth of {what}, service" for what in ("heap", "blocks", "descriptors", "greenlets", "streams")} <= failed
    assert {f"{what} at the end, service" for what in ("descriptors", "greenlets")} <= failed
    assert {"growth of streams, client", "streams at the end, client"} <= failed
    # The router has nothing to do with it.
    assert not any("router" in name for name in failed)
    assert "FAILED: growth of heap, service is " in out


ONE_DESCRIPTOR = """
def tamper():
    echo, turn = Service.echo, [0]

    def leak(self, stream, address=None):
        turn[0] += 1
        if turn[0] == 40:
            os.dup(0)
        echo(self, stream, address)

    Service.echo = leak
"""


def test_one_descriptor_is_found(tmp_path: Path) -> None:
    out, values = tampered(tmp_path, "churn", ONE_DESCRIPTOR)
    assert "FAILED: descriptors at the end, service is " in out
    assert sum(not check["holds"] for check in values["checks"]) <= 2


# Not before the warm-up is over, in which every kind comes twice: that ends a run by itself.
WRONG_BYTES = """
def tamper():
    right, serve, streams, turn = traffic.pattern, Service.serve, [0], [0]

    def count(self, stream, address=None):
        streams[0] += 1
        serve(self, stream, address)

    def pattern(position, size):
        turn[0] += streams[0] > 150
        data = right(position, size)
        return bytes([data[0] ^ 1]) + data[1:] if turn[0] % 10 == 1 else data

    if "service" in sys.argv:
        traffic.pattern, Service.serve = pattern, count
"""


def test_a_wrong_byte_is_found(tmp_path: Path) -> None:
    out, values = tampered(tmp_path, "soak", WRONG_BYTES)
    checks = {check["name"]: check["value"] for check in values["checks"]}
    assert checks["failed operations"] >= checks["wrong answers"] > 0
    # Those that the service has compared with wrong ones.
    assert checks["errors that the service met"] > 0
    assert "WrongAnswerError: byte " in out


# After the warm-up, in which it comes once on each way.
BAD_HTTP = """
def tamper():
    from http.client import BadStatusLine
    answer, turn = traffic.HTTPConnection.getresponse, [0]

    def spoil(self):
        turn[0] += 1
        if turn[0] == 3:
            raise BadStatusLine("nonsense")
        return answer(self)

    traffic.HTTPConnection.getresponse = spoil
"""


def test_an_answer_that_is_not_http_is_counted(tmp_path: Path) -> None:
    out, values = tampered(tmp_path, "soak", BAD_HTTP)
    assert [check["name"] for check in values["checks"] if not check["holds"]] == ["failed operations"]
    assert re.search(r"^1 times: http, (direct|relayed): BadStatusLine: nonsense$", out, re.MULTILINE)


FAULT_OF_A_WORKER = """
def tamper():
    dial, turn = Way.dial_plain, [0]

    def fail(self):
        turn[0] += 1
        if turn[0] == 40:
            # By then the others are waited for.
            gevent.sleep(1)
            raise ZeroDivisionError("a fault of the scripts")
        return dial(self)

    Way.dial_plain = fail
"""


def test_a_fault_of_the_scripts_ends_the_run(tmp_path: Path) -> None:
    out, _ = tampered(tmp_path, "churn", FAULT_OF_A_WORKER, traceback=True)
    assert "FAILED: client: rest: ZeroDivisionError: a fault of the scripts" in out


def test_a_header_that_the_service_does_not_know_is_counted() -> None:
    service = Service()
    near, far = socketpair()
    with near, far:
        near.sendall(HEADER.pack(99, 0, 0))
        service.serve(far)
    assert dict(service.errors) == {"service, kind 99: WrongAnswerError: a header wants 99, which is not known": 1}


LEAKING_REJOINS = """
def tamper():
    from astranet_gevent.joining import Peering
    kept, stay = [], Peering._stay

    def keep(self, link):
        kept.append(link)
        kept.append([object() for _ in range(500)])
        stay(self, link)

    Peering._stay = keep
"""


def test_what_a_storm_leaves_is_found(tmp_path: Path) -> None:
    out, _ = tampered(tmp_path, "storm", LEAKING_REJOINS)
    assert "FAILED: growth of blocks, nodes 1 is " in out


FAILS_AT_FIRST = """
def tamper():
    exchange, failed = parties.exchange, []

    def fail_once(mesh, size):
        if not failed:
            failed.append(size)
            raise ConnectionError("fails at first")
        exchange(mesh, size)

    parties.exchange = fail_once
"""


def test_an_exchange_that_fails_before_the_storms_is_found(tmp_path: Path) -> None:
    out, values = tampered(tmp_path, "storm", FAILS_AT_FIRST, "--storms", "1")
    # One of each process.
    assert [check["name"] for check in values["checks"] if not check["holds"]] == ["exchanges that failed, before the storms"]
    assert "FAILED: exchanges that failed, before the storms is 2, not at most 0" in out
    assert "2 times: exchange of 1 bytes: ConnectionError: fails at first" in out


NOTICES_NOTHING = """
def tamper():
    go_through, stuck = parties.Member._go_through, []

    def notice_nothing(self, offered, limit):
        if stuck:
            return go_through(self, offered, limit)
        stuck.append(self)
        gevent.event.Event().wait()

    parties.Member._go_through = notice_nothing
"""

STAYS_AWAY = NOTICES_NOTHING.replace("stuck.append(self)", "stuck.append(self); self.seen['lost'] = 1.0; self.noticed.set()")


def test_a_node_that_notices_nothing_is_found(tmp_path: Path) -> None:
    _, values = tampered(tmp_path, "storm", NOTICES_NOTHING, "--storms", "1", "--limit", "4")
    checks = {check["name"]: check["value"] for check in values["checks"]}
    assert checks["nodes that did not notice, storm 1"] == 2
    # They are waited for until the others have not much time left.
    assert checks["nodes that did not come back, storm 1"] >= 2


def test_a_node_that_does_not_come_back_is_found(tmp_path: Path) -> None:
    out, values = tampered(tmp_path, "storm", STAYS_AWAY, "--storms", "1", "--limit", "4")
    assert [check["name"] for check in values["checks"] if not check["holds"]] == ["nodes that did not come back, storm 1"]
    assert "FAILED: nodes that did not come back, storm 1 is 2, not at most 0" in out
    # The limit counts from when the router is to be there again.
    assert "2 times: joined: TimeoutError: not within 4.3 s" in out


def test_percentiles_are_those_of_the_steps() -> None:
    times = Times()
    assert times.percentile(0.5) == 0.0
    for seconds in [0.001] * 90 + [0.1] * 9 + [1e9]:
        times.add(seconds)
    # A step is 5 %, and what is added counts as the end of its step.
    assert 0.001 <= times.percentile(0.0) == times.percentile(0.5) == times.percentile(0.9) < 0.00105
    assert 0.1 <= times.percentile(0.91) == times.percentile(0.99) < 0.105
    assert 100 < times.percentile(1.0) < 200


# --- judging growth ---------------------------------------------------------------------------


def samples_of(value: Callable[[int], float], count: int = 36) -> list[Sample]:
    """Of one process, with one fact that is a function of the number of the sample; 10,000 operations between two of them."""
    flat: Facts = dict.fromkeys(BOUNDS, 0.0)
    return [Sample(float(number), 10_000 * number, {"one": {**flat, "heap": value(number)}}) for number in range(count)]


def judge(value: Callable[[int], float], bound: Bound, count: int = 36) -> Check:
    (check,) = growth_checks(samples_of(value, count), {"heap": bound})
    return check


def test_a_kilobyte_for_a_thousand_operations_is_found() -> None:
    bound = BOUNDS["heap"]
    # Between the thirds lie 18 samples, which is 180,000 operations.
    check = judge(lambda number: 1000.0 * 10 * number, bound)
    assert check.value == 180_000
    assert check.limit == bound.slack + 180 * bound.rate
    assert not check.holds
    assert judge(lambda number: 200.0 * 10 * number, bound).holds


def test_one_more_of_what_must_not_grow_is_found() -> None:
    assert not judge(lambda number: 9.0 + (number > 20), Bound(0)).holds
    assert judge(lambda number: 9.0, Bound(0)).holds
    # Less is no growth, what comes and goes is none, what comes in the warm-up is none.
    assert judge(lambda number: 9.0 - (number > 20), Bound(0)).holds
    assert judge(lambda number: 9.0 + (number % 4 == 0), Bound(0)).holds
    assert judge(lambda number: 9.0 + (number > 8), Bound(0)).holds


def test_few_samples_are_not_judged() -> None:
    assert list(growth_checks(samples_of(float, 6), BOUNDS)) == []
    assert len(list(growth_checks(samples_of(float, 7), BOUNDS))) == len(BOUNDS)
