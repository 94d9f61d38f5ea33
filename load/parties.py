#!/usr/bin/env python3
"""The processes of `churn.py` and `soak.py`: a router, the service, the client. Started by them, with --child KIND.

By hand it offers their service in a mesh that there is already:

    parties.py --address HOST:PORT [--service NAME]
"""

from __future__ import annotations

import argparse
import bisect
import ctypes
import gc
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import greenlet
import harness
import psutil
from harness import STEP_LIMIT
from traffic import FAILURES, LOADS, OPERATION_LIMIT, SMALLEST, Kind, Service, Way, WrongAnswerError, describe

from astranet_gevent import AstraNet, Role
from astranet_gevent.server import StreamServer, WSGIServer

Commands = dict[str, Callable[..., Any]]

REACHING = 4.0  # seconds until a mesh that there is has answered, and the service is known
SETTLING = 2.0  # seconds in which what has been closed goes out of the tables of both sides
# No event says that: it is looked at again after so many seconds.
LOOK_AGAIN = 0.02
KINDS_OF_ERRORS = 20  # texts of errors that are kept


# --- what a process can say of itself ---------------------------------------------------------


class _MallocInfo(ctypes.Structure):
    """What mallinfo2() of glibc returns (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def _find_mallinfo() -> Any:
    """glibc's mallinfo2(), None elsewhere."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    function.restype = _MallocInfo
    return function


_mallinfo = _find_mallinfo()


def tables(mesh: AstraNet) -> tuple[int, int]:
    """Streams of a node, and the other entries of its tables: dials under way, services, routes, pairs of nodes that it relays for."""
    links = mesh.links()
    pairs = sum(len(pairs) for pairs in mesh._started().relaying._pairs.values())
    dials = sum(len(link.dialing) for link in links)
    return sum(link.stream_count for link in links), dials + pairs + len(mesh.services()) + len(mesh.routes())


def facts(meshes: list[AstraNet]) -> dict[str, float]:
    """What may grow in this process, once what has been closed is gone: by then nothing under way is counted."""
    deadline, before = time.monotonic() + SETTLING, None
    while time.monotonic() < deadline:
        counts = [tables(mesh) for mesh in meshes]
        if counts == before:
            break
        before = counts
        gevent.sleep(LOOK_AGAIN)
    streams, entries = map(sum, zip(*(tables(mesh) for mesh in meshes), strict=True))
    for link in (link for mesh in meshes for link in mesh.links()):
        # What was read into is kept for a while, 256 KiB each: how much of it there is when traffic rests is chance.
        link._buffer.trim()
    memory = harness.memory()
    malloc = _mallinfo() if _mallinfo is not None else None
    return {
        "memory": memory,
        "heap": malloc.uordblks + malloc.hblkhd if malloc is not None else 0,
        "blocks": sys.getallocatedblocks(),
        "descriptors": psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0,
        "greenlets": len(greenlets()),
        "streams": streams,
        "entries": entries,
    }


def greenlets() -> list[greenlet.greenlet]:
    """Those of this thread that have not ended. Resolver threads have some too, and end when they please."""
    main = _topmost(greenlet.getcurrent())
    return [item for item in gc.get_objects() if isinstance(item, greenlet.greenlet) and not item.dead and _topmost(item) is main]


def _topmost(item: greenlet.greenlet) -> greenlet.greenlet:
    while item.parent is not None:
        item = item.parent
    return item


# --- router and service -----------------------------------------------------------------------


def router() -> Commands:
    """Passes on what others offer."""
    mesh = AstraNet(role=Role.ROUTER, follow=False)

    def listen(port: int = 0) -> Any:
        return mesh.start().listen(("127.0.0.1", port)).address

    return {"listen": listen, "facts": lambda: facts([mesh])}


def offer(mesh: AstraNet, name: str) -> Service:
    """The service, under three names: itself, without headers, and over HTTP."""
    service = Service()
    StreamServer(mesh.bind(name), service.serve).start()
    StreamServer(mesh.bind(f"{name}-echo"), service.echo).start()
    WSGIServer(mesh.bind(f"{name}-http"), service.page, log=None).start()
    return service


