"""pika against RabbitMQ: a blocking connection, which connects without waiting and polls its descriptor."""

import os
import socket

import pika
import pytest
from control import accepted, cut


def connect(**more):
    return pika.BlockingConnection(pika.ConnectionParameters("rabbit.mesh", heartbeat=5, blocked_connection_timeout=10, **more))


def check_publish_and_consume():
    before = accepted("rabbit")
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("jobs")
    bodies = [b"short", os.urandom(3_000_000)]
    for body in bodies:
        channel.basic_publish("", "jobs", body)
    found = []
    for _, _, body in channel.consume("jobs", auto_ack=True, inactivity_timeout=10):
        found.append(body)
        if len(found) == len(bodies):
            break
    assert found == bodies
    connection.process_data_events(time_limit=0.2)
    connection.close()
    assert accepted("rabbit") == before + 1


def check_a_lost_connection():
    connection = connect()
    channel = connection.channel()
    assert cut("rabbit", "reset") == 1
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        channel.queue_declare("jobs")
    connect().close()


def check_errors():
    with pytest.raises(socket.gaierror, match="nobody"):
        pika.BlockingConnection(pika.ConnectionParameters("nobody.mesh"))
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.ConnectionParameters("rabbit.mesh", port=1))
