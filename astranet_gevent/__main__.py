"""``python -m astranet_gevent``: says what is installed."""

from __future__ import annotations

import argparse
import platform

import gevent
import greenlet

from . import __version__
from .builds import describe_build


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m astranet_gevent",
        description="Byte streams by service name, any number of them over one TCP connection, for gevent.",
        epilog="ASTRANET_GEVENT_PURE=1 has the pure Python used although the compiled variant is installed.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=describe(), help="say which versions and which build are in use")
    parser.parse_args()
    parser.print_help()


def describe() -> str:
    """Everything that a report of a fault should name."""
    return (
        f"astranet_gevent {__version__} ({describe_build()})\n"
        f"gevent {gevent.__version__}, greenlet {greenlet.__version__}, "
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    )


if __name__ == "__main__":
    main()
