"""``python -m astranet_gevent.patches [options] script.py args…``, or ``-m module args…``: run a program on the mesh, unchanged."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import Any, NoReturn

from astranet_gevent import ConfigError, __version__

from .names import parse_seconds

EPILOG = """\
Options that are not given are taken from the environment: ASTRANET_JOIN, ASTRANET_LISTEN, ASTRANET_ENV, ASTRANET_SUFFIX, ASTRANET_NAMES,
ASTRANET_BARE, ASTRANET_NAME_WAIT, ASTRANET_BINDINGS. Lists have commas. A program that calls gevent's patch_all() itself needs no runner:
ASTRANET_PATCH=1 in its environment does the same.

examples:
  python -m astranet_gevent.patches --join router:10000 client.py
  python -m astranet_gevent.patches --join router:10000 --binding 0.0.0.0:8000=users-api -m gunicorn -k gevent app:app
"""


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m astranet_gevent.patches",
        usage="%(prog)s [options] (script | -m module) [arguments of the program ...]",
        description="Run a program with gevent's patches, its sockets reaching and offering services of the mesh by name.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--join", metavar="ADDRESS", action="append", help="join the node at HOST:PORT or unix:/path; may be repeated")
    add("--listen", metavar="ADDRESS", action="append", help="let others join at HOST:PORT or unix:/path; may be repeated")
    add("--env", metavar="A.B", help="see and offer services of this environment only")
    add("--role", choices=("both", "client", "server", "router"), help="what the node does with services (both)")
    add("--suffix", metavar=".MESH", help="host names that end so are the mesh's and nobody else's (.mesh); \"\" for none")
    add("--name", metavar="NAME", action="append", help="a further host name that is the mesh's; may be repeated")
    add("--no-bare", action="store_true", help="leave names without a dot alone, even if the mesh knows a service of that name")
    add("--name-wait", metavar="SECONDS", type=_seconds, help="how long to wait for a name that nobody offers yet (5)")
    add("--binding", metavar="HOST:PORT=SERVICE", action="append", help="offer SERVICE when the program binds HOST:PORT; may be repeated")
    add("--wait", metavar="SECONDS", type=_seconds, help="join first, and do not start the program when that takes longer")
    add("--verbose", action="store_true", help="log what the node does to stderr")
    add("--version", action="version", version=f"astranet_gevent {__version__}")
    add("-m", dest="module", metavar="MODULE", nargs=argparse.REMAINDER, help="run a module as python -m does")
    add("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Patch, start the node, run the program. Ends with status 2 for bad options, 1 when the node cannot start or join."""
    parser = build_parser()
    options = parser.parse_args(argv)
    command = options.module or options.program
    if not command:
        parser.error("name a script, or -m and a module")
    if options.module is None and not os.path.exists(command[0]):
        parser.error(f"there is no script {command[0]!r}")
    from gevent import monkey

    # The plug-in of the environment would start a node without these options.
    monkey.patch_all(astranet=False)
    _apply(parser, options)
    sys.argv[:] = command
    if options.module is not None:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    else:
        if os.path.isfile(command[0]):
            # As `python script.py` has it; folders and archives put themselves there.
            sys.path[0] = os.path.dirname(os.path.abspath(command[0]))
        runpy.run_path(command[0], run_name="__main__")


def _apply(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from astranet_gevent.errors import AstraNetError

    from .environment import apply_from_environ
    from .names import parse_binding

    if options.verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        config = _given(join=options.join, listen=options.listen, env=options.env and tuple(options.env.split(".")), role=options.role)
        rules = _given(suffix=options.suffix, names=options.name, name_wait=options.name_wait, bare=False if options.no_bare else None)
        if options.binding:
            rules["bindings"] = dict(parse_binding(text) for text in options.binding)
        patch = apply_from_environ(config=config, rules=rules)
    except ConfigError as error:
        parser.error(str(error))
    except OSError as error:
        _fail(f"cannot listen: {error}")
    if options.wait is not None:
        import gevent

        try:
            with gevent.Timeout(options.wait, TimeoutError(f"not joined within {options.wait:g} s")):
                for peering in patch.mesh.peerings():
                    peering.wait_ready()
        except (AstraNetError, OSError) as error:
            _fail(f"{error}: " + "; ".join(repr(peering) for peering in patch.mesh.peerings() if not peering.ready))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _fail(message: str) -> NoReturn:
    print(f"python -m astranet_gevent.patches: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
