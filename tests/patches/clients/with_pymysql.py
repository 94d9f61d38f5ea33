"""PyMySQL against MariaDB: queries, a large value, a connection that was lost, TLS."""

import os

import gevent
import pymysql
import pytest
from control import accepted, cut


def connect(**more):
    return pymysql.connect(host="mariadb.mesh", user="anna", password="secret", database="test", connect_timeout=10, **more)


def ask(connection, query, *arguments):
    with connection.cursor() as cursor:
        cursor.execute(query, arguments)
        return cursor.fetchall()


def check_queries():
    before = accepted("mariadb")
    with connect() as connection:
        body = os.urandom(10_000_000)
        assert ask(connection, "SELECT %s, SHA2(%s, 256) = SHA2(_binary %s, 256)", 1, body, body)[0] == (1, 1)
        ask(connection, "CREATE TABLE numbers (number INT)")
        ask(connection, "INSERT INTO numbers VALUES (1), (2), (3)")
        connection.commit()
        assert ask(connection, "SELECT SUM(number) FROM numbers") == ((6,),)
        assert ask(connection, "SELECT _binary %s", body) == ((body,),)
    assert accepted("mariadb") == before + 1


def check_greenlets_side_by_side():
    def count(number):
        with connect() as connection:
            return ask(connection, "SELECT SLEEP(0.5), %s", number)[0][1]

    tasks = [gevent.spawn(count, number) for number in range(10)]
    with gevent.Timeout(4.5):
        assert [task.get() for task in tasks] == list(range(10))


def check_a_lost_connection():
    connection = connect()
    assert cut("mariadb", "reset") == 1
    with pytest.raises(pymysql.OperationalError, match="reset by peer"):
        ask(connection, "SELECT 1")
    connection.ping(reconnect=True)
    assert ask(connection, "SELECT 1") == ((1,),)
    connection.close()
    with connect(read_timeout=1) as connection, pytest.raises(pymysql.OperationalError, match="timed out"):
        ask(connection, "SELECT SLEEP(10)")


def check_tls():
    with connect(ssl_ca=os.environ["CA_FILE"], ssl_verify_cert=True, ssl_verify_identity=True) as connection:
        assert ask(connection, "SHOW STATUS LIKE 'Ssl_version'")[0][1].startswith("TLS")


def check_errors():
    with pytest.raises(pymysql.OperationalError, match="nobody"):
        pymysql.connect(host="nobody.mesh", connect_timeout=10)
    with pytest.raises(pymysql.OperationalError, match="not with 1"):
        pymysql.connect(host="mariadb.mesh", port=1, connect_timeout=10)
    with pytest.raises(pymysql.OperationalError, match="denied"):
        pymysql.connect(host="mariadb.mesh", user="anna", password="wrong", connect_timeout=10)
