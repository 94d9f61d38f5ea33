"""redis-py: its pool, health checks, publish and subscribe, blocking commands, TLS."""

import os
import time

import gevent
import pytest
import redis
from control import accepted, cut

CA = os.environ["CA_FILE"]


def check_connections_are_reused():
    before = accepted("redis")
    with redis.Redis("redis.mesh", socket_timeout=10) as client:
        value = os.urandom(5_000_000)
        for _ in range(3):
            client.set("key", value)
            assert client.get("key") == value
        with client.pipeline() as pipeline:
            for number in range(500):
                pipeline.rpush("list", number)
            assert pipeline.execute()[-1] == 500
        assert accepted("redis") == before + 1


def check_a_connection_that_was_ended():
    for how in ("end", "reset"):
        before = accepted("redis")
        with redis.Redis("redis.mesh", socket_timeout=10) as client:
            assert client.ping()
            assert cut("redis", how) == 1
            assert client.ping()
            # By the server itself.
            with redis.Redis("redis.mesh", socket_timeout=10) as other:
                assert other.client_kill_filter(_type="normal", skipme=True) == 1
            assert client.ping()
        assert accepted("redis") == before + 4


def check_a_pool_under_greenlets():
    before = accepted("redis")
    pool = redis.BlockingConnectionPool(host="redis.mesh", max_connections=4, timeout=10, socket_timeout=10)
    client = redis.Redis(connection_pool=pool)
    client.set("count", 0)
    gevent.joinall([gevent.spawn(client.incr, "count") for _ in range(100)], timeout=10, raise_error=True)
    assert client.get("count") == b"100"
    assert 1 <= accepted("redis") - before <= 4
    pool.disconnect()


def check_health_checks():
    before = accepted("redis")
    with redis.Redis("redis.mesh", socket_timeout=10, health_check_interval=0.05) as client:
        commands = client.info("commandstats")
        for _ in range(3):
            gevent.sleep(0.06)
            client.echo("x")
        after = client.info("commandstats")
        assert after["cmdstat_ping"]["calls"] - commands.get("cmdstat_ping", {"calls": 0})["calls"] >= 3
    assert accepted("redis") == before + 1


def check_publish_and_subscribe():
    with redis.Redis("redis.mesh", socket_timeout=10, health_check_interval=1) as client, client.pubsub() as channel:
        channel.subscribe("news")
        assert channel.get_message(timeout=10)["type"] == "subscribe"
        started = time.monotonic()
        assert channel.get_message(timeout=0.2) is None
        assert 0.15 < time.monotonic() - started < 5
        publishing = gevent.spawn_later(0.05, client.publish, "news", b"one")
        message = channel.get_message(timeout=10)
        publishing.get(timeout=10)
        assert (message["type"], message["data"]) == ("message", b"one")
        # In a thread of its own, which is a greenlet here.
        channel.unsubscribe("news")
        assert channel.get_message(timeout=10)["type"] == "unsubscribe"
        heard = []
        channel.subscribe(more=lambda message: heard.append(message["data"]))
        thread = channel.run_in_thread(sleep_time=0.01)
        deadline = time.monotonic() + 10
        while client.publish("more", b"two") == 0 or not heard:
            assert time.monotonic() < deadline
            gevent.sleep(0.01)
        thread.stop()
        thread.join(10)
        assert set(heard) == {b"two"}


def check_blocking_commands():
    with redis.Redis("redis.mesh", socket_timeout=10) as client:
        pushing = gevent.spawn_later(0.1, client.rpush, "queue", b"job")
        assert tuple(client.blpop("queue", timeout=5)) == (b"queue", b"job")
        pushing.get(timeout=10)
    with redis.Redis("redis.mesh", socket_timeout=0.2, retry=None) as client, pytest.raises(redis.TimeoutError):
        client.blpop("queue", timeout=5)


def check_tls():
    with redis.Redis("redis.mesh", 6380, ssl=True, ssl_ca_certs=CA, ssl_check_hostname=True, socket_timeout=10) as client:
        value = os.urandom(3_000_000)
        assert client.set("secret", value)
        assert client.get("secret") == value
    with (
        redis.Redis("redis.mesh", 6380, ssl=True, socket_timeout=10, retry=None) as client,
        pytest.raises(redis.ConnectionError, match="CERT"),
    ):
        client.ping()


def check_errors():
    for host, port, message in (("nobody.mesh", 6379, "nobody"), ("redis.mesh", 1, "not with 1")):
        with redis.Redis(host, port, retry=None) as client, pytest.raises(redis.ConnectionError, match=message):
            client.ping()
