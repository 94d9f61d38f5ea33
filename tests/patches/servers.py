"""The servers of the matrix: how each is started on a stage, in a folder of its own, and under which names it is offered."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from install_servers import PACKAGES, find_program, turned_off
from integration.tools import script_environment

HERE = Path(__file__).parent

# Seconds until a server accepts connections, on a machine that has other things to do. RabbitMQ takes 9 on an idle one.
READY_LIMIT = 45.0

# A free port may be taken by somebody else before the server binds it.
ATTEMPTS = 3

NAMES = ("web", "redis", "mqtt", "mariadb", "postgres", "socket", "mail", "files", "rpc", "s3", "rabbit", "docs")

# The best place first. A new process namespace ends all that is in it when its first process ends, however it ended.
_NAMESPACES = (
    ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    ("unshare", "--map-root-user", "--net"),
)


def find_namespace() -> tuple[str, ...]:
    """The command that runs another in a network namespace; nothing where the machine allows none."""
    if shutil.which("unshare") and shutil.which("ip"):
        for prefix in _NAMESPACES:
            probe = [*prefix, "ip", "link", "set", "lo", "up"]
            if subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode == 0:
                return prefix
    return ()


class Stage:
    """stage.py in a process of its own, and the servers on it."""

    def __init__(self) -> None:
        self.prefix = find_namespace()
        command = [*self.prefix, sys.executable, str(HERE / "stage.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment())
        # Of the servers that have been started: their ports, in the order of their services; and which of them are known to be ready.
        self._ports: dict[str, list[int]] = {}
        self._ready: set[str] = set()
        folder, host, port = self._read()
        # Of the stage, which takes it away at its end.
        self.folder = Path(folder)
        self.address = (host, port)
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        certificate = self.authority.issue_cert(*(f"{name}.mesh" for name in NAMES))
        certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        for index, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(str(self.folder / "chain.pem"), append=index > 0)
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "both.pem"))

    @property
    def isolated(self) -> bool:
        """Whether there is no network but loopback."""
        return bool(self.prefix)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the stage has ended with status {self._process.wait(10)}"
        return json.loads(line)

    def do(self, verb: str, **arguments: Any) -> Any:
        """Have a command carried out."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": verb, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        assert "error" not in answer, answer
        return answer["result"]

    def close(self) -> None:
        """End it, and everything on it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def begin(self, name: str) -> None:
        """Start a server, unless it is on its way, or not on this machine."""
        package, start, services = SERVERS[name]
        if name in self._ports or (package and (turned_off() or find_program(PACKAGES[package]) is None)):
            return
        self._log(name).parent.mkdir(exist_ok=True)
        ports = self.do("ports", count=len(services))
        command, environment = start(self, self._log(name).parent, *ports)
        self.do("start", name=name, command=command, log=str(self._log(name)), environment=environment)
        self._ports[name] = ports

    def have(self, name: str) -> None:
        """Have a server ready and offered. Skips the test when it is not on this machine, or fails it, in CI."""
        if name in self._ready:
            return
        package, _, services = SERVERS[name]
        if package:
            need(package)
        for _ in range(ATTEMPTS):
            self.begin(name)
            listening = [port for service, port in zip(services, self._ports[name]) if not service.endswith(":*")]
            if self.do("wait", name=name, ports=listening, limit=READY_LIMIT):
                break
            self.do("stop", name=name)
            del self._ports[name]
        else:
            raise AssertionError(f"{name} did not start: {self._log(name).read_text(errors='replace')[-3000:]}")
        for service, port in zip(services, self._ports[name]):
            self.do("offer", service=service.replace("*", str(port)), port=port)
        self._ready.add(name)

    def _log(self, name: str) -> Path:
        return self.folder / name / "log"

    def run(self, program: Path, limit: float = 55.0, **environment: str) -> str:
        """Run a client program, which has to end well; what it printed."""
        host, port = self.address
        command = [sys.executable, str(HERE / "launch.py"), host, str(port), str(program)]
        environment = {"CA_FILE": str(self.folder / "ca.pem"), "STAGE_FOLDER": str(self.folder), **environment}
        result = self.do("run", command=command, limit=limit, environment=environment)
        assert result["status"] == 0, result["output"]
        assert "Traceback" not in result["output"], result["output"]
        return str(result["output"])


@contextlib.contextmanager
def open_stage() -> Iterator[Stage]:
    """A stage that is closed at the end."""
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


def _environment() -> dict[str, str]:
    """What this machine says of proxies and of certificates is no part of the tests."""
    ours = re.compile(r"(.*_proxy|.*_CA_BUNDLE|SSL_CERT_.*|AWS_.*|PG.*)", re.IGNORECASE)
    return {name: value for name, value in script_environment().items() if not ours.fullmatch(name)}


def need(package: str) -> None:
    """Skip the test that calls it, or fail it in CI, when the server of a package is not on this machine."""
    if turned_off():
        pytest.skip("ASTRANET_TEST_SERVERS is off")
    if find_program(PACKAGES[package]) is None:
        reason = f"{PACKAGES[package]} is not installed: apt-get install --no-install-recommends {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _program(package: str) -> str:
    path = find_program(PACKAGES[package])
    assert path is not None
    return path


Started = tuple[list[str], dict[str, str]]


def _nginx(stage: Stage, folder: Path, plain: int, secure: int) -> Started:
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files" / "hello").write_text("hello")
    temporary = "\n".join(f"{kind}_temp_path {folder}/temporary;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 or stage.isolated else ""
    (folder / "nginx.conf").write_text(f"""
        daemon off; {user} worker_processes 1; pid {folder}/pid; error_log stderr;
        events {{ worker_connections 256; }}
        http {{
            access_log off; absolute_redirect off; client_max_body_size 0; sendfile on; tcp_nodelay on;
            {temporary}
            server {{
                listen 127.0.0.1:{plain};
                listen 127.0.0.1:{secure} ssl;
                ssl_certificate {stage.folder}/chain.pem;
                ssl_certificate_key {stage.folder}/key.pem;
                root {folder}/files;
                dav_methods PUT DELETE;
                location = /busy {{ return 503; }}
                location = /moved {{ return 302 /hello; }}
            }}
        }}
    """)
    return [_program("nginx-light"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")], {}


def _redis(stage: Stage, folder: Path, plain: int, secure: int) -> Started:
    command = [_program("redis-server"), "--bind", "127.0.0.1", "--port", plain, "--tls-port", secure, "--dir", folder]
    command += ["--tls-cert-file", stage.folder / "chain.pem", "--tls-key-file", stage.folder / "key.pem"]
    command += ["--tls-ca-cert-file", stage.folder / "ca.pem", "--tls-auth-clients", "no", "--save", "", "--appendonly", "no"]
    return list(map(str, command)), {}


def _mosquitto(stage: Stage, folder: Path, plain: int, secure: int) -> Started:
    (folder / "mosquitto.conf").write_text(f"""
