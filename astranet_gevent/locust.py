"""Users for locust that reach services of the mesh: over HTTP, or with streams of their own that are reported as requests.

    from astranet_gevent.locust import MeshHttpUser, MeshStreamUser

Importing this module gives locust the options ``--mesh-join`` and ``--mesh-env`` (or ASTRANET_JOIN, ASTRANET_ENV). Each process has one
node, made when the first user needs it: with ``--processes`` and on workers every process has its own. Options that a worker is given go
before those of its master. Needs the extra ``locust``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from locust import FastHttpUser, HttpUser, User, events
from locust.argument_parser import LocustArgumentParser
from locust.exception import RescheduleTask, StopTest
from locust.runners import WorkerRunner

from astranet_gevent import AstraNet, AstraNetError, ConfigError, Stream

# mypy takes packages where they lie, and this one lies in patches/.
from astranet_gevent.patches import Patch, apply_from_environ  # type: ignore[import-not-found]
from astranet_gevent.protocol.selectors import Selector

__all__ = ["MeshFastHttpUser", "MeshHttpUser", "MeshStreamUser", "ReportedStream", "StreamClient"]

ResultT = TypeVar("ResultT")

# What locust shows as the method of a request.
_REQUEST_TYPE = "STREAM"


def _add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("mesh options")
    group.add_argument(
        "--mesh-join", metavar="ADDRESS[,ADDRESS...]", env_var="ASTRANET_JOIN", default="", help="nodes to join, as HOST:PORT"
    )
    group.add_argument("--mesh-env", metavar="A.B", env_var="ASTRANET_ENV", default="", help="use services of this environment only")


events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]


# What this process itself was given. A worker's options are replaced by those of its master when a run starts, also by ones that are empty.
_own_options: dict[str, str] = {}


def _note_options(environment: Any, **_: Any) -> None:
    for name in ("mesh_join", "mesh_env"):
        _own_options[name] = getattr(environment.parsed_options, name, "")


events.init.add_listener(_note_options)  # type: ignore[no-untyped-call]


def _option(environment: Any, name: str) -> str:
    # Elsewhere they are replaced by what was entered in the web page.
    own = _own_options.get(name) if isinstance(environment.runner, WorkerRunner) else ""
    return own or str(getattr(environment.parsed_options, name, ""))


def _patch_of(environment: Any) -> Patch:
    """The patch of this process, with a node as the options say. Raises StopTest with the reason when there can be none."""
    config: dict[str, Any] = {}
    if join := _option(environment, "mesh_join"):
        config["join"] = [part.strip() for part in join.split(",") if part.strip()]
    if env := _option(environment, "mesh_env"):
        config["env"] = tuple(env.split("."))
    try:
        return apply_from_environ(config=config)
    except (ConfigError, OSError) as error:
        # No request has failed, and yet the run must not pass for a good one.
        environment.process_exit_code = 2
        raise StopTest(f"the mesh cannot be used: {error}") from error


def _mesh_url(host: str, suffix: str) -> str:
    """A base URL whose host is the mesh's in any case: ``users-api`` and ``http://users-api:80`` get the suffix."""
    parts = urlsplit(host if "://" in host else f"http://{host}")
    name = parts.hostname or ""
    if not name or "." in name or ":" in name or name == "localhost":
        return urlunsplit(parts)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc[: -len(place)] + name + suffix + place[len(name) :]))


class _MeshHost:
    """Has ``host`` name a service: it is never looked up in DNS."""

    host: str | None
    environment: Any

    def __init__(self, environment: Any) -> None:
        patch = _patch_of(environment)
        if self.host:
            self.host = _mesh_url(self.host, patch.rules.suffix)
        super().__init__(environment)  # type: ignore[call-arg]


class MeshHttpUser(_MeshHost, HttpUser):
    """``locust.HttpUser`` (requests) whose ``host`` is the name of a service: ``"users-api"`` or ``"http://users-api:8080"``."""

    abstract = True


class MeshFastHttpUser(_MeshHost, FastHttpUser):
    """``locust.FastHttpUser`` (geventhttpclient) whose ``host`` is the name of a service."""

    abstract = True


class MeshStreamUser(User):
    """A user with streams: ``self.client`` opens them to ``service``, and everything it does is reported to locust's statistics.

    ``timeout`` seconds are for each operation. What fails is counted as a failure and ends the task.
    """

    abstract = True

    #: The service to open streams to, ``"name"`` or ``"name:port"``.
    service = ""
    timeout = 10.0

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        if not self.service:
            raise StopTest(f"{type(self).__name__} has no service: set it to the name of one")
        self.client = StreamClient(environment, _patch_of(environment).mesh, self.service, self.timeout)


class StreamClient:
    """Opens streams to one service, and reports."""

    def __init__(self, environment: Any, mesh: AstraNet, service: str, timeout: float) -> None:
        self.mesh = mesh
        self.service = service
        self.timeout = timeout
        self._environment = environment

    def open(self, name: str | None = None, selector: Selector | None = None) -> ReportedStream:
        """Dial; reported as "open" or as ``name``. Close the stream, or use it as a context manager."""
        stream = self.report(name or f"{self.service}: open", lambda: (self.mesh.dial(self.service, self.timeout, selector), 0))
        stream.settimeout(self.timeout)
        return ReportedStream(self, stream)

    def report(self, name: str, operation: Callable[[], tuple[ResultT, int]]) -> ResultT:
        """Time an operation that returns its result and a number of bytes. Raises RescheduleTask when it fails."""
        start = time.perf_counter()
        result: Any = None
        size, failure = 0, None
        try:
            result, size = operation()
        except (AstraNetError, OSError) as error:
            failure = error
        self._environment.events.request.fire(
            request_type=_REQUEST_TYPE,
            name=name,
            response_time=(time.perf_counter() - start) * 1000,
            response_length=size,
            exception=failure,
            context={},
        )
        if failure is not None:
            raise RescheduleTask from failure
        return result  # type: ignore[no-any-return]


class ReportedStream:
    """A stream whose exchanges are requests of locust's statistics; ``stream`` is the stream itself, for anything else."""

    def __init__(self, client: StreamClient, stream: Stream) -> None:
        self.stream = stream
        self._client = client

    def exchange(self, data: bytes, size: int | None = None, name: str | None = None) -> bytes:
        """Send ``data`` and read exactly ``size`` bytes (default: as many); reported as "exchange" or as ``name``."""
        return self._client.report(
            name or f"{self._client.service}: exchange", lambda: self._exchange(data, len(data) if size is None else size)
        )

    def _exchange(self, data: bytes, size: int) -> tuple[bytes, int]:
        stream = self.stream
        stream.sendall(data)
        parts = []
        missing = size
        while missing:
            part = stream.recv(missing)
            if not part:
                raise ConnectionAbortedError(f"the stream ended {missing} bytes before {size}")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts), size

    def close(self) -> None:
        """Close the stream."""
        self.stream.close()

    def __enter__(self) -> ReportedStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
