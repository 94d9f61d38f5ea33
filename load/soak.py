#!/usr/bin/env python3
"""Mixed traffic for some minutes: every byte is checked, and memory, descriptors, greenlets and streams must not grow.

Pings on streams that stay, short streams, small messages, bulk either way and both ways, half-closes by either side, streams and dials that
are given up, resets by either side, deadlines, refusals, HTTP; directly and through a router. Starts a router, the service and a client,
each a process of its own. With --address the client alone is started: offer the service there with `parties.py --address HOST:PORT`.
"""

from __future__ import annotations

import sys

from endurance import PARTIES, Endurance, options_of

HELD = 20  # streams that stay, on each way


def main(arguments: list[str] | None = None, script: str = PARTIES) -> int:
    """The exit status. ``script`` is what the processes run."""
    options = options_of(arguments, __doc__, minutes=5, at_once=30, service="load")
    return Endurance("soak", options, held=HELD, script=script).run()


if __name__ == "__main__":
    sys.exit(main())
