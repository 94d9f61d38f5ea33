"""The processes of `storm.py`: the router, and crowds of nodes that join it, lose it, and come back. Started by it, with --child KIND."""

from __future__ import annotations

import argparse
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import harness
import parties
from harness import STEP_LIMIT
from traffic import FAILURES, OPERATION_LIMIT, PERIOD, begin, describe, echo, finish, read_end, read_pattern, send_pattern

from astranet_gevent import AstraNet, Peering, Role, Stream
from astranet_gevent.server import StreamServer

SERVICE = "crowd"
SIZES = (1, 64, 5000, 200_000)  # of the exchanges after a storm
# Nodes that join, or exchange bytes, at the same time in one process, where no storm is measured.
AT_ONCE = 20


class Member:
    """One node of the crowd, and when it has seen what: on the monotonic clock, which all processes of a machine share."""

    def __init__(self, address: list[Any], offers: bool) -> None:
        # Nothing is followed: with direct links nobody would need the router.
        self.mesh = AstraNet(role=Role.BOTH, follow=False).start()
        if offers:
            StreamServer(self.mesh.bind(SERVICE), answer).start()
        self.peering: Peering = self.mesh.join(tuple(address))
        self.seen: dict[str, float] = {}
        #: That the router is lost has been seen.
        self.noticed = gevent.event.Event()
        self.error = ""
        self._attempts = 0

    def go_through(self, offered: int, limit: float) -> None:
        """A storm: lose the router, join again, call a service, see all of them; each within the limit."""
        self.seen, self.error, self._attempts = {}, "", self.peering.attempts
        self.noticed.clear()
        try:
            with gevent.Timeout(limit, TimeoutError(f"not within {limit:g} s")):
                self._go_through(offered, limit)
        except FAILURES as error:
            stage = next(stage for stage in (*STAGES, "") if stage not in self.seen)
            self.error = describe(stage, error)

    def _go_through(self, offered: int, limit: float) -> None:
        lost = self.peering.link
        if lost is not None:
            lost.wait()
        self.seen["lost"] = time.monotonic()
        self.noticed.set()
        while self.peering.link in (None, lost) or not self.peering.ready:
            self.peering.wait_ready(limit)
            # Ready it may still be by the link that was lost, for a turn of the loop.
            gevent.sleep(0)
        self.seen["joined"] = time.monotonic()
        exchange(self.mesh, 64)
        self.seen["called"] = time.monotonic()
        with self.mesh.service_map.watch() as changes:
            while len(self.mesh.service_map.get(SERVICE, ())) < offered:
                changes.get(limit)
        self.seen["complete"] = time.monotonic()

    def report(self) -> dict[str, Any]:
        """What has been seen, and how often joining was tried."""
        return {**self.seen, "attempts": self.peering.attempts - self._attempts, "error": self.error}


#: What a node goes through, in this order.
STAGES = ("lost", "joined", "called", "complete")


def answer(stream: Stream, _address: Any) -> None:
    """Echo; a caller's process may be killed."""
    try:
        echo(stream)
    except ConnectionError:
        return


def exchange(mesh: AstraNet, size: int) -> None:
    """So many bytes to a service and back, checked."""
    start = random.randrange(PERIOD)
    with mesh.dial(SERVICE, OPERATION_LIMIT) as stream:
        stream.settimeout(OPERATION_LIMIT)
        writer = begin(send_pattern, stream, start, size)
        try:
            read_pattern(stream, start, size)
            finish(writer)
        finally:
            writer.kill()
        stream.shutdown(socket.SHUT_WR)
        read_end(stream)


class Crowd:
    """Many nodes in one process."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._storm: list[gevent.Greenlet[..., Any]] = []

    def gather(self, address: list[Any], nodes: int, offering: int) -> None:
        """Join so many nodes, of which some offer the service."""
        for number in range(nodes):
            self._members.append(Member(address, number < offering))
            if len(self._members) % AT_ONCE == 0:
                self._wait_joined()
        self._wait_joined()

    def _wait_joined(self) -> None:
        for member in self._members:
            member.peering.wait_ready(STEP_LIMIT)

    def watch(self, offered: int, seconds: float) -> None:
        """Begin to wait for a storm, in which so many servers come back."""
        self._storm = [gevent.spawn(member.go_through, offered, seconds) for member in self._members]
        gevent.sleep(0)

    def lost(self, seconds: float) -> int:
        """Wait until all have noticed, at most so long; how many have not."""
        deadline = time.monotonic() + seconds
        return sum(not member.noticed.wait(max(0.0, deadline - time.monotonic())) for member in self._members)

    def back(self, seconds: float) -> list[dict[str, Any]]:
        """Wait until the storm is over for everybody; what each has seen."""
        gevent.joinall(self._storm, timeout=seconds + STEP_LIMIT, raise_error=True)
        self._storm.clear()
        return [member.report() for member in self._members]

    def exchange(self) -> list[str]:
        """Bytes of several sizes from every node to some service; what has failed."""
        failed = []

        def one(member: Member) -> None:
            for size in SIZES:
                try:
                    with gevent.Timeout(OPERATION_LIMIT, TimeoutError(f"no end within {OPERATION_LIMIT:g} s")):
                        exchange(member.mesh, size)
                except FAILURES as error:
                    failed.append(describe(f"exchange of {size} bytes", error))
                    return

        members = iter(self._members)

        def some() -> None:
            for member in members:  # shared: each greenlet takes the next
                one(member)

        gevent.joinall([gevent.spawn(some) for _ in range(AT_ONCE)], raise_error=True)
        return failed

    def facts(self) -> dict[str, float]:
        """What may grow here."""
        return parties.facts([member.mesh for member in self._members])


def crowd() -> parties.Commands:
    """Nodes."""
    one = Crowd()
    commands = (one.gather, one.watch, one.lost, one.back, one.exchange, one.facts)
    return {command.__name__: command for command in commands}


def router() -> parties.Commands:
    """What they lose."""
    mesh = AstraNet(role=Role.ROUTER, follow=False)

    def listen(host: str, port: int) -> Any:
        return mesh.start().listen((host, port)).address

    def load() -> dict[str, float]:
        """Links, and connections that were refused because too many were shaking hands."""
        refused = sum(listener.refused for listener in mesh._started().link_listeners)
        return {"links": len(mesh.links()), "refused": refused}

    return {"listen": listen, "load": load, "facts": lambda: parties.facts([mesh])}


CHILDREN: dict[str, Callable[[], parties.Commands]] = {"router": router, "crowd": crowd}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", choices=CHILDREN, required=True)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    harness.obey(CHILDREN[options.child](), options.core)


if __name__ == "__main__":
    main()
