# Types for the compiled variant; see "Two builds" in docs/design.md.
cimport cython

from astranet_gevent.protocol.stream cimport StreamCore
from astranet_gevent.transport.outlet cimport Outlet
from astranet_gevent.transport.path cimport Path
from astranet_gevent.transport.send_queue cimport SendQueue, TurnSource

# Names that every read and write looks up: in C variables instead of the module's dictionary.
cdef object CLOSED, DIALING, ENDED, GOT_FIN, LIVE, OPEN, PEER_GONE, RESET, SENT_FIN
cdef object encode_u32, get_ident, getcurrent, reverse_key, encode_frame
cdef object _SYN, _GONE, _CLOSE
cdef bytes _DATA_COMMAND
cdef long long SMALL_FRAME, UNJOINED_PAYLOAD
cdef int _MSG_PEEK, _MSG_DONTWAIT
cdef int _READ_SHUT, _BLOCKED_SENT, _REPORTED, _CLOSE_WANTED, _WROTE_TO_NOBODY


cdef class Stream(StreamCore):
    cdef public Path _path
    cdef object _timeout
    cdef object _would_block
    cdef int _flags
    cdef int _io_refs
    cdef int _head_size
    cdef bytes _head
    cdef object _options
    cdef public object _observer
    cdef public TurnSource outgoing
    cdef public object recv_waiter
    cdef public object send_waiter

    @cython.locals(uncredited="long long", size=Py_ssize_t)
    cpdef recv(self, bufsize, int flags=*)

    @cython.locals(link=Outlet)
    cdef bint _await_data(self, int flags=*)

    cdef _return_credit(self, Py_ssize_t count)

    @cython.locals(left=Py_ssize_t, sent=Py_ssize_t)
    cpdef sendall(self, data, int flags=*)

    @cython.locals(path=Path, link=Outlet, queue=SendQueue, left="long long", size="long long", head=bytes)
    cdef Py_ssize_t _push(self, data)

    @cython.locals(path=Path, link=Outlet, queue=SendQueue, source=TurnSource, left="long long", room="long long", start="long long",
                   stop="long long", largest="long long", head=bytes)
    cdef Py_ssize_t _push_turns(self, data, Py_ssize_t size)
    cdef bytes _make_head(self, Py_ssize_t size)

    cdef Py_ssize_t _push_in_vain(self, Py_ssize_t size)
    cdef _send_rest(self, data, Py_ssize_t sent, int flags)
    cdef _check_sendable(self)
    cdef _tell_blocked(self)
    cdef bint _may_receive(self)

    @cython.locals(link=Outlet)
    cdef _wait(self, slot, timeout)

    @cython.locals(link=Outlet)
    cdef _wake_all(self)

    @cython.locals(link=Outlet)
    cdef _check_thread(self)

    cdef _room_changed(self)
    cdef _after_step(self)
    # Not the receive_...() of the table in link.py: a C function looked up in its class loses what it is called with.
    cpdef break_off(self, error)
    cpdef receive_syn(self)
    cpdef fail(self, code, reason)

    @cython.locals(link=Outlet)
    cdef _close(self)

    cdef _check_thread_of_close(self)
    cdef bint _lingers_not(self)
    cdef _drop_outgoing(self)

    @cython.locals(link=Outlet)
    cdef _send_frames(self, frames)
