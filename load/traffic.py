"""What soak.py and churn.py send, and what their service answers: kinds of traffic in which every byte has a known value by its position.

A stream of the service begins with a header that says what is wanted, how many bytes, and where in the pattern they begin. The service
checks what it reads too. Where the client means to break off, it says so in the header: everywhere else an early end is an error.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import gevent
import gevent.event

# The package of this checkout, unless one is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from astranet_gevent import AstraNet, AstraNetError, DialRefusedError, Stream
from astranet_gevent.http import HTTPConnection

#: Seconds that one operation may take, on a machine that is busy with others too. What takes longer hangs.
OPERATION_LIMIT = 30.0
# Of them for opening a stream: when the service dies, what is under way is to end soon.
DIAL_LIMIT = 5.0
# The service waits longer than any client: that it gives up means that a client has left without a word.
SERVICE_PATIENCE = 2 * OPERATION_LIMIT

# A prime: no frame, window or buffer divides it, so that a piece that is lost, doubled or exchanged for another is never equal by chance.
PERIOD = 1_048_573
PIECE = 256 * 1024  # largest piece that is written or compared at once
_ROUND = random.Random(PERIOD).randbytes(PERIOD)
_PATTERN = _ROUND + _ROUND[:PIECE]

# About the sizes of frames and of the first window, and some windows' worth.
BULK_SIZES = (1, 1000, 65_535, 65_536, 65_537, 300_000, 1_500_000)
_LINGER_NOT = struct.pack("ii", 1, 0)


class WrongAnswerError(Exception):
    """Other bytes than were due, or another end."""


#: What an operation fails with. Anything else is a fault of the scripts themselves, and ends the run.
FAILURES = (AstraNetError, OSError, HTTPException, WrongAnswerError)


# --- the pattern ------------------------------------------------------------------------------


def pattern(position: int, size: int) -> bytes:
    """The bytes from a position on, at most PIECE of them."""
    start = position % PERIOD
    return _PATTERN[start : start + size]


def check(data: bytes, position: int) -> None:
    """Raise WrongAnswerError unless these are the bytes from that position on."""
    wanted = pattern(position, len(data))
    if data != wanted:
        first = next(number for number, pair in enumerate(zip(data, wanted, strict=True)) if pair[0] != pair[1])
        raise WrongAnswerError(f"byte {position + first} of the pattern is {data[first]}, not {wanted[first]}")


def send_pattern(stream: Stream, start: int, size: int) -> None:
    """Send so many bytes of the pattern."""
    for position in range(start, start + size, PIECE):
        stream.sendall(pattern(position, min(PIECE, start + size - position)))


def read_pattern(stream: Stream, start: int, size: int) -> None:
    """Read and check exactly so many."""
    position, end = start, start + size
    while position < end:
        data = stream.recv(min(PIECE, end - position))
        if not data:
            raise WrongAnswerError(f"the stream ended {end - position} bytes before {size}")
        check(data, position)
        position += len(data)


def read_end(stream: Stream) -> None:
    """Read the end of the stream, and nothing before it."""
    if data := stream.recv(PIECE):
        raise WrongAnswerError(f"{len(data)} bytes came where the stream was to end")


def read_exactly(stream: Stream, size: int) -> bytes:
    """So many bytes, and not fewer."""
    parts = []
    while size:
        part = stream.recv(size)
        if not part:
            raise WrongAnswerError(f"the stream ended {size} bytes early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- the service ------------------------------------------------------------------------------

HEADER = struct.Struct("!BQQ")
ANSWER = struct.Struct("!Q")
ECHO, SINK, SOURCE, ANSWER_AFTER_END, END_FIRST, RESET, SINK_CUT, SOURCE_CUT = range(8)


def echo(stream: Stream, _address: Any = None) -> None:
    """Send back what comes, until the end."""
    while data := stream.recv(65536):
        stream.sendall(data)


def _sink(stream: Stream, size: int, start: int) -> None:
    read_pattern(stream, start, size)
    stream.sendall(ANSWER.pack(size))


def _answer_after_end(stream: Stream, size: int, start: int) -> None:
    read_pattern(stream, start, size)
    read_end(stream)
    send_pattern(stream, start, size)


def _end_first(stream: Stream, size: int, start: int) -> None:
    send_pattern(stream, start, size)
    stream.shutdown(socket.SHUT_WR)
    read_pattern(stream, start, size)
    read_end(stream)


def _reset(stream: Stream, size: int, start: int) -> None:
    read_pattern(stream, start, size)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    stream.close()


def _sink_cut(stream: Stream, size: int, start: int) -> None:
    position = start
    while data := stream.recv(PIECE):
        check(data, position)
        position += len(data)


def _source(stream: Stream, size: int, start: int) -> None:
    send_pattern(stream, start, size)


class Service:
    """Answers streams by what their header wants, and counts what was not as it should be."""

    def __init__(self) -> None:
        #: What went wrong, by its text: there are not many.
        self.errors: Counter[str] = Counter()
        self.handlers: dict[int, Callable[[Stream, int, int], None]] = {
            ECHO: lambda stream, size, start: echo(stream),
            SINK: _sink,
            SOURCE: _source,
            ANSWER_AFTER_END: _answer_after_end,
            END_FIRST: _end_first,
            RESET: _reset,
            SINK_CUT: _sink_cut,
            SOURCE_CUT: _source,
        }

    def serve(self, stream: Stream, _address: Any = None) -> None:
        """One stream, from its header to its end."""
        stream.settimeout(SERVICE_PATIENCE)
        wanted = -1
        try:
            wanted, size, start = HEADER.unpack(read_exactly(stream, HEADER.size))
            if wanted not in self.handlers:
                raise WrongAnswerError(f"a header wants {wanted}, which is not known")
            self.handlers[wanted](stream, size, start)
        except ConnectionError as error:
            if wanted not in (SINK_CUT, SOURCE_CUT):
                self.note(wanted, error)
        except (OSError, WrongAnswerError) as error:
            self.note(wanted, error)

    def echo(self, stream: Stream, _address: Any = None) -> None:
        """A stream that has no header."""
        stream.settimeout(SERVICE_PATIENCE)
        begun = False
        try:
            if data := stream.recv(65536):
                begun = True
                stream.sendall(data)
                echo(stream)
        except OSError as error:
            # A dial that was given up may have been accepted by then.
            if begun or not isinstance(error, ConnectionError):
                self.note(ECHO, error)

    def page(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """A WSGI application: ``/SIZE/START`` is that piece of the pattern."""
        size, start = map(int, environ["PATH_INFO"].strip("/").split("/"))
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return [pattern(start, size)]

    def note(self, wanted: int, error: Exception) -> None:
        """Count an error."""
        self.errors[describe(f"service, kind {wanted}", error)] += 1


def describe(where: str, error: BaseException) -> str:
    """An error in one line that is the same for the same error: without the numbers of nodes and bytes there are few."""
    return f"{where}: {type(error).__name__}: {error}"[:300]


# --- greenlets of one operation -----------------------------------------------------------------


def begin(function: Callable[..., object], *arguments: Any) -> gevent.Greenlet[..., Any]:
    """A greenlet whose error is for ``finish``: gevent prints what one ends with."""

    def attempt() -> Exception | None:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - raised again by finish()
            return error
        return None

    return gevent.spawn(attempt)


def finish(greenlet: gevent.Greenlet[..., Any], timeout: float = OPERATION_LIMIT) -> None:
    """Wait for such a greenlet. Raises what its function has raised; not that it was killed."""
    if isinstance(error := greenlet.get(timeout=timeout), Exception):
        raise error


# --- the client -------------------------------------------------------------------------------


class Way:
    """One way to the service: a node, and the streams that are held open on it."""

    def __init__(self, name: str, mesh: AstraNet, service: str) -> None:
        self.name = name
        self.mesh = mesh
        self.service = service
        self.held: deque[Stream] = deque()

    def dial(self, wanted: int, size: int, start: int) -> Stream:
        """A stream of which that is wanted."""
        stream = self.dial_plain()
        stream.sendall(HEADER.pack(wanted, size, start))
        return stream

    def dial_plain(self) -> Stream:
        """A stream without a header."""
        stream = self.mesh.dial(self.service, DIAL_LIMIT)
        stream.settimeout(OPERATION_LIMIT)
        return stream

    def hold(self, count: int) -> None:
        """Open streams that stay, for ``ping``."""
        for _ in range(count):
            self.held.append(self.dial(ECHO, 0, 0))

    def release(self) -> None:
        """Close them."""
        while self.held:
            self.held.pop().close()


def _size() -> int:
    return random.choice(BULK_SIZES)


def _start() -> int:
    return random.randrange(PERIOD)


def churn(way: Way) -> int:
    """Open a stream to a service that echoes, one exchange, close. Like all kinds it returns how many bytes it has checked."""
    size, start = random.randrange(1, 200), _start()
    with way.dial_plain() as stream:
        send_pattern(stream, start, size)
        read_pattern(stream, start, size)
    return size


def short(way: Way) -> int:
    """A short stream: one exchange."""
    size, start = random.randrange(1, 2000), _start()
    with way.dial(ECHO, 0, 0) as stream:
        send_pattern(stream, start, size)
        read_pattern(stream, start, size)
    return size


def ping(way: Way) -> int:
    """One exchange on a stream that has been open for long."""
    if not way.held:
        return short(way)  # all of them are in use
    stream = way.held.popleft()
    start = _start()
    try:
        send_pattern(stream, start, 64)
        read_pattern(stream, start, 64)
    except BaseException:
        stream.close()
        raise
    way.held.append(stream)
    return 64


def messages(way: Way) -> int:
    """A hundred small messages, each written by itself, before the first answer is read."""
    start = position = _start()
    with way.dial(ECHO, 0, 0) as stream:
        for _ in range(100):
            size = random.randrange(1, 200)
            stream.sendall(pattern(position, size))
            position += size
        read_pattern(stream, start, position - start)
    return position - start


def upload(way: Way) -> int:
    """Bulk to the service, which checks it."""
    size, start = _size(), _start()
    with way.dial(SINK, size, start) as stream:
        send_pattern(stream, start, size)
        (checked,) = ANSWER.unpack(read_exactly(stream, ANSWER.size))
        read_end(stream)
    if checked != size:
        raise WrongAnswerError(f"the service has checked {checked} of {size} bytes")
    return size


def download(way: Way) -> int:
    """Bulk from the service."""
    size, start = _size(), _start()
    with way.dial(SOURCE, size, start) as stream:
        read_pattern(stream, start, size)
        read_end(stream)
    return size


def both_ways(way: Way) -> int:
    """Bulk both ways at once on one stream."""
    size, start = _size(), _start()

    def write() -> None:
        send_pattern(stream, start, size)
        stream.shutdown(socket.SHUT_WR)

    with way.dial(ECHO, 0, 0) as stream:
        writer = begin(write)
        try:
            read_pattern(stream, start, size)
            read_end(stream)
            finish(writer)
        finally:
            writer.kill()
    return 2 * size


def half_close(way: Way) -> int:
    """The client ends its half; everything is answered after that."""
    size, start = _size(), _start()
    with way.dial(ANSWER_AFTER_END, size, start) as stream:
        send_pattern(stream, start, size)
        stream.shutdown(socket.SHUT_WR)
        read_pattern(stream, start, size)
        read_end(stream)
    return 2 * size


def half_closed(way: Way) -> int:
    """The service ends its half first, and reads on."""
    size, start = _size(), _start()
    with way.dial(END_FIRST, size, start) as stream:
        read_pattern(stream, start, size)
        read_end(stream)
        send_pattern(stream, start, size)
    return 2 * size


@contextlib.contextmanager
def cut_after(seconds: float) -> Iterator[None]:
    """A gevent.Timeout strikes in the block after so long, and ends there."""
    cut = gevent.Timeout(seconds)
    try:
        with cut:
            yield
    except gevent.Timeout as caught:
        if caught is not cut:
            raise


def timed_out(way: Way) -> int:
    """A gevent.Timeout strikes in the middle of a download."""
    size, start = 2**40, _start()
    with way.dial(SOURCE_CUT, size, start) as stream, cut_after(random.uniform(0.001, 0.05)):
        read_pattern(stream, start, size)
        raise WrongAnswerError("a terabyte has come")
    return 0


def dial_given_up(way: Way) -> int:
    """A gevent.Timeout strikes while a stream is being opened, or just after that."""
    with cut_after(random.uniform(0.0, 0.005)), way.mesh.dial(f"{way.service}-echo", DIAL_LIMIT):
        pass
    return 0


def killed(way: Way) -> int:
    """The greenlet that uploads is killed in the middle."""

    def write(begun: gevent.event.Event) -> None:
        start = _start()
        with way.dial(SINK_CUT, 0, start) as stream:
            begun.set()
            send_pattern(stream, start, 2**40)

    begun = gevent.event.Event()
    writer = begin(write, begun)
    try:
        begun.wait(OPERATION_LIMIT)
        gevent.sleep(random.uniform(0.0, 0.05))
    finally:
        writer.kill(timeout=OPERATION_LIMIT)
    finish(writer, 0)
    return 0


def reset_by_service(way: Way) -> int:
    """The service resets a stream."""
    size, start = random.randrange(1, 2000), _start()
    with way.dial(RESET, size, start) as stream:
        send_pattern(stream, start, size)
        try:
            data = stream.recv(PIECE)
        except ConnectionResetError:
            return size
    raise WrongAnswerError(f"{len(data)} bytes came instead of a reset")


def reset_by_client(way: Way) -> int:
    """The client resets a stream while it writes."""
    size, start = _size(), _start()
    with way.dial(SINK_CUT, 0, start) as stream:
        send_pattern(stream, start, size)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    return 0


def idle(way: Way) -> int:
    """A stream on which nothing comes meets its deadline, not earlier and not much later, and is good for an exchange after that."""
    deadline, start = 0.2, _start()
    with way.dial(ECHO, 0, 0) as stream:
        stream.settimeout(deadline)
        begin = time.monotonic()
        try:
            data = stream.recv(PIECE)
        except TimeoutError:
            waited = time.monotonic() - begin
        else:
            raise WrongAnswerError(f"{len(data)} bytes came on an idle stream")
        # A timer of the loop may fire a little early. Late is what the machine makes it, but no hang.
        if not deadline - 0.01 <= waited <= deadline + 5:
            raise WrongAnswerError(f"a deadline of {deadline} s struck after {waited:.2f} s")
        stream.settimeout(OPERATION_LIMIT)
        send_pattern(stream, start, 64)
        read_pattern(stream, start, 64)
    return 64


def refused(way: Way) -> int:
    """A port that nothing is bound to is refused."""
    node_id = way.mesh.service_map[way.service][0].node_id
    try:
        stream = way.mesh.dial((node_id, 1), DIAL_LIMIT)
    except DialRefusedError:
        return 1
    stream.close()
    raise WrongAnswerError("a port that nothing is bound to was dialled")


def http(way: Way) -> int:
    """A page of HTTP."""
    size, start = random.randrange(1, 5000), _start()
    connection = HTTPConnection(way.mesh, f"{way.service}-http", timeout=OPERATION_LIMIT)
    try:
        connection.request("GET", f"/{size}/{start}", headers={"Connection": "close"})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or len(data) != size:
        raise WrongAnswerError(f"status {answer.status}, {len(data)} bytes instead of {size}")
    check(data, start)
    return size


Kind = Callable[[Way], int]

#: What each load consists of, and how often each kind comes in a round of it.
LOADS: dict[str, dict[Kind, int]] = {
    "churn": {churn: 1},
    "soak": {
        ping: 20,
        short: 20,
        messages: 3,
        upload: 2,
        download: 2,
        both_ways: 2,
        half_close: 2,
        half_closed: 2,
        timed_out: 1,
        killed: 1,
        dial_given_up: 2,
        reset_by_service: 2,
        reset_by_client: 2,
        idle: 1,
        refused: 2,
        http: 2,
    },
}

#: One small exchange, of each load.
SMALLEST: dict[str, Kind] = {"churn": churn, "soak": short}
