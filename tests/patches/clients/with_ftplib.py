"""ftplib in passive mode: each transfer is a connection of its own, to a port that the server names."""

import ftplib
import io
import os
import ssl

from control import accepted


def check_transfers():
    context = ssl.create_default_context(cafile=os.environ["CA_FILE"])
    for make in (ftplib.FTP, lambda **more: ftplib.FTP_TLS(context=context, **more)):
        before = accepted("files")
        with make(timeout=10) as server:
            server.connect("files.mesh")
            server.login("anna", "secret")
            if isinstance(server, ftplib.FTP_TLS):
                server.prot_p()
            body = os.urandom(2_000_000)
            server.storbinary("STOR body", io.BytesIO(body))
            assert server.size("body") == len(body)
            back = io.BytesIO()
            server.retrbinary("RETR body", back.write)
            assert back.getvalue() == body
            assert server.nlst() == ["body"]
            assert [name for name, _ in server.mlsd()] == ["body"]
            server.delete("body")
        assert accepted("files") == before + 5
