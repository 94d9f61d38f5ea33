"""pg8000 against PostgreSQL: queries, a large value, notifications, a connection that was lost, TLS."""

import os
import ssl

import pg8000.dbapi
import pg8000.native
import pytest
from control import accepted, cut


def connect(**more):
    return pg8000.native.Connection("anna", host="postgres.mesh", password="secret", database="postgres", timeout=10, **more)


def check_queries():
    before = accepted("postgres")
    with connect(ssl_context=False) as connection:
        body = os.urandom(5_000_000)
        assert connection.run("SELECT CAST(:body AS bytea)", body=body) == [[body]]
        connection.run("CREATE TEMPORARY TABLE numbers (number INT)")
        connection.run("INSERT INTO numbers SELECT generate_series(1, 1000)")
        assert connection.run("SELECT SUM(number) FROM numbers") == [[500500]]
        connection.run("LISTEN news")
        connection.run("NOTIFY news, 'one'")
        assert [payload for _, _, payload in connection.notifications] == ["one"]
    assert accepted("postgres") == before + 1


def check_tls():
    with connect(ssl_context=ssl.create_default_context(cafile=os.environ["CA_FILE"])) as connection:
        assert connection.run("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [[True]]


def check_errors():
    connection = connect()
    assert cut("postgres", "reset") == 1
    with pytest.raises(pg8000.exceptions.InterfaceError):
        connection.run("SELECT 1")
    with pytest.raises(pg8000.exceptions.InterfaceError, match="nobody"):
        pg8000.dbapi.connect("anna", host="nobody.mesh")
    with pytest.raises(pg8000.exceptions.InterfaceError, match=r"create a connection"):
        pg8000.dbapi.connect("anna", host="postgres.mesh", port=1)
