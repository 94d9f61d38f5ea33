"""The router: a node that offers nothing and stands between the others."""

from __future__ import annotations

from argparse import Namespace

from astranet_gevent import AstraNet, AstraNetError, Role

from .errors import DemoError
from .process import describe, tell, wait_for_end


def run(options: Namespace) -> int:
    with AstraNet(role=Role.ROUTER) as mesh:
        try:
            listener = mesh.listen(options.listen)
        except (AstraNetError, OSError) as error:
            host, port = options.listen
            raise DemoError(f"cannot listen on {host}:{port}: {describe(error)}") from error
        assert isinstance(listener.address, tuple)  # text is for unix sockets
        host, port = listener.address
        tell(address=f"{host}:{port}")
        wait_for_end(options.until_eof)
    return 0
