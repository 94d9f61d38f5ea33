"""xmlrpc.client, which keeps its connection and dials again by itself."""

import xmlrpc.client

from control import accepted, cut


def check_calls():
    before = accepted("rpc")
    with xmlrpc.client.ServerProxy("http://rpc.mesh:8002/") as proxy:
        assert [proxy.pow(2, number) for number in range(10)] == [2**number for number in range(10)]
        text = "text " * 200_000
        assert proxy.upper(text) == text.upper()
        assert accepted("rpc") == before + 1
        assert cut("rpc") == 1
        assert proxy.pow(3, 3) == 27
        assert accepted("rpc") == before + 2
