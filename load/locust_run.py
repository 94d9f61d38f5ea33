#!/usr/bin/env python3
"""Five hundred users of locust against a service behind a router, everything on this machine: starts the three, writes locust's reports.

The exit status is 0 when requests were made and none has failed, 1 when one has failed, or a task of a user, or nothing was requested,
2 when the router, the site or locust cannot be started or locust fails, 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from endurance import FAILED, INTERRUPTED, ended_by_sigterm
from harness import folder_to_make, positive, say, whole

# As argparse has it: what was asked for cannot be done.
UNUSABLE = 2
FOLDER = Path(__file__).resolve().parent
STARTING = 30.0  # seconds until a process is ready
ENDING = 10.0  # seconds that a process may take to end: locust waits for its workers and writes the reports


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Options that are not listed are locust's own: --processes 2, --class-picker, ...",
    )
    parser.add_argument("--users", type=whole, default=500, metavar="N", help="500")
    parser.add_argument("--spawn-rate", type=positive, default=100, metavar="PER_SECOND", help="100")
    parser.add_argument("--run-time", default="60s", metavar="TIME", help="60s")
    parser.add_argument(
        "--output", type=folder_to_make, default=Path("locust-report"), metavar="DIR", help="for CSV, JSON and an HTML page (locust-report)"
    )
    return parser.parse_known_args(arguments)


@contextlib.contextmanager
def process(what: str, port: int) -> Iterator[str]:
    """A router or a site; what it says when it is ready. It ends when its standard input does, and so with this process."""
    command = [sys.executable, str(FOLDER / "locust_site.py"), what, str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            readable, _, _ = select.select([child.stdout], [], [], STARTING)
            line = child.stdout.readline().strip() if readable else ""
            if not line:
                raise TimeoutError(f"the {what} is not ready within {STARTING:g} s")
            yield line
        finally:
            child.terminate()
            try:
                child.wait(ENDING)
            except subprocess.TimeoutExpired:
                child.kill()


def call_locust(command: list[str]) -> int:
    """Its exit status. Ctrl-C ends it and its workers, within ``ENDING`` seconds."""
    # A session of its own: a Ctrl-C comes to locust once, from here, and what it has forked can be ended with it.
    child = subprocess.Popen(command, start_new_session=True)
    try:
        # Not within a deadline: how long it runs is for the options to say.
        return child.wait()
    except KeyboardInterrupt:
        try:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(ENDING)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        raise


def main(arguments: list[str] | None = None) -> int:
    options, further = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with ended_by_sigterm() as signals:
        try:
            return run(options, further)
        except KeyboardInterrupt:
            return 128 + signals[0] if signals else INTERRUPTED


def run(options: argparse.Namespace, further: list[str]) -> int:
    """The exit status."""
    report = options.output / "report"
    rows = report.with_suffix(".json")
    # That of a former run would be taken for this one's.
    rows.unlink(missing_ok=True)
    try:
        with process("router", 0) as router, process("site", int(router.split()[1])):
            host, port = router.split()
            command = [sys.executable, "-m", "locust", "-f", str(FOLDER / "locustfile.py"), "--mesh-join", f"{host}:{port}", "--headless"]
            command += ["--users", str(options.users), "--spawn-rate", str(options.spawn_rate), "--run-time", options.run_time]
            command += ["--csv", str(report), "--html", f"{report}.html", *further, "--json-file", str(report)]
            status = call_locust(command)
    except TimeoutError as error:
        say(f"locust_run: {error}")
        return UNUSABLE
    # With other statuses than 0 and 1 locust ends when its options are wrong, or when it has met an error of its own.
    if status not in (0, FAILED) or not rows.exists():
        say(f"locust_run: locust has failed, with status {status}")
        return UNUSABLE
    say(f"reports: {options.output}/")
    if reason := failure_of(json.loads(rows.read_text())):
        say(f"locust_run: {reason}")
        return FAILED
    return status


def failure_of(rows: list[dict[str, Any]]) -> str:
    """What is wrong with the requests of locust's report, or nothing."""
    made, failed = (sum(row[what] for row in rows) for what in ("num_requests", "num_failures"))
    if not made:
        return "nothing was requested"
    return f"{failed:,} of {made:,} requests failed" if failed else ""


if __name__ == "__main__":
    sys.exit(main())
