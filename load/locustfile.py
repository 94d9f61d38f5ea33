"""Users of a service behind a router, for locust: over requests, over geventhttpclient, and with streams.

    locust -f load/locustfile.py --mesh-join router:10000 --headless --users 500 --spawn-rate 100 --run-time 60s

``locust_run.py`` starts a router and a service and then this. The services are those of ``locust_site.py``: "site" answers HTTP, "echo"
sends back what it reads.
"""

from __future__ import annotations

import os

from locust import between, task

from astranet_gevent.locust import MeshFastHttpUser, MeshHttpUser, MeshStreamUser


class HttpReader(MeshHttpUser):
    """Reads pages with requests."""

    host = "site"
    weight = 2
    wait_time = between(0.5, 1.5)

    @task(3)
    def page(self) -> None:
        self.client.get("/page")

    @task
    def upload(self) -> None:
        self.client.post("/upload", data=os.urandom(4096))


class FastHttpReader(MeshFastHttpUser):
    """Reads pages with geventhttpclient, which costs a fraction of requests."""

    host = "site"
    weight = 4
    wait_time = between(0.5, 1.5)

    @task
    def page(self) -> None:
        # Under a name of its own, so that the two clients can be compared.
        self.client.get("/page", name="/page (geventhttpclient)")


class Talker(MeshStreamUser):
    """Opens a stream, exchanges some messages, closes it."""

    service = "echo"
    weight = 4
    wait_time = between(0.5, 1.5)

    @task
    def talk(self) -> None:
        with self.client.open() as stream:
            for size in (64, 1024, 16384):
                data = os.urandom(size)
                if stream.exchange(data, name=f"echo: {size} B") != data:
                    raise ValueError(f"other bytes came back than the {size} that were sent")
