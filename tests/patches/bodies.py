"""Large bodies for the HTTP clients of the matrix, and what must have become of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SIZE = 100_000_000

HELLO = b"hello"


def move_bodies(put: Callable[[str, bytes], Any], get: Callable[[str], Iterable[bytes]], size: int = SIZE) -> None:
    """Send a body, see that the server has stored it as it was, and get it back in parts."""
    body = os.urandom(size)
    digest = hashlib.sha256(body).hexdigest()
    name = f"body-{os.getpid()}"
    put(f"/{name}", body)
    del body
    stored = Path(os.environ["STAGE_FOLDER"], "nginx", "files", name)
    with stored.open("rb") as file:
        assert _digest(iter(lambda: file.read(1 << 20), b"")) == digest
    assert _digest(get(f"/{name}")) == digest
    stored.unlink()


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
