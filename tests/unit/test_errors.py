"""Errors: the standard library's class beside ours, the right errno and text, and that they pickle."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket

import pytest

import astranet_gevent
from astranet_gevent import errors
from astranet_gevent.errors import AstraNetError
from astranet_gevent.protocol.link import LinkTimeoutError

# (class, what code written for the standard library catches, errno)
KINDS = [
    ("AstraNetError", Exception, None),
    ("ConcurrentUseError", RuntimeError, None),
    ("ConfigError", ValueError, None),
    ("DialRefusedError", ConnectionRefusedError, errno.ECONNREFUSED),
    ("DialTimeout", TimeoutError, None),
    ("ForkedError", OSError, errno.EBADF),
    ("LimitError", OSError, errno.EMFILE),
    ("LinkLostError", ConnectionResetError, errno.ECONNRESET),
    ("LocalProtocolError", Exception, None),
    ("NameInUseError", OSError, errno.EADDRINUSE),
    ("NoRouteError", OSError, errno.EHOSTUNREACH),
    ("PeeringTimeout", TimeoutError, None),
    ("RemoteProtocolError", Exception, None),
    ("SelfJoinError", OSError, errno.EADDRNOTAVAIL),
    ("ServiceNotFoundError", socket.gaierror, socket.EAI_NONAME),
    ("StreamBrokenPipeError", BrokenPipeError, errno.EPIPE),
    ("StreamClosedError", OSError, errno.EBADF),
    ("StreamNotConnectedError", OSError, errno.ENOTCONN),
    ("StreamResetError", ConnectionResetError, errno.ECONNRESET),
    ("StreamTimeout", TimeoutError, None),
    ("StreamWouldBlockError", BlockingIOError, errno.EAGAIN),
    ("WrongThreadError", RuntimeError, None),
]

every_kind = pytest.mark.parametrize(("name", "stdlib", "number"), KINDS)


def test_the_table_above_is_complete() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__}
    public = {name for name in defined if not name.startswith("_")}
    assert public == {name for name, _, _ in KINDS} == set(errors.__all__)
    assert all(getattr(astranet_gevent, name) is getattr(errors, name) for name in public)


@every_kind
def test_is_ours_and_the_standard_librarys(name: str, stdlib: type[Exception], number: int | None) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, AstraNetError)
    assert issubclass(kind, stdlib)
    assert isinstance(kind("text"), OSError) == issubclass(stdlib, OSError)


@every_kind
def test_errno_and_text(name: str, stdlib: type[Exception], number: int | None) -> None:
    kind = getattr(errors, name)
    error = kind("port 7 of node x")
    assert "port 7 of node x" in str(error)
    assert getattr(error, "errno", None) == number
    if number is not None:
        assert error.strerror == "port 7 of node x"
        assert error.args == (number, "port 7 of node x")


@every_kind
def test_text_without_a_message(name: str, stdlib: type[Exception], number: int | None) -> None:
    error = getattr(errors, name)()
    if issubclass(stdlib, TimeoutError):
        assert error.args == ("timed out",)
    elif stdlib is socket.gaierror:
        assert error.strerror
    elif number is not None:
        assert str(error) == f"[Errno {number}] {os.strerror(number)}"


@every_kind
@pytest.mark.parametrize("args", [(), ("what happened",)])
def test_survives_pickle_and_copy(name: str, stdlib: type[Exception], number: int | None, args: tuple[str, ...]) -> None:
    error = getattr(errors, name)(*args)
    clones = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for clone in (*clones, copy.copy(error), copy.deepcopy(error)):
        assert type(clone) is type(error)
        assert clone.args == error.args
        assert str(clone) == str(error)
        assert getattr(clone, "errno", None) == number


def test_who_lost_a_link_catches_it_as_a_reset() -> None:
    assert issubclass(errors.LinkLostError, errors.StreamResetError)


def test_the_errors_of_the_core_are_the_peers_fault() -> None:
    error = pickle.loads(pickle.dumps(LinkTimeoutError("nothing received")))
    assert isinstance(error, errors.RemoteProtocolError)
    assert str(error) == "nothing received"
