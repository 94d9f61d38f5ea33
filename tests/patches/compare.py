"""Run test modules of the interpreter and of gevent twice, on gevent's sockets and with every loopback stream on a mesh, and compare.

Each module runs in a process of its own; a test that hangs is interrupted, one that dies or cannot be interrupted costs its process, and
the tests behind it run in a new one. Status 0: of the tests that pass on gevent's sockets at least 98 of 100 pass on the mesh, and the
others are the known differences of suites.py. Status 1: not so, or a known difference is none any more. Status 2: nothing was compared.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from suites import DIFFERENCES, LEFT_OUT, MODULES, QUICK, Difference

CARRIERS = ("gevent", "mesh")
SHARE = 0.98  # of what passes on gevent's sockets
TEST_LIMIT = 30.0  # seconds for one test on a busy machine; the slowest takes 7
LOAD_LIMIT = 60.0  # seconds to import a module and gevent
GRACE = 5.0  # seconds from the interruption of a test to its end, and from the last test to the end of the process
MAX_PROCESSES = 20  # for one module: after so many deaths the rest counts as lost
RUNNER = Path(__file__).with_name("run_module.py")


class Outcome(NamedTuple):
    """What became of a test."""

    text: str  # "ok", "skipped: why", "failed: why"
    carried: int = 0  # streams that the mesh carried
    seconds: float = 0.0


@dataclass
class Run:
    """One module on one carrier, in as many processes as it takes."""

    carrier: str
    module: str
    match: tuple[str, ...]
    limit: float
    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    fixtures: dict[str, str] = field(default_factory=dict)
    planned: list[str] = field(default_factory=list)
    finished: bool = False
    seconds: float = 0.0
    trouble: str = ""
    _current: str = ""
    _deadline: float = 0.0
    _interrupted: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _stopped: bool = False

    @property
    def log(self) -> Path:
        """What the processes have written to their standard output and error."""
        return self.folder / f"{self.module}.{self.carrier}.log"

    def run(self) -> Run:
        """Run to the end, whatever happens to the processes."""
        began = time.monotonic()
        for _ in range(MAX_PROCESSES):
            before = len(self.outcomes)
            self._run_process()
            if self.finished or self._stopped or len(self.outcomes) == before:
                break
        self.seconds = time.monotonic() - began
        return self

    def stop(self) -> None:
        """End it early: there will be no more processes, and the last one is killed."""
        self._stopped = True
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _run_process(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            leave = Path(place, "leave")
            leave.write_text("\n".join((*LEFT_OUT, *self.outcomes)))
            work = Path(place, "work")
            work.mkdir()
            reading, writing = os.pipe()
            command = [sys.executable, str(RUNNER), self.carrier, self.module, f"--report={writing}", f"--leave={leave}"]
            command += [f"--match={pattern}" for pattern in self.match]
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work, pass_fds=[writing], start_new_session=True
                )
            os.close(writing)
            self._process = process
            try:
                self._watch(process, reading)
            finally:
                os.close(reading)
                self._end(process)

    def _watch(self, process: subprocess.Popen[bytes], reading: int) -> None:
        """Take in reports until the process has finished, died or been given up."""
        self._deadline, self._interrupted, rest = time.monotonic() + LOAD_LIMIT, False, b""
        while not self.finished:
            left = self._deadline - time.monotonic()
            # A child that a test has left behind may hold the other end of the pipe: the process itself is looked at each second.
            if select.select([reading], [], [], max(0.0, min(left, 1.0)))[0]:
                data = os.read(reading, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            elif process.poll() is not None or (left <= 0 and not self._interrupt(process)):
                return

    def _take(self, event: dict[str, Any]) -> None:
        kind, test = event["event"], event.get("test", "")
        self._deadline, self._interrupted = time.monotonic() + self.limit, False
        if kind == "begin":
            self.planned = self.planned or event["tests"]
        elif kind == "start":
            self._current = test
        elif kind == "fixture":
            self.fixtures[test] = event["outcome"]
        elif kind == "end":
            self._current = ""
            self.outcomes[test] = Outcome(event["outcome"], event["carried"], event["seconds"])
        else:
            self.finished = True

    def _interrupt(self, process: subprocess.Popen[bytes]) -> bool:
        """Interrupt a test that hangs; False when that has been tried."""
        if self._interrupted:
            return False
        self._interrupted = True
        self._deadline = time.monotonic() + GRACE
        process.send_signal(signal.SIGUSR2)
        return True

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the process, or kill it with its children; what it was at is lost."""
        try:
            process.wait(GRACE if self.finished else 0.1)
        except subprocess.TimeoutExpired:
            why = "hung, and could not be interrupted"
        else:
            why = f"the process ended with status {process.returncode}"
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if self._current:
            self.outcomes[self._current] = Outcome(f"failed: {why}")
            self._current = ""
        elif not self.finished:
            lines = self.log.read_text(errors="replace").strip().split("\n")
            self.trouble = f"{why}; its last line: {lines[-1][:300]}"

    def outcome(self, test: str) -> Outcome:
        """What became of a test, also of one that was never begun."""
        if test in self.outcomes:
            return self.outcomes[test]
        for fixture, outcome in self.fixtures.items():
            if test.startswith(fixture.partition("(")[2].rstrip(")") + "."):
                return Outcome(f"{outcome}, in {fixture.partition(' ')[0]}")
        return Outcome(f"failed: did not run: {self.trouble or 'unknown'}")


