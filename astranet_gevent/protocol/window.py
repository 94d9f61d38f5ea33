"""Flow control arithmetic: what may still be sent, what may still arrive, and when credit goes back.

Every stream has 64 KiB in each direction to begin with. The receiver gives credit (REWIND) only for bytes that the application took, half a
window at a time, 256 KiB of a large one. Between peers of our own kind a sender that the window holds back says so (BLOCKED), and the
receiver then doubles the window (WND_SIZE) with the next credit, that is when the application has read. A receiver cannot tell a held-back
sender from a slow one by itself: on a long path the second half of a window is still under way when the first has been read.
"""

from __future__ import annotations

from typing import Final

__all__ = ["INITIAL_WINDOW", "LARGE_WINDOW", "WindowBudget", "next_window"]

# Fixed by the original's wire: it assumes this much without asking.
INITIAL_WINDOW: Final = 65536

# Beyond this a window grows only for those who read half of it within a round trip: whoever reads more slowly would be sent no more,
# and have more waiting. Over 10 ms one stream has three quarters of TCP's rate with 4 MiB, all of it with 8.
LARGE_WINDOW: Final = 4 * 1024 * 1024


class WindowBudget:
    """Bytes of receive window granted beyond the initial ones. ``take`` refuses what would pass the limit; nothing is ever queued."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0

    def take(self, amount: int, limit: int) -> bool:
        """Reserve ``amount`` bytes unless that passes ``limit``."""
        if self.used + amount > limit:
            return False
        self.used += amount
        return True

    def give(self, amount: int) -> None:
        """Return what was taken."""
        self.used -= amount


def next_window(window: int, maximum: int) -> int:
    """The window to grant when the application took half of one that held the sender back: doubled, up to ``maximum``."""
    return min(window * 2, maximum)
