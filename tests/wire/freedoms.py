"""Where our node may differ from a recorded Go node, and why.

Each rule is a function; its docstring is the reason. A frame that was recorded and does not come
must be excused by a rule of MISSING, one that comes and was not recorded by a rule of EXTRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .peer import (
    DIAL,
    DISCOVER,
    FIN1,
    FIN2,
    FOLLOW,
    HELLO,
    NO_SERVICE,
    PING,
    RESET,
    REWIND,
    SERVICE,
    STREAM_COMMANDS,
    SYN,
    Frame,
    read_u32,
)

if TYPE_CHECKING:
    from .replay import Replay, Side

# The original's built-in HTTP server.
IPC_PORT = 1


def _from_us(replay: Replay, frame: Frame) -> bool:
    return frame.local == replay.recorded_id


def no_ipc_service(replay: Replay, side: Side, frame: Frame) -> bool:
    """Nothing depends on the original's service ipc.<id> on port 1, a debug server for everybody."""
    return _from_us(replay, frame) and frame.lport == IPC_PORT and frame.cmd in STREAM_COMMANDS | {SERVICE, NO_SERVICE}


def no_discover(replay: Replay, side: Side, frame: Frame) -> bool:
    """DISCOVER asks for addresses to follow. The replayed nodes do not follow, so need not ask."""
    return frame.cmd == DISCOVER and _from_us(replay, frame)


def hairpin(replay: Replay, side: Side, frame: Frame) -> bool:
    """What a node addresses to itself: the original's router sends it back, ours need not."""
    return 0 != frame.local == frame.remote != replay.recorded_id


def follow_not_wanted(replay: Replay, side: Side, frame: Frame) -> bool:
    """A node advertises its addresses only where more parallel links are wanted (rule 12)."""
    return frame.cmd == FOLLOW and _from_us(replay, frame) and not replay.addresses


def ping_by_timer(replay: Replay, side: Side, frame: Frame) -> bool:
    """Whether a PING is due depends on times that a replay does not keep."""
    return frame.cmd == PING


def credit_in_lumps(replay: Replay, side: Side, frame: Frame) -> bool:
    """Credit goes back for half a window at a time, not for each read; never more than was read."""
    if frame.cmd != REWIND or not _from_us(replay, frame):
        return False
    recorded = [item for item in side.expected if item.cmd == REWIND and item.key == frame.key]
    return read_u32(frame) <= sum(read_u32(item) for item in recorded)


def stream_is_broken(replay: Replay, side: Side, frame: Frame) -> bool:
    """RESET or a lost link breaks every stream to that node at once: nothing more is sent on it.

    The original sends FIN2 on streams it dialled, and goes on writing on those it accepted.
    """
    return frame.cmd in STREAM_COMMANDS and frame.remote in replay.dead_hosts


def dial_given_up(replay: Replay, side: Side, frame: Frame) -> bool:
    """The original's FIN2 to nobody (0:0), for a dial closed before SYN, tells nobody anything."""
    return frame.cmd == FIN2 and frame.remote == 0


def not_reflected(replay: Replay, side: Side, frame: Frame) -> bool:
    """The original's router announces services also to where they came from; nobody needs it."""
    return frame.cmd in (SERVICE, NO_SERVICE) and frame.local == side.peer.node_id


def announced_once(replay: Replay, side: Side, frame: Frame) -> bool:
    """The original's router may announce the same service several times on one link."""
    return frame.cmd in (SERVICE, NO_SERVICE) and frame in replay.got(side)


MISSING = (
    no_ipc_service,
    no_discover,
    hairpin,
    follow_not_wanted,
    ping_by_timer,
    credit_in_lumps,
    stream_is_broken,
    dial_given_up,
    not_reflected,
    announced_once,
)


def closed_for_reading(replay: Replay, side: Side, frame: Frame) -> bool:
    """close() sends a Go peer FIN2 and then FIN1: its writes end instead of hanging."""
    return frame.cmd == FIN1 and frame._replace(cmd=FIN2) in replay.got(side)


def refusal(replay: Replay, side: Side, frame: Frame) -> bool:
    """A dial to a port without a listener is refused at once: SYN, FIN2, FIN1 to a Go dialler.

    Its reads and writes then end; the original leaves it hanging.
    """
    dialled = Frame(DIAL, frame.local, frame.remote, frame.lport, frame.rport) in side.sent
    unbound = frame.lport not in replay.ports
    return frame.cmd in (SYN, FIN2, FIN1) and dialled and unbound


def hello_over_a_relay(replay: Replay, side: Side, frame: Frame) -> bool:
    """What we understand, told once to each node behind a relay. A Go node ignores the command."""
    return frame.cmd == HELLO and _from_us(replay, frame) and frame.remote != side.peer.node_id


def passed_on(replay: Replay, side: Side, frame: Frame) -> bool:
    """A relay passes on what another peer sends; some recordings lack frames that took another link."""
    others = (other for other in replay.sides.values() if other is not side)
    return frame.remote == side.peer.node_id and any(frame in other.sent for other in others)


def unreachable(replay: Replay, side: Side, frame: Frame) -> bool:
    """What a relay cannot pass on it answers with RESET; the original drops it."""
    return frame.cmd == RESET and any((frame.local, frame.remote) == (item.remote, item.local) for item in side.sent)


EXTRA = (
    hairpin,
    passed_on,
    unreachable,
    hello_over_a_relay,
    ping_by_timer,
    credit_in_lumps,
    closed_for_reading,
    refusal,
)


def may_be_missing(replay: Replay, side: Side, frame: Frame) -> bool:
    """Whether a recorded frame of the replaced node need not come from ours."""
    return any(rule(replay, side, frame) for rule in MISSING)


def may_be_extra(replay: Replay, side: Side, frame: Frame) -> bool:
    """Whether our node may send a frame that was not recorded."""
    return any(rule(replay, side, frame) for rule in EXTRA)
