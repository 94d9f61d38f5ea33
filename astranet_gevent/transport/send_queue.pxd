# Types for the compiled variant; see "Two builds" in docs/design.md.


cdef class TurnSource:
    cdef public object pending
    cdef public long long size


cdef class SendQueue:
    cdef public list control
    cdef public list small
    cdef public object turns
    cdef public long long limit
    cdef public long long small_bytes
    cdef public long long turn_bytes
    cdef public long long relayed_bytes

    cdef _count_turn(self, TurnSource source, long long size)
    cpdef push_control(self, frame)
    cpdef push_small(self, frame)
    cpdef push_small_parts(self, header, payload)
    cpdef push_turn(self, TurnSource source, tuple parts)
    cpdef list take(self, long long limit=*)
    cdef _take_turns(self, list batch, long long left)
