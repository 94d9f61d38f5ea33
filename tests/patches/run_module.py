"""Run one test module on gevent's sockets, or with its loopback streams on a mesh, and report each test as it begins and ends.

Reports are lines of JSON, written at once, so that a module that dies loses nothing but the test that it died in. SIGUSR2 interrupts what
runs: the one who started this process sends it when a test takes too long.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402 - gevent's patches come first
import contextlib  # noqa: E402
import fnmatch  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import unittest  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

# What tests may use beyond loopback. Not the network: nothing here asks for more than this machine.
RESOURCES = ("cpu", "walltime")

# These say network, and mean loopback.
CALL_LOOPBACK_NETWORK = ("test.test_socketserver",)


class TestHungError(BaseException):
    """Raised in a test that takes too long; not an Exception, which tests catch."""


class Reporter:
    """Writes what happens to a descriptor, a line for each event."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._process = os.getpid()

    def write(self, **event: Any) -> None:
        """One line. Children that a test forks report nothing: the test is the parent's."""
        if os.getpid() == self._process:
            os.write(self._descriptor, json.dumps(event).encode() + b"\n")


class Result(unittest.TextTestResult):
    """Reports the outcome of each test: "ok", "skipped: why", "failed: why"."""

    reporter: Reporter
    # How many streams the mesh has carried so far.
    carried: Any = staticmethod(lambda: 0)

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._outcome = "ok"
        self._before = 0
        self._began = 0.0

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome = "ok"
        self._before = self.carried()
        self._began = time.monotonic()
        self.reporter.write(event="start", test=test.id())

    def stopTest(self, test: unittest.TestCase) -> None:
        # Releases of 3.12 do not start a test that is skipped by its class, and stop it all the same.
        began, self._began = self._began or time.monotonic(), 0.0
        seconds = round(time.monotonic() - began, 3)
        self.reporter.write(event="end", test=test.id(), outcome=self._outcome, carried=self.carried() - self._before, seconds=seconds)
        self._outcome = "ok"
        self._before = self.carried()
        super().stopTest(test)

    def _note(self, test: Any, outcome: str) -> None:
        if isinstance(test, unittest.TestCase) or hasattr(test, "test_case"):
            # The first reason is the one that counts: others follow from it.
            if self._outcome == "ok":
                self._outcome = outcome
        else:
            # A fixture of a class or module: its tests do not begin.
            self.reporter.write(event="fixture", test=test.id(), outcome=outcome)

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._note(test, describe(err))

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, describe(err))

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, describe(err))

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, f"skipped: {reason}")

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._note(test, "skipped: expected to fail")

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self._note(test, "failed: expected to fail")


def describe(error: Any) -> str:
    """What an exception says, with the line of the test's that it came through."""
    kind, value, traceback = error
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "test" in Path(code.co_filename).name:
            place = f" ({Path(code.co_filename).name}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    text = " ".join(str(value).split())
    return f"failed: {kind.__name__}: {text[:300]}{place}"


def chosen(suite: Any, match: list[str], leave: set[str]) -> Iterator[unittest.TestCase]:
    """The tests of a suite whose names match one of the patterns, if there are any, in the suite's order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from chosen(test, match, leave)
        elif test.id() not in leave and (not match or any(fnmatch.fnmatchcase(test.id(), pattern) for pattern in match)):
            yield test


def interrupt(number: int, frame: Any) -> None:
    raise TestHungError("not done in time")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("carrier", choices=("gevent", "mesh"), help="what carries streams over loopback")
    parser.add_argument("module", help="as test.test_socket")
    parser.add_argument("--report", type=int, default=1, metavar="FD", help="descriptor to write the reports to (default: 1)")
    parser.add_argument("--match", action="append", default=[], metavar="PATTERN", help="run only tests with such names; may be repeated")
    parser.add_argument("--leave", default="", metavar="FILE", help="file with names of tests not to run, one on a line")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    os.set_inheritable(options.report, False)
    Result.reporter = reporter = Reporter(options.report)
    signal.signal(signal.SIGUSR2, interrupt)
    with_resources(options.module)
    ignore_native_threads()
    if options.module.startswith("gevent."):
        give_time()
    if options.carrier == "mesh":
        from loopback import LoopbackPatch

        from astranet_gevent import AstraNet

        patch = LoopbackPatch(AstraNet(loopback=True).start())
        Result.carried = staticmethod(lambda: patch.dialled)
    leave = set(Path(options.leave).read_text().split("\n")) if options.leave else set()
    try:
        found = unittest.defaultTestLoader.loadTestsFromName(options.module)
    except unittest.SkipTest as why:
        print(f"{options.module} skips itself: {why}")
        found = unittest.TestSuite()
    suite = unittest.TestSuite(chosen(found, options.match, leave))
    reporter.write(event="begin", tests=[test.id() for test in suite])
    unittest.TextTestRunner(verbosity=2, resultclass=Result).run(suite)
    reporter.write(event="finish")
    return 0


def with_resources(module: str) -> None:
    """Tests that need more than RESOURCES are skipped."""
    resources = (*RESOURCES, "network") if module in CALL_LOOPBACK_NETWORK else RESOURCES
    os.environ["GEVENTTEST_USE_RESOURCES"] = ",".join(("none", *resources))
    support: Any = importlib.import_module("test.support")
    support.use_resources = list(resources)


def ignore_native_threads() -> None:
    """The tests' threads are greenlets here: who counts the system's sees those in which gevent resolves names, which end when idle."""
    helper: Any = importlib.import_module("test.support.threading_helper")
    helper.wait_threads_exit = lambda timeout=None: contextlib.nullcontext()
    helper.threading_cleanup = lambda *counts: None


def give_time() -> None:
    """gevent's tests allow themselves 2 s, or 15 s on machines that are known to be slow: this one may be busy."""
    testing: Any = importlib.import_module("gevent.testing")
    testing.TestCase.__timeout__ = importlib.import_module("gevent.testing.params").CI_TIMEOUT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