def server() -> Commands:
    """Offers the service, on a link to the router and where it listens itself."""
    mesh = AstraNet(follow=False, advertise=())
    services: list[Service] = []

    def serve(name: str, address: list[Any]) -> Any:
        services.append(offer(mesh.start(), name))
        mesh.join(tuple(address)).wait_ready(STEP_LIMIT)
        return mesh.listen(("127.0.0.1", 0)).address

    return {"serve": serve, "facts": lambda: facts([mesh]), "errors": lambda: dict(services[0].errors)}


# --- the client -------------------------------------------------------------------------------


class Times:
    """How long operations took, in steps of 5 %: as much memory for a million of them as for one."""

    _STEP = 1.05
    _LEAST = 1e-5  # seconds
    _STEPS = 340  # up to 160 s

    def __init__(self) -> None:
        self.counts = [0] * self._STEPS
        self._bounds = [self._LEAST * self._STEP**number for number in range(self._STEPS)]

    def add(self, seconds: float) -> None:
        self.counts[min(bisect.bisect_left(self._bounds, seconds), self._STEPS - 1)] += 1

    def percentile(self, share: float) -> float:
        """Seconds; 0 when nothing was timed."""
        reached = list(itertools.accumulate(self.counts))
        if not reached[-1]:
            return 0.0
        # The first that was timed is the least there is.
        return self._bounds[bisect.bisect_left(reached, max(1, reached[-1] * share))]

    def merge(self, other: Times) -> None:
        """Add what another has."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]


class Tally:
    """What was done of one kind."""

    def __init__(self) -> None:
        self.count = self.bytes = self.failed = self.wrong = 0
        self.recent = Times()
        self.all = Times()

    def report(self) -> dict[str, float]:
        """In numbers; times in seconds."""
        times = {"p50": self.all.percentile(0.5), "p99": self.all.percentile(0.99)}
        return {"count": self.count, "bytes": self.bytes, "failed": self.failed, "wrong": self.wrong, **times}


class Client:
    """Greenlets that make a load, one operation after the other, and rest when asked to."""

    def __init__(self) -> None:
        self.ways: list[Way] = []
        self._load = ""
        self._kinds: dict[Kind, int] = {}
        self._tallies: dict[Kind, Tally] = {}
        self._errors: Counter[str] = Counter()
        self._workers: list[gevent.Greenlet[..., Any]] = []
        self._resting = 0
        self._running = False
        self._go = gevent.event.Event()
        self._all_rest = gevent.event.Event()

    def reach(self, ways: dict[str, list[Any]], service: str) -> None:
        """Join an address for each way, and wait until the service is offered there."""
        for name, address in ways.items():
            mesh = AstraNet(role=Role.CLIENT, follow=False).start()
            mesh.join(tuple(address)).wait_ready(REACHING)
            mesh.service_map.wait_for(service, REACHING)
            self.ways.append(Way(name, mesh, service))

    def warm_up(self, load: str, held: int) -> None:
        """Every kind once on every way: what is made only once exists after that. Raises the error of what fails."""
        self._load, self._kinds = load, LOADS[load]
        for way in self.ways:
            way.hold(held)
            for kind in self._kinds:
                with gevent.Timeout(OPERATION_LIMIT, TimeoutError(f"{kind.__name__}, {way.name}: no end")):
                    kind(way)
            way.release()

    def start(self, workers: int, held: int) -> None:
        """Begin, with so many operations at once."""
        for way in self.ways:
            way.hold(held)
        self._tallies = {kind: Tally() for kind in self._kinds}
        self._running = True
        self._go.set()
        self._workers = [gevent.spawn(self._work) for _ in range(workers)]
        for worker in self._workers:
            # Nobody waits in vain for one that has ended by a fault of its own.
            worker.link_exception(lambda _: self._all_rest.set())

    def rest(self) -> None:
        """Return once every operation under way has ended. Raises TimeoutError when some do not, and what a worker has ended with."""
        self._all_rest.clear()
        self._go.clear()
        self._raise_fault()
        done = self._resting == len(self._workers) or self._all_rest.wait(OPERATION_LIMIT + STEP_LIMIT)
        self._raise_fault()
        if not done:
            raise TimeoutError(f"{len(self._workers) - self._resting} of {len(self._workers)} operations do not end")
        # Each link holds what was written last until something else is, and that may be a large piece or a small one.
        for way in self.ways:
            try:
                SMALLEST[self._load](way)
            except FAILURES:
                # The operations that follow will meet the same, and are counted.
                return

    def _raise_fault(self) -> None:
        for worker in self._workers:
            if worker.exception is not None:
                raise worker.exception

    def go_on(self) -> None:
        """End the rest."""
        self._go.set()

    def stop(self) -> None:
        """End the load, and close what is held."""
        self._running = False
        self._go.set()
        gevent.joinall(self._workers, timeout=OPERATION_LIMIT + STEP_LIMIT, raise_error=True)
        if stuck := sum(not worker.ready() for worker in self._workers):
            raise TimeoutError(f"{stuck} of {len(self._workers)} operations do not end")
        self._workers.clear()
        for way in self.ways:
            way.release()

    def progress(self) -> dict[str, Any]:
        """What was done; the percentiles are of what was done since the last time, in seconds."""
        recent = Times()
        for tally in self._tallies.values():
            recent.merge(tally.recent)
            tally.recent = Times()
        return {
            "kinds": {kind.__name__.replace("_", " "): tally.report() for kind, tally in self._tallies.items()},
            "p50": recent.percentile(0.5),
            "p99": recent.percentile(0.99),
            "errors": dict(self._errors),
        }

    def facts(self) -> dict[str, float]:
        """What may grow here."""
        return facts([way.mesh for way in self.ways])

    def _work(self) -> None:
        # Each begins its rounds anew and in another order, so that all kinds meet each other.
        cards = [(kind, way) for way in self.ways for kind, often in self._kinds.items() for _ in range(often)]
        while True:
            random.shuffle(cards)
            for kind, way in cards:
                if not self._may_go_on():
                    return
                self._operate(kind, way)

    def _may_go_on(self) -> bool:
        if self._running and not self._go.is_set():
            self._resting += 1
            if self._resting == len(self._workers):
                self._all_rest.set()
            # No deadline: whoever asked for the rest ends it, or the process.
            self._go.wait()
            self._resting -= 1
        return self._running

    def _operate(self, kind: Kind, way: Way) -> None:
        tally = self._tallies[kind]
        start = time.perf_counter()
        try:
            with gevent.Timeout(OPERATION_LIMIT, TimeoutError(f"no end within {OPERATION_LIMIT:g} s")):
                checked = kind(way)
        except FAILURES as error:
            tally.failed += 1
            tally.wrong += isinstance(error, WrongAnswerError)
            text = describe(f"{kind.__name__}, {way.name}", error)
            if text in self._errors or len(self._errors) < KINDS_OF_ERRORS:
                self._errors[text] += 1
            # What fails at once, for want of a router for instance, must not keep the processor busy.
            gevent.sleep(0.1)
            return
        seconds = time.perf_counter() - start
        tally.count += 1
        tally.bytes += checked
        tally.recent.add(seconds)
        tally.all.add(seconds)


def client() -> Commands:
    """Makes the load."""
    one = Client()
    commands = (one.reach, one.warm_up, one.start, one.rest, one.go_on, one.stop, one.progress, one.facts)
    return {command.__name__: command for command in commands}


CHILDREN: dict[str, Callable[[], Commands]] = {"router": router, "service": server, "client": client}


def main() -> None:
    parser = argparse.ArgumentParser(description="Offers the service that churn.py and soak.py call, in a mesh that there is already.")
    parser.add_argument("--address", metavar="HOST:PORT", help="join the node there")
    parser.add_argument("--service", default="load", metavar="NAME", help="offer it as NAME, NAME-echo and NAME-http (load)")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        harness.obey(CHILDREN[options.child](), options.core)
        return
    if not options.address:
        parser.error("--address HOST:PORT is needed")
    with AstraNet(join=(options.address,)) as mesh:
        offer(mesh, options.service)
        try:
            mesh.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
