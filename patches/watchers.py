"""What gevent waits with: watchers that look like an event loop's, over a stream or a listener instead of a descriptor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from astranet_gevent import Listener

__all__ = ["AcceptWatcher", "ReadWatcher", "WriteWatcher"]


class Holder(Protocol):
    """A socket with a stream, or with a dial that becomes one."""

    @property
    def source(self) -> Any: ...


class Bound(Protocol):
    """A socket that may listen."""

    listener: Listener | None


class _Watcher:
    """Calls back once per start, or again for as long as there is a reason to: gevent stops what it no longer wants."""

    __slots__ = ("args", "callback", "ref")

    def __init__(self) -> None:
        self.callback: Callable[..., Any] | None = None
        self.args: tuple[Any, ...] | None = None
        self.ref = True

    @property
    def active(self) -> bool:
        """Whether it has been started and not stopped."""
        return self.callback is not None

    @property
    def pending(self) -> bool:
        """Never: what is due is done at once."""
        return False

    def start(self, callback: Callable[..., Any], *args: Any, **_: Any) -> None:
        """Have ``callback(*args)`` called in the hub when there is a reason to."""
        self.callback, self.args = callback, args
        self._arm()

    def stop(self) -> None:
        """Call back no more."""
        self.callback = self.args = None
        self._disarm()

    close = stop

    def switch(self) -> None:
        """There is a reason: called in the hub, as a waiting greenlet would be switched to."""
        callback, args = self.callback, self.args
        if callback is None:
            return
        callback(*(args or ()))
        if self.callback is callback:
            self._arm()

    def _arm(self) -> None:
        raise NotImplementedError

    def _disarm(self) -> None:
        raise NotImplementedError


class ReadWatcher(_Watcher):
    """Of a connected socket, for reading."""

    __slots__ = ("_holder",)

    def __init__(self, holder: Holder) -> None:
        super().__init__()
        self._holder = holder

    def _arm(self) -> None:
        self._holder.source.wake_when_readable(self)

    def _disarm(self) -> None:
        self._holder.source.forget_reader(self)


class WriteWatcher(_Watcher):
    """Of a connected socket, for writing."""

    __slots__ = ("_holder",)

    def __init__(self, holder: Holder) -> None:
        super().__init__()
        self._holder = holder

    def _arm(self) -> None:
        self._holder.source.wake_when_writable(self)

    def _disarm(self) -> None:
        self._holder.source.forget_writer(self)


class AcceptWatcher(_Watcher):
    """Of a socket that is bound to a service: for accepting once it listens, before that for nothing."""

    __slots__ = ("_bound",)

    def __init__(self, bound: Bound | None) -> None:
        super().__init__()
        self._bound = bound

    def _arm(self) -> None:
        if self._bound is not None and self._bound.listener is not None:
            self._bound.listener.on_ready(self.switch)

    def _disarm(self) -> None:
        if self._bound is not None and self._bound.listener is not None:
            self._bound.listener.on_ready(None)
