# Types for the compiled variant; see "Two builds" in docs/design.md.
cimport cython

cdef object _STEPS


cdef class StreamCore:
    cdef public bytes key
    cdef public object state
    cdef public object error
    cdef public object received
    # Windows and credit are u32 on the wire and are added before they are checked: 64 bits hold any sum of them.
    cdef public long long buffered
    cdef public long long receive_window
    cdef public long long receive_left
    cdef public long long uncredited
    cdef public long long send_left
    cdef public long long send_window
    cdef public bint sender_blocked

    cpdef bint step(self, step)

    @cython.locals(size=Py_ssize_t, left="long long")
    cpdef bint receive(self, payload)

    cdef _merge(self, held)
    cpdef take(self, limit)
    cdef _take_more(self, limit)
    cpdef take_into(self, target)
    cdef _take_part_into(self, target, long long filled)
    cdef _pop_payload(self, limit)
    cpdef discard(self)
    cpdef bint receive_credit(self, long long count)
    cpdef receive_window_size(self, long long window)

    @cython.locals(uncredited="long long")
    cpdef long long consume(self, long long count)