@dataclass
class Comparison:
    """A module on both carriers."""

    plain: Run
    mesh: Run

    @property
    def module(self) -> str:
        """The module's name."""
        return self.plain.module

    @property
    def passed(self) -> list[str]:
        """What passes on gevent's sockets."""
        return [test for test in self.plain.planned if self.plain.outcome(test).text == "ok"]

    @property
    def lost(self) -> dict[str, str]:
        """What of that does not pass on the mesh, and why."""
        outcomes = {test: self.mesh.outcome(test).text for test in self.passed}
        return {test: text for test, text in outcomes.items() if text != "ok"}

    @property
    def trouble(self) -> str:
        """Why there is nothing to compare, if so: a module that does not load must not look like one without differences."""
        if self.passed or (self.plain.finished and not self.plain.planned):
            return ""
        return self.plain.trouble or "no test passes on gevent's sockets"

    @property
    def carried(self) -> int:
        """How many of the tests that pass on both have used streams of the mesh."""
        return sum(self.mesh.outcome(test).carried > 0 for test in self.passed if test not in self.lost)

    @property
    def unexplained(self) -> dict[str, str]:
        """What is lost and no known difference."""
        return {test: text for test, text in self.lost.items() if difference(test) is None}

    @property
    def outdated(self) -> dict[str, str]:
        """Known differences that are none."""
        return {test: known.reason for test in self.passed if test not in self.lost and (known := difference(test)) is not None}

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        runs = {run.carrier: {test: run.outcome(test)._asdict() for test in run.planned} for run in (self.plain, self.mesh)}
        return {
            "module": self.module,
            "passed_on_gevent": len(self.passed),
            "passed_on_mesh": len(self.passed) - len(self.lost),
            "carried": self.carried,
            "lost": self.lost,
            "unexplained": self.unexplained,
            "outdated": self.outdated,
            "outcomes": runs,
        }


def difference(test: str) -> Difference | None:
    """The known difference that a test is in this version."""
    known, version = DIFFERENCES.get(test), sys.version_info[:2]
    if known is None or (known.since and version < known.since) or (known.before and version >= known.before):
        return None
    return known


def compare(plan: dict[str, tuple[str, ...]], jobs: int, limit: float, folder: Path) -> list[Comparison]:
    """Run everything, ``jobs`` processes at a time."""
    runs = {(module, carrier): Run(carrier, module, match, limit, folder) for module, match in plan.items() for carrier in CARRIERS}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run.run) for run in runs.values()]
        try:
            for done in concurrent.futures.as_completed(waiting):
                show_run(done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for run in runs.values():
                run.stop()
            raise
    return [Comparison(*(runs[module, carrier] for carrier in CARRIERS)) for module in plan]


def show_run(run: Run) -> None:
    texts = [run.outcome(test).text.partition(":")[0] for test in run.planned]
    counts = ", ".join(f"{texts.count(kind)} {kind}" for kind in ("ok", "skipped", "failed"))
    print(f"{run.module} on {run.carrier}: {counts}, {run.seconds:.1f} s{' - ' if run.trouble else ''}{run.trouble}", flush=True)


def show(comparisons: Iterable[Comparison]) -> int:
    """Print the table and what is to be said about it; the exit status."""
    comparisons = list(comparisons)
    rows = [row(item.module, len(item.passed), len(item.lost), item.carried, len(item.unexplained)) for item in comparisons]
    passed = sum(len(item.passed) for item in comparisons)
    lost = sum(len(item.lost) for item in comparisons)
    rows.append(row("all", passed, lost, sum(item.carried for item in comparisons), sum(len(item.unexplained) for item in comparisons)))
    print_table([("module", "pass on gevent", "pass on mesh", "used the mesh", "known", "new"), *rows])
    for item in comparisons:
        for test, text in item.lost.items():
            known = difference(test)
            print(f"\n{'new' if known is None else 'known'}: {test}\n    {text}" + (f"\n    {known.reason}" if known else ""))
        for test, reason in item.outdated.items():
            print(f"\nno difference any more: {test} (listed because: {reason})")
        if item.trouble:
            print(f"\nnothing to compare: {item.module}\n    {item.trouble}")
    if not passed:
        print("\nnothing was compared")
        return 2
    share = (passed - lost) / passed
    print(f"\n{share:.2%} of {passed} tests that pass on gevent's sockets pass on the mesh; at least {SHARE:.0%} is asked for")
    return int(share < SHARE or any(item.unexplained or item.outdated or item.trouble for item in comparisons))


def row(name: str, passed: int, lost: int, carried: int, new: int) -> tuple[str, ...]:
    return tuple(map(str, (name, passed, passed - lost, carried, lost - new, new)))


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for cells in rows:
        print("  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(cells, widths))))


def installed(modules: Iterable[str]) -> Iterator[str]:
    """Those of the modules that this interpreter has; says which it has not."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if found:
            yield module
        else:
            print(f"{module}: not installed with this interpreter")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="modules to compare, as test.test_socket (default: all of suites.py)")
    parser.add_argument("--quick", action="store_true", help="what is run with the tests of every change")
    parser.add_argument("--match", action="append", default=[], metavar="PATTERN", help="only tests with such names; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=TEST_LIMIT, metavar="SECONDS", help="for one test (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome to a file")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the tests print")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # As an interruption by the keyboard: what has been started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen: dict[str, tuple[str, ...]] = QUICK if options.quick else dict.fromkeys(options.modules or MODULES, tuple(options.match))
    plan = {module: chosen[module] for module in installed(chosen)}
    versions = {"python": platform.python_version(), "gevent": importlib.metadata.version("gevent")}
    print(f"Python {versions['python']}, gevent {versions['gevent']}")
    with tempfile.TemporaryDirectory() as place:
        folder = (options.logs or Path(place)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        comparisons = compare(plan, options.jobs, options.limit, folder)
    if options.json:
        options.json.write_text(json.dumps({**versions, "modules": [item.as_json() for item in comparisons]}, indent=1))
    return show(comparisons)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
