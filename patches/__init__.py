"""Programs that know nothing of the mesh use it: by name, through gevent's own sockets.

    from gevent import monkey; monkey.patch_all()
    from astranet_gevent import AstraNet, patches

    with AstraNet(join=[("router", 10000)]) as mesh, patches.apply(mesh):
        requests.get("http://users-api.mesh/")

What it does, and to what, is in docs/patches.md.
"""

if __name__ != "astranet_gevent.patches":
    raise ImportError("this folder is the package astranet_gevent.patches: install astranet_gevent, and import it by that name")

from .applying import Patch, apply
from .names import Rules

__all__ = ["Patch", "Rules", "apply"]
