# Types for the compiled variant; see "Two builds" in docs/design.md.


cdef class LinkCore:
    cdef public object state
    cdef public object peer_id
    cdef public object capabilities
    cdef public object seen_address
    cdef public bint goodbye_sent
    cdef public bint goodbye_received
    cdef object _config
    cdef object _node_id
    cdef double _handshake_deadline
    cdef double _last_received
    cdef double _last_sent
    cdef double _last_ping
    cdef double _last_tick
    cdef object _stalled_since
    cdef object _armed_for

    cpdef note_received(self, double now, bint partial)
    cpdef note_sent(self, double now)
