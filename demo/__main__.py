"""The demo's command line: `python -m demo` does it all, subcommands are its three processes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from .errors import DemoError
from .library import default_root


def main(arguments: list[str]) -> int:
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["all", *arguments]
    options = parser().parse_args(arguments)
    try:
        # Imported late: the help needs no dependencies, and the launcher no gevent loop.
        run: Callable[[argparse.Namespace], int] = import_module(options.module, __package__).run
        return run(options)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"demo: {error}; pip install 'astranet-gevent[demo]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m demo",
        description="A site of real files, a router and a client, three processes: site and client"
        " have one TCP connection, to the router. The client downloads every file.",
        epilog="Without a command: all. `python -m demo all --help` lists its options.",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    everything = add(commands, "all", ".launcher", "start the three, and check what they did")
    add_root(everything)
    add_download(everything)

    router = add(commands, "router", ".router", "the node in the middle; prints its address")
    router.add_argument(
        "--listen", type=address, default=("127.0.0.1", 0), metavar="HOST:PORT",
        help="default: 127.0.0.1 and any free port",
    )  # fmt: skip

    site = add(commands, "site", ".site", "offers a folder's files as an HTTP service of the mesh")
    add_root(site)

    client = add(commands, "client", ".client", "downloads every file and prints the table")
    add_download(client)
    client.add_argument("--report", metavar="FILE", help="write what was done as JSON")

    for command in (site, client):
        command.add_argument("--join", type=address, required=True, metavar="HOST:PORT", help="the router")
        command.add_argument(
            "--wait", type=positive(float), default=20.0, metavar="SECONDS",
            help="how long to wait for what should be there already (default: %(default)s)",
        )  # fmt: skip
    for command in (router, site, client):
        command.add_argument("--until-eof", action="store_true", help="end when standard input does")
    return top


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(module=module)
    return command


def add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--root", type=folder, default=default_root(), metavar="FOLDER",
        help="what to serve (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--limit", type=positive(int), metavar="N", help="serve the first N files only")


def add_download(command: argparse.ArgumentParser) -> None:
    for name, kind, default, text in (
        ("--workers", positive(int), 100, "downloads at the same time"),
        ("--keep-alive", positive(int), 1, "requests per stream"),
        # Linux distributions ship a library of a few hundred files; the others have thousands.
        ("--requests", positive(int), 2000, "download everything again until there were so many requests"),
        ("--deadline", positive(float), 300.0, "seconds until giving up"),
    ):
        command.add_argument(name, type=kind, default=default, metavar="N", help=f"{text} (default: {default})")


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A converter that takes numbers above zero only."""

    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    return convert


def address(text: str) -> tuple[str, int]:
    """`host:port` as a pair. Raises ValueError, which argparse turns into a usage message."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ValueError(text)
    return host.strip("[]"), int(port)


def folder(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
