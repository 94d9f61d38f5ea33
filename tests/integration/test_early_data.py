"""Data that goes with the dial: before the answer to a node of our own kind, after it to one of the original."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from wire.peer import ACK, DATA, DIAL, FORCE_CLOSED, SYN, SYN_ACK, RawStream, u32

from astranet_gevent.errors import AstraNetError, ConfigError, DialRefusedError, LinkLostError

from .tools import DEADLINE, OWN_KIND, Bench, pattern, receive_exactly

REFUSED = 2


def dialling(bench: Bench, kind: bytes, data: bytes) -> tuple[Any, Any]:
    """A raw peer that offers a service, and a greenlet that dials it with data: its value is the stream, or the error."""
    node = bench.node()
    peer, _ = bench.raw(node, payload=kind)
    peer.announce("sink", 7)
    node.service_map.wait_for("sink", DEADLINE)
    return peer, bench.spawn(outcome, lambda: node.dial("sink", DEADLINE, data=data))


def outcome(dial: Callable[[], Any]) -> Any:
    try:
        return dial()
    except AstraNetError as error:
        return error


def dialling_one_of_two(bench: Bench, data: bytes) -> tuple[Any, Any, Any]:
    """Two raw peers with the same service, and a greenlet that dials the first of them, if it may."""
    node = bench.node()
    first, _ = bench.raw(node, payload=OWN_KIND)
    second, _ = bench.raw(node, payload=OWN_KIND, node_id=first.node_id + 1)
    for peer in (first, second):
        peer.announce("sink", 7)
        peer.fence()

    return first, second, bench.spawn(outcome, lambda: node.dial("sink", DEADLINE, prefer_first, data=data))


def prefer_first(candidates: Any) -> Any:
    return min(candidates, key=lambda server: server.node_id)


def test_data_is_there_before_the_answer(bench: Bench) -> None:
    peer, dial = dialling(bench, OWN_KIND, b"early")
    stream = peer.receive_dial()
    assert stream.expect_data(5) == b"early"
    assert not dial.ready()
    stream.send(SYN)
    with dial.get(timeout=DEADLINE) as dialled:
        dialled.sendall(b"late")
        assert stream.expect_data(4) == b"late"


def test_the_original_gets_it_once_it_has_accepted(bench: Bench) -> None:
    peer, dial = dialling(bench, b'{"RAddr":""}', b"early")
    stream = peer.receive_dial()
    peer.assert_quiet()
    stream.send(SYN)
    stream.expect(ACK)
    stream.send(SYN_ACK)
    assert stream.expect_data(5) == b"early"
    dial.get(timeout=DEADLINE).close()


def test_no_more_than_the_window_is_taken(bench: Bench) -> None:
    peer, dial = dialling(bench, OWN_KIND, pattern(65536))
    stream = peer.receive_dial()
    assert stream.expect_data(65536) == pattern(65536)
    stream.send(SYN)
    dial.get(timeout=DEADLINE).close()
    with pytest.raises(ConfigError, match="65537 bytes of data are more than go with a dial"):
        bench.node().dial("sink", 0, data=bytes(65537))


@pytest.mark.parametrize("size", [1, 16_384, 16_385, 65_536])
def test_between_two_nodes(bench: Bench, size: int) -> None:
    server, client = bench.node(), bench.node()
    bench.connect(server, client)
    bench.echo(server)
    client.service_map.wait_for("echo", DEADLINE)
    with client.dial("echo", DEADLINE, data=pattern(size)) as stream:
        assert receive_exactly(stream, size) == pattern(size)


def test_over_a_relay(bench: Bench) -> None:
    router, server, client = bench.node(role="router"), bench.node(), bench.node(follow=False)
    bench.connect(router, server)
    bench.connect(router, client)
    bench.echo(server)
    for data in (b"first", pattern(50_000)):
        with client.dial("echo", DEADLINE, data=data) as stream:
            assert receive_exactly(stream, len(data)) == data


def test_who_refuses_has_not_read_it_and_another_gets_it(bench: Bench) -> None:
    first, second, dial = dialling_one_of_two(bench, b"hello")
    first.receive_dial().send(FORCE_CLOSED, u32(REFUSED) + b"no")
    stream = second.receive_dial()
    assert stream.expect_data(5) == b"hello"
    stream.send(SYN)
    dial.get(timeout=DEADLINE).close()


def test_refused_by_all(bench: Bench) -> None:
    peer, dial = dialling(bench, OWN_KIND, b"early")
    peer.receive_dial().send(FORCE_CLOSED, u32(REFUSED) + b"no")
    assert isinstance(dial.get(timeout=DEADLINE), DialRefusedError)


def test_what_may_have_arrived_is_not_sent_again(bench: Bench) -> None:
    first, second, dial = dialling_one_of_two(bench, b"once")
    assert first.receive_dial().expect_data(4) == b"once"
    first.close()
    assert isinstance(dial.get(timeout=DEADLINE), LinkLostError)
    second.assert_quiet()
    assert not [frame for frame in second.received if frame.cmd in (DIAL, DATA)]


def test_what_was_being_sent_after_the_answer_is_not_sent_again_either(bench: Bench, eventually: Callable[..., None]) -> None:
    """A node of the original gets the data once it has accepted, and is lost while that waits for room in the queue."""
    node = bench.node(queue_bytes=65536)
    first, link = bench.raw(node)
    second, _ = bench.raw(node, node_id=first.node_id + 1)
    for peer in (first, second):
        peer.announce("sink", 7)
        peer.fence()
    opened = []
    for _ in range(12):
        dialling = bench.spawn(node.dial, (first.node_id, 7), DEADLINE)
        answered = first.accept()
        opened.append(dialling.get(timeout=DEADLINE))
    # More than the connection holds, in small frames, of which no other stream's may be queued then.
    for stream in opened:
        bench.spawn(outcome, partial(send_small, stream))
    eventually(lambda: not link.queue.small_room, "the queue is full")
    dial = bench.spawn(outcome, lambda: node.dial("sink", DEADLINE, prefer_first, data=b"once"))
    eventually(lambda: bool(link.dialing), "the dial is under way")
    # It is not read either, so nothing but the order of ports tells which it is.
    port = answered.rport + 1
    RawStream(first, port, 7).send(SYN)
    eventually(lambda: any(stream.getsockname()[1] == port for stream in link.blocked), "the data waits for room")
    first.close()
    assert isinstance(dial.get(timeout=DEADLINE), LinkLostError)
    second.assert_quiet()


def send_small(stream: Any) -> None:
    for _ in range(8):
        stream.sendall(bytes(8000))


def test_without_data_another_server_is_tried(bench: Bench) -> None:
    """The same, but for the data: nothing can have arrived."""
    first, second, dial = dialling_one_of_two(bench, b"")
    first.receive_dial()
    first.close()
    second.receive_dial().send(SYN)
    dial.get(timeout=DEADLINE).close()


def test_nothing_listens_there(bench: Bench) -> None:
    server, client = bench.node(), bench.node()
    bench.connect(server, client)
    with pytest.raises(DialRefusedError):
        client.dial((server.node_id, 9), DEADLINE, data=b"for nobody")


def test_what_is_no_data_is_refused(bench: Bench) -> None:
    with pytest.raises(TypeError):
        bench.node().dial("sink", 0, data="text")  # type: ignore[arg-type]
