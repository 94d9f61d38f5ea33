"""Run one module of the interpreter's own tests on gevent's sockets, or with its loopback streams on a mesh; outcomes as JSON on stdout.

python run_module.py gevent|mesh test.test_socket OUTPUT [PATTERN]
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import faulthandler  # noqa: E402 - gevent's patches come first
import json  # noqa: E402
import sys  # noqa: E402
import unittest  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

# A test that takes longer hangs.
TEST_LIMIT = 10.0


class Outcomes(unittest.TextTestResult):
    """Notes what became of each test."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.outcomes: dict[str, str] = {}
        self._watchdog: Any = None

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcomes[test.id()] = "ok"
        self._watchdog = gevent.Timeout.start_new(TEST_LIMIT, AssertionError(f"not done within {TEST_LIMIT:g} s"))

    def stopTest(self, test: unittest.TestCase) -> None:
        self._watchdog.close()
        super().stopTest(test)

    def _note(self, test: Any, error: Any) -> None:
        name = test.id() if not hasattr(test, "test_case") else test.test_case.id()
        self.outcomes[name] = f"{error[0].__name__}: {error[1]}"[:300] if isinstance(error, tuple) else str(error)

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._note(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, err)

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, f"skipped: {reason}")


def main(carrier: str, module: str, output: str, pattern: str = "") -> int:
    faulthandler.dump_traceback_later(280, exit=True)
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [pattern]
    if carrier == "mesh":
        from loopback import LoopbackPatch

        from astranet_gevent import AstraNet

        mesh = AstraNet(loopback=True).start()
        LoopbackPatch(mesh)
    suite = loader.loadTestsFromName(module)
    runner = unittest.TextTestRunner(verbosity=1, resultclass=Outcomes)
    result = runner.run(suite)
    Path(output).write_text(json.dumps(result.outcomes))  # type: ignore[attr-defined]
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