user root
allow_anonymous true
listener {plain} 127.0.0.1
listener {secure} 127.0.0.1
certfile {stage.folder}/chain.pem
keyfile {stage.folder}/key.pem
""")
    return [_program("mosquitto"), "-c", str(folder / "mosquitto.conf")], {}


# Debian's scripts make the tables, but the one that makes a database of them is in a package that brings much else.
_SYSTEM_TABLES = ("mysql_system_tables.sql", "mysql_system_tables_data.sql")


def _mariadb(stage: Stage, folder: Path, port: int) -> Started:
    data = folder / "data"
    # Of an attempt that failed.
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    common = [_program("mariadb-server-core"), "--no-defaults", f"--datadir={data}", "--innodb-flush-method=nosync"]
    common += ["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=16M", "--user=root"]
    tables = "".join(Path("/usr/share/mysql", name).read_text() for name in _SYSTEM_TABLES)
    users = "CREATE USER anna@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON *.* TO anna@'%';\n"
    script = f"CREATE DATABASE mysql;\nCREATE DATABASE test;\nUSE mysql;\n{tables}\nFLUSH PRIVILEGES;\n{users}"
    subprocess.run([*common, "--bootstrap"], input=script, text=True, capture_output=True, check=True, timeout=READY_LIMIT)
    common += [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/sock", "--max-allowed-packet=64M"]
    return [*common, f"--ssl-cert={stage.folder}/chain.pem", f"--ssl-key={stage.folder}/key.pem"], {}


def _postgres(stage: Stage, folder: Path, port: int) -> Started:
    program = Path(_program("postgresql"))
    # It refuses to run as root.
    prefix: list[str] = []
    if "--map-root-user" in stage.prefix:
        prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    elif os.geteuid() == 0:
        for user in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(user)
                break
        prefix = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--pdeathsig=KILL"]
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    secret = folder / "secret"
    secret.write_text("secret")
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    initialise = [*prefix, str(program.parent / "initdb"), "-D", str(data), "-U", "anna", "--auth=scram-sha-256", f"--pwfile={secret}"]
    initialise += ["--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"]
    subprocess.run(initialise, capture_output=True, check=True, timeout=READY_LIMIT, cwd=folder)
    shutil.copy(stage.folder / "chain.pem", data / "server.crt")
    shutil.copy(stage.folder / "key.pem", data / "server.key")
    for name in ("server.crt", "server.key"):
        (data / name).chmod(0o600)
        shutil.chown(data / name, data.stat().st_uid)
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "ssl": "on"}
    return [*prefix, str(program), "-D", str(data), *(f"--{name}={value}" for name, value in settings.items())], {}


def _rabbit(stage: Stage, folder: Path, port: int) -> Started:
    node, names = stage.do("ports", count=2)
    environment = {
        "HOME": folder,
        "RABBITMQ_NODENAME": "astranet@localhost",
        "RABBITMQ_MNESIA_BASE": folder / "data",
        "RABBITMQ_LOG_BASE": folder / "logs",
        "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "plugins",
        "RABBITMQ_PID_FILE": folder / "pid",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": port,
        "RABBITMQ_DIST_PORT": node,
        "ERL_EPMD_PORT": names,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # One thread that does not spin: the machine has others to serve.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1 +sbwt none",
    }
    return [_program("rabbitmq-server")], {name: str(value) for name, value in environment.items()}


def _python(name: str) -> Callable[..., Started]:
    """One of the servers that are written in Python, with its own ports."""

    def start(stage: Stage, folder: Path, *ports: int) -> Started:
        return [sys.executable, str(HERE / "python_servers.py"), name, str(stage.folder), *map(str, ports)], {}

    return start


# Server: Debian's package if it is one, how it is started with one port per service, the services. ":*" is a port that the server opens
# later, and tells its clients (FTP does, for each transfer): it has the same number on the mesh.
SERVERS: dict[str, tuple[str, Callable[..., Started], tuple[str, ...]]] = {
    "flaky": ("", _python("flaky"), ("flaky:8080", "flaky:8443")),
    "redis": ("redis-server", _redis, ("redis:6379", "redis:6380")),
    "mosquitto": ("mosquitto", _mosquitto, ("mqtt:1883", "mqtt:8883")),
    "mariadb": ("mariadb-server-core", _mariadb, ("mariadb:3306",)),
    "postgres": ("postgresql", _postgres, ("postgres:5432",)),
    "rabbit": ("rabbitmq-server", _rabbit, ("rabbit:5672",)),
    "websocket": ("", _python("websocket"), ("socket:8000", "socket:8001")),
    "mail": ("", _python("mail"), ("mail:25", "mail:465")),
    "files": ("", _python("files"), ("files:21", "files:*", "files:*", "files:*")),
    "rpc": ("", _python("rpc"), ("rpc:8002",)),
    "s3": ("", _python("s3"), ("s3:8003",)),
    "forwarded": ("", _python("forwarded"), ("grpc:50051", "zmq:5555")),
    "nginx": ("nginx-light", _nginx, ("web:80", "web:443")),
}
