"""Run a client program as one that is patched: `launch.py HOST PORT PROGRAM`; every function ``check_...`` in it is called.

The program itself is what anybody would write against plain TCP; only its host names are the mesh's.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import runpy  # noqa: E402 - gevent's patches come first
import sys  # noqa: E402
import time  # noqa: E402

import control  # noqa: E402
import gevent  # noqa: E402

from astranet_gevent import AstraNet, patches  # noqa: E402

# Seconds. A name that nobody offers costs NAME_WAIT; a check that takes CHECK_LIMIT hangs.
NAME_WAIT = 0.3
CHECK_LIMIT = 40.0


def main(host: str, port: str, program: str) -> int:
    with AstraNet() as mesh:
        control.mesh, control.peering = mesh, mesh.join((host, int(port)))
        mesh.service_map.wait_for("control", 10)
        with patches.apply(mesh, name_wait=NAME_WAIT):
            checks = {name: check for name, check in runpy.run_path(program).items() if name.startswith("check_")}
            assert checks, program
            for name, check in checks.items():
                started = time.monotonic()
                print(f"{name}: ", end="", flush=True)
                with gevent.Timeout(CHECK_LIMIT, AssertionError(f"{name}: not done within {CHECK_LIMIT:g} s")):
                    check()
                print(f"{time.monotonic() - started:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
