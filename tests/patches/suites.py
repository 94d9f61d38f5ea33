"""Which modules are run on both carriers, which tests are left out, and which differences are meant."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DIFFERENCES", "LEFT_OUT", "MODULES", "QUICK", "Difference"]

#: The interpreter's own tests of what works over TCP. Some are not there in every version.
INTERPRETER = (
    "test.test_ssl",
    "test.test_socket",
    "test.test_httplib",
    "test.test_httpservers",
    "test.test_ftplib",
    "test.test_imaplib",
    "test.test_logging",
    "test.test_poplib",
    "test.test_smtplib",
    "test.test_socketserver",
    "test.test_urllib2_localnet",
    "test.test_wsgiref",
    "test.test_xmlrpc",
    # Gone in 3.12 or 3.13.
    "test.test_asynchat",
    "test.test_asyncore",
    "test.test_nntplib",
    "test.test_smtpd",
    "test.test_telnetlib",
)

#: Those of gevent that open connections and know gevent's sockets from inside.
GEVENT = (
    "gevent.tests.test__makefile_ref",
    "gevent.tests.test__pywsgi",
    "gevent.tests.test__refcount",
    "gevent.tests.test__socket",
    "gevent.tests.test__ssl",
)

MODULES = (*INTERPRETER, *GEVENT)

# Of test_socket, whose sockets are TCP's: without what waits by the clock for seconds.
_TCP_TESTS = tuple(
    f"test.test_socket.{name}"
    for name in (
        "*TCPTest*",
        "TCPCloserTest.*",
        "FileObjectClassTestCase.*",
        "UnbufferedFileObjectClassTestCase.*",
        "ContextManagersTest.*",
        "CreateServer*",
        "GeneralModuleTests.test_[!s]*",
        "GeneralModuleTests.test_socket_*",
        "GeneralModuleTests.testCloseException",
        "NetworkConnectionAttributesTest.*",
        "SendfileUsingSendTest.test[!W]*",
    )
)

#: What fits into the tests of every change: modules, and the names of the tests to run, all if there are none.
QUICK: dict[str, tuple[str, ...]] = {
    "test.test_socket": _TCP_TESTS,
    "test.test_ssl": ("test.test_ssl.ThreadedTests.*", "test.test_ssl.SimpleBackgroundTests.test_[!m]*"),
    "test.test_asyncore": ("test.test_asyncore.*.test_[!h]*", "test.test_asyncore.*.test_handle_[!e]*"),
    "test.test_poplib": (),
    "test.test_httpservers": ("test.test_httpservers.[!C]*",),  # CGI starts processes
    "test.test_urllib2_localnet": (),
    "test.test_smtplib": (),
    "test.test_httplib": (),
    "test.test_socketserver": (),
    "test.test_telnetlib": (),
    "gevent.tests.test__pywsgi": (),
    "gevent.tests.test__refcount": (),
    "gevent.tests.test__socket": (),
    "gevent.tests.test__ssl": (),
}

_SIGNAL = "a signal is to interrupt a system call that gevent never waits in"
_CHILD = "waits for a child's end, of which gevent is not told now and then: 2 of 40 runs on its own sockets, on a busy machine"

#: Tests that are not run: on plain gevent sockets, too, they fail or pass by chance, or take very long. With the reason.
LEFT_OUT: dict[str, str] = {
    "test.test_logging.QueueListenerTest.test_no_messages_in_queue_after_stop": "waits 30 s for a queue that gevent hands over in one go",
    "test.test_socket.ThreadedVSOCKSocketStreamTest.testStream": "waits for ever for a host of virtual machines",
    "test.test_socketserver.ErrorHandlerTest.test_forking_handled": _CHILD,
    "test.test_socketserver.ErrorHandlerTest.test_forking_not_handled": _CHILD,
    "test.test_socketserver.SocketServerTest.test_ForkingUDPServer": _CHILD,
    "test.test_socketserver.SocketServerTest.test_ForkingUnixDatagramServer": _CHILD,
    "test.test_socketserver.SocketServerTest.test_ForkingUnixStreamServer": _CHILD,
    "test.test_socketserver.SocketWriterTest.test_write": _SIGNAL,
    "test.test_ssl.ThreadedTests.test_nonblocking_send": "writes without end, and without a turn for the greenlet that is to read",
    "test.test_wsgiref.IntegrationTests.test_interrupted_write": _SIGNAL,
}


class Difference(NamedTuple):
    """A test that passes on gevent's sockets, and does not on the mesh, by design."""

    reason: str
    #: The versions in which it fails, from and below; None for no bound.
    since: tuple[int, int] | None = None
    before: tuple[int, int] | None = None


_OUT_OF_BAND = Difference("out-of-band data: a stream has one band")

_DESCRIPTOR = Difference("the number can be polled, not read or written: bytes of a stream do not pass the system")

#: By the name of the test.
DIFFERENCES: dict[str, Difference] = {
    # With poll it passes on neither.
    "test.test_asyncore.TestAPI_UseIPv4Select.test_handle_expt": _OUT_OF_BAND,
    "test.test_asyncore.TestAPI_UseIPv6Select.test_handle_expt": _OUT_OF_BAND,
    "test.test_socketserver.SocketServerTest.test_ForkingTCPServer": Difference("a process for each request: streams do not cross a fork"),
    "test.test_ssl.SimpleBackgroundTests.test_makefile_close": _DESCRIPTOR,
    "test.test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_client": Difference(
        "expects a reset to have arrived when close() returns, as within one kernel; a stream's arrives with the loop's next turn"
    ),
}
