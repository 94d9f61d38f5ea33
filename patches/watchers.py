"""What gevent waits with: watchers that look like an event loop's, over a stream or a listener instead of a descriptor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Watcher"]


class Watcher:
    """Calls back once per start, or again for as long as there is a reason to: gevent stops what it no longer wants.

    ``arm(watcher)`` has to see to it that ``switch()`` is called, in the hub, when there is a reason; ``disarm(watcher)`` takes that back.
    ``ready()`` says whether there still is one: gevent's ``send`` returns 0 when it was woken for nothing, which programs take for the end.
    """

    __slots__ = ("_arm", "_disarm", "_ready", "args", "callback", "ref")

    def __init__(self, arm: Callable[[Watcher], None], disarm: Callable[[Watcher], None], ready: Callable[[], bool] | None = None) -> None:
        self.callback: Callable[..., Any] | None = None
        self.args: tuple[Any, ...] | None = None
        self.ref = True
        self._arm = arm
        self._disarm = disarm
        self._ready = ready

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
        self._arm(self)

    def stop(self) -> None:
        """Call back no more."""
        self.callback = self.args = None
        self._disarm(self)

    close = stop

    def switch(self) -> None:
        """There is a reason: called in the hub, as a waiting greenlet would be switched to."""
        callback, args = self.callback, self.args
        if callback is None:
            return
        if self._ready is not None and not self._ready():
            self._arm(self)
            return
        callback(*(args or ()))
        if self.callback is callback:
            self._arm(self)
