#!/usr/bin/env python3
"""Opens streams, has one exchange on each, closes them, for some minutes; checks every answer, and that nothing is left over.

Starts a router, a service and a client, each a process of its own; half of the streams go to the service directly, half through the router.
With --address the client alone is started, and --service may be anything that sends back what it reads.
"""

from __future__ import annotations

import sys

from endurance import PARTIES, Endurance, options_of


def main(arguments: list[str] | None = None, script: str = PARTIES) -> int:
    """The exit status. ``script`` is what the processes run."""
    options = options_of(arguments, __doc__, minutes=1, at_once=100, service="load-echo")
    return Endurance("churn", options, held=0, script=script).run()


if __name__ == "__main__":
    sys.exit(main())
