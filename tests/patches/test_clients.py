"""The matrix of client programs: unchanged libraries, patched by gevent and by ours, reach real servers by the name of a service.

Each program of ``clients/`` runs in a process of its own, beside the servers, where the machine allows it in a network of nothing but
loopback: an address that means something to the mesh only cannot leave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from servers import Stage, open_stage

CLIENTS = Path(__file__).parent / "clients"

# Program: the servers that it needs.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "botocore": ("s3",),
    "c_libraries": ("postgres", "forwarded"),
    "failures": ("nginx", "flaky"),
    "ftplib": ("files",),
    "geventhttpclient": ("nginx", "flaky"),
    "http_client": ("nginx", "flaky"),
    "httpx": ("nginx", "flaky"),
    "paho": ("mosquitto",),
    "pg8000": ("postgres",),
    "pymysql": ("mariadb",),
    "redis": ("redis",),
    "requests": ("nginx",),
    "smtplib": ("mail",),
    "urllib3": ("nginx", "flaky"),
    "websocket_client": ("websocket",),
    "websockets": ("websocket",),
    "xmlrpc": ("rpc",),
    # Last: RabbitMQ takes ten seconds to start, and has them while the others run.
    "pika": ("rabbit",),
}


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with open_stage() as opened:
        if any(item.name == "test_client[pika]" for item in request.session.items):
            opened.begin("rabbit")
        yield opened


@pytest.mark.timeout(120)
@pytest.mark.parametrize("program", PROGRAMS)
def test_client(stage: Stage, program: str) -> None:
    if program == "c_libraries" and not stage.isolated:
        pytest.skip(
            "no network namespace here: unshare is refused, and an address of the mesh in the hands of C code would leave the machine"
        )
    for name in PROGRAMS[program]:
        stage.have(name)
    print(stage.run(CLIENTS / f"with_{program}.py"))


def test_a_server_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tests are skipped, with a reason that helps; in CI they fail, unless somebody has said that there shall be none."""
    monkeypatch.setattr(servers, "find_program", lambda name: None)
    monkeypatch.delenv("ASTRANET_TEST_SERVERS", raising=False)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install --no-install-recommends nginx-light"):
        servers.need("nginx-light")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install --no-install-recommends nginx-light"):
        servers.need("nginx-light")
    monkeypatch.setenv("ASTRANET_TEST_SERVERS", "no")
    with pytest.raises(pytest.skip.Exception, match="ASTRANET_TEST_SERVERS"):
        servers.need("nginx-light")


def test_every_program_is_run() -> None:
    assert {path.stem.removeprefix("with_") for path in CLIENTS.glob("with_*.py")} == set(PROGRAMS)
