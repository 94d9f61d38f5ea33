# Types for the compiled variant; see "Two builds" in docs/design.md.
cimport cython

from astranet_gevent.protocol.link cimport LinkCore
from astranet_gevent.transport.busy_poll cimport BusyPoll
from astranet_gevent.transport.deadlines cimport Deadlines
from astranet_gevent.transport.send_queue cimport SendQueue

# Names that every batch looks up: in C variables instead of the module's dictionary.
cdef object CLOSED, DRAINING, monotonic
cdef long long MAX_PAYLOAD


cdef class Outlet:
    cdef object __weakref__
    cdef public object hub
    cdef public object thread
    cdef public bint forked
    cdef public LinkCore core
    cdef public SendQueue queue
    cdef public Deadlines deadlines
    cdef public dict blocked
    cdef public bint flush_scheduled
    cdef public Py_ssize_t parts_left
    cdef Py_ssize_t _answer_parts
    cdef public list woken
    cdef public object _conn
    cdef BusyPoll _busy_poll
    cdef bint _bulk_read
    cdef object _control_frames
    cdef object _flushed
    cdef object _leftover
    cdef bint _writing
    cdef bint _writer_parked
    cdef bint _send_failed
    cdef double _flush_due
    cdef double _early_wait
    cdef bint _continuing
    cdef bint _can_write
    cdef double _turns_due
    cdef public long long turn_payload
    cdef double _small_seen
    cdef object _writer

    cdef switch_away(self, current)
    cpdef send_control(self, frame)
    cpdef schedule_flush(self)
    cpdef start_early_flushes(self)
    cpdef add_part(self)
    cdef begin_answer(self)
    cdef end_answer(self)
    cpdef flush_early(self)
    cpdef bint wants_flush(self)
    cpdef _flush(self)
    cpdef _flush_writable(self)
    cdef _stop_continuing(self)
    cdef _all_sent(self)
    cdef int _batches_now(self)
    cdef bint _bulk_is_alone(self, double now)

    @cython.locals(now=double, has_small=bint)
    cdef bint _flush_once(self)
    @cython.locals(now=double)
    cdef bint _holds_turns_back(self)
    cdef _sending_failed(self, error)
    cdef _wake_blocked(self)
    cdef _switch_to(self, waiter)
    cdef _start_writer(self)
    cdef _run_writer(self)
    cdef _drop_unsent(self)
