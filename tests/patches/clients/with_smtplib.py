"""smtplib: plain, STARTTLS (the socket is wrapped half-way), and TLS from the start."""

import os
import smtplib
import socket
import ssl
from pathlib import Path

import pytest
from control import accepted

TRUST = ssl.create_default_context(cafile=os.environ["CA_FILE"])


def check_letters():
    before = accepted("mail")
    body = "\r\n".join(["0123456789" * 7] * 20_000)
    for kind in ("plain", "starttls", "tls"):
        make = smtplib.SMTP_SSL if kind == "tls" else smtplib.SMTP
        more = {"context": TRUST} if kind == "tls" else {}
        with make("mail.mesh", 465 if kind == "tls" else 25, timeout=10, **more) as server:
            if kind == "starttls":
                server.starttls(context=TRUST)
            server.sendmail(kind, ["bert"], f"Subject: hello\r\n\r\n{body}\r\n")
        stored = Path(os.environ["STAGE_FOLDER"], f"letter-{kind}").read_bytes()
        assert stored == f"Subject: hello\r\n\r\n{body}\r\n".encode()
    assert accepted("mail") == before + 3


def check_errors():
    with pytest.raises(socket.gaierror, match="nobody"):
        smtplib.SMTP("nobody.mesh", timeout=10)
    with pytest.raises(ConnectionRefusedError):
        smtplib.SMTP("mail.mesh", 1, timeout=10)
