# Types for the compiled variant; see "Two builds" in docs/design.md.
cdef class Deadlines:
    cdef object _loop
    cdef object _clock
    cdef dict _waits
    cdef double _latest
    cdef object _timer
    cdef double _timer_due
    cdef bint _closed

    cpdef begin(self, waiter, double timeout, expire, what)
    cpdef finish(self, waiter, timer)
    cpdef resume(self)
    cpdef close(self)
    cdef _stop(self)
    cdef _arm(self, double due)
    cpdef _on_timer(self)
