"""Files over streams: what ``makefile()`` returns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..errors import StreamTimeout

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from .stream import Stream

__all__ = ["StreamIO", "open_file"]


class StreamIO(io.RawIOBase):
    """A raw file over a stream. After a timeout it refuses to be read again, as ``socket.SocketIO`` does: buffered data may be lost."""

    def __init__(self, stream: Stream, mode: str) -> None:
        # First: the finaliser of a file that was refused closes it all the same.
        self._stream: Stream | None = None
        if not set(mode) <= set("rwb"):
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        super().__init__()
        self._stream = stream
        self._reading = "r" in mode or "w" not in mode
        self._writing = "w" in mode
        self._timed_out = False
        self.name = -1
        self.mode = mode if "b" in mode else mode + "b"

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """Bytes read, 0 at the end, None when a non-blocking stream has nothing."""
        self._check_open()
        if not self._reading:
            raise io.UnsupportedOperation("File not open for reading")
        if self._timed_out:
            raise OSError("cannot read from timed out object")
        assert self._stream is not None
        try:
            return self._stream.recv_into(buffer)
        except StreamTimeout:
            self._timed_out = True
            raise
        except BlockingIOError:
            return None

    def write(self, data: ReadableBuffer) -> int | None:
        """Bytes queued, None when a non-blocking stream takes nothing."""
        self._check_open()
        if not self._writing:
            raise io.UnsupportedOperation("File not open for writing")
        assert self._stream is not None
        try:
            return self._stream.send(data)
        except BlockingIOError:
            return None

    def readable(self) -> bool:
        self._check_open()
        return self._reading

    def writable(self) -> bool:
        self._check_open()
        return self._writing

    def seekable(self) -> bool:
        self._check_open()
        return False

    def fileno(self) -> int:
        self._check_open()
        assert self._stream is not None
        return self._stream.fileno()

    def close(self) -> None:
        """Release the stream; it closes when it was told to and this was its last file."""
        if self.closed:
            return
        super().close()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream._release_file()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")


def open_file(raw: StreamIO, mode: str, buffering: int | None, encoding: str | None, errors: str | None, newline: str | None) -> Any:
    """The file object that ``open()`` would make around ``raw``."""
    binary = "b" in mode
    if buffering is None or buffering < 0:
        buffering = io.DEFAULT_BUFFER_SIZE
    if buffering == 0:
        if not binary:
            raise ValueError("unbuffered streams must be binary")
        return raw
    buffer: Any
    if raw._reading and raw._writing:
        buffer = io.BufferedRWPair(raw, raw, buffering)
    elif raw._reading:
        buffer = io.BufferedReader(raw, buffering)
    else:
        buffer = io.BufferedWriter(raw, buffering)
    if binary:
        return buffer
    text = io.TextIOWrapper(buffer, encoding, errors, newline)
    text.mode = mode  # type: ignore[misc]
    return text
