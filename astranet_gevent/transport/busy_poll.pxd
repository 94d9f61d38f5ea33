# Types for the compiled variant; see "Two builds" in docs/design.md.
cdef class BusyPoll:
    cdef double _limit
    cdef object _clock
    cdef object _yield_core
    cdef public bint polling
    cdef double _until
    cdef double _idle_since
    cdef bint _core_taken
    cdef double _away
    cdef public bint passed_on
    cdef Py_ssize_t _short_waits
    cdef double _credit
    cdef double _pause
    cdef double _resume_at
    cdef object _watcher
    cdef bint _watching

    cpdef received(self, double now)
    cpdef expect(self, double now)
    cpdef _on_idle(self)
    cdef _settle(self, double now, double earned)
    cdef _stop(self)
