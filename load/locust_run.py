#!/usr/bin/env python3
"""Five hundred users of locust against a service behind a router, everything on this machine: starts the three, writes locust's reports.

Ends with 0 when no request has failed, 1 when some have, 2 when something could not be started.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STARTING = 30.0  # seconds until a process is ready


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Options that are not listed are locust's own: --processes 2, --class-picker, ...",
    )
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--spawn-rate", type=float, default=100, metavar="PER_SECOND")
    parser.add_argument("--run-time", default="60s")
    parser.add_argument(
        "--output", type=Path, default=Path("locust-report"), metavar="DIR", help="for CSV, JSON and an HTML page (locust-report)"
    )
    return parser.parse_known_args(arguments)


@contextlib.contextmanager
def process(what: str, port: int) -> Iterator[str]:
    """A router or a site; what it says when it is ready."""
    command = [sys.executable, str(FOLDER / "locust_site.py"), what, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            readable, _, _ = select.select([child.stdout], [], [], STARTING)
            line = child.stdout.readline().strip() if readable else ""
            if not line:
                raise TimeoutError(f"the {what} is not ready within {STARTING:g} s")
            yield line
        finally:
            child.terminate()


def main(arguments: list[str] | None = None) -> int:
    options, further = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    report = options.output / "report"
    try:
        with process("router", 0) as router, process("site", int(router.split()[1])):
            host, port = router.split()
            command = [sys.executable, "-m", "locust", "-f", str(FOLDER / "locustfile.py"), "--mesh-join", f"{host}:{port}", "--headless"]
            command += ["--users", str(options.users), "--spawn-rate", str(options.spawn_rate), "--run-time", options.run_time]
            command += ["--csv", str(report), "--html", f"{report}.html", "--json-file", str(report), *further]
            status = subprocess.call(command)
    except TimeoutError as error:
        print(f"locust_run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"reports: {options.output}/", file=sys.stderr)
    return 0 if status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
