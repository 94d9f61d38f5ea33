"""paho-mqtt: its loop in a thread, every quality of service, reconnecting, TLS."""

import os

import pytest
from control import cut
from gevent.event import Event
from gevent.queue import Queue
from paho.mqtt import client as mqtt


class Heard(mqtt.Client):
    """A client that notes what it hears."""

    def __init__(self, **more):
        super().__init__(mqtt.CallbackAPIVersion.VERSION2, **more)
        self.messages = Queue()
        self.subscribed = Event()
        self.on_connect = lambda client, *_: client.subscribe("news/#", qos=2)
        self.on_subscribe = lambda *_: self.subscribed.set()
        self.on_message = lambda client, data, message: self.messages.put((message.topic, message.qos, message.payload))


def exchange(client, port):
    client.connect("mqtt.mesh", port, keepalive=5)
    client.loop_start()
    assert client.subscribed.wait(10)
    body = os.urandom(3_000_000)
    for qos in (0, 1, 2):
        for payload in (b"short", body):
            sent = client.publish(f"news/{qos}", payload, qos=qos)
            sent.wait_for_publish(10)
            assert client.messages.get(timeout=10) == (f"news/{qos}", qos, payload)


def finish(client):
    client.disconnect()
    client.loop_stop()


def check_publish_and_subscribe():
    client = Heard()
    exchange(client, 1883)
    finish(client)


def check_reconnecting():
    client = Heard()
    client.reconnect_delay_set(1, 1)
    exchange(client, 1883)
    client.subscribed.clear()
    assert cut("mqtt", "reset") == 1
    assert client.subscribed.wait(10)
    client.publish("news/again", b"again")
    assert client.messages.get(timeout=10) == ("news/again", 0, b"again")
    finish(client)


def check_tls():
    client = Heard()
    client.tls_set(ca_certs=os.environ["CA_FILE"])
    exchange(client, 8883)
    finish(client)


def check_a_loop_by_hand():
    client = Heard()
    client.connect("mqtt.mesh", 1883)
    while not client.subscribed.is_set():
        assert client.loop(timeout=10) == mqtt.MQTT_ERR_SUCCESS
    client.publish("news/hand", b"hand")
    while client.messages.empty():
        assert client.loop(timeout=10) == mqtt.MQTT_ERR_SUCCESS
    client.disconnect()


def check_errors():
    with pytest.raises(OSError, match="nobody"):
        Heard().connect("nobody.mesh")
    with pytest.raises(ConnectionRefusedError):
        Heard().connect("mqtt.mesh", 1)
