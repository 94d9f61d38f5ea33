# Types for the compiled variant; see "Two builds" in docs/design.md.
from astranet_gevent.transport.outlet cimport Outlet


cdef class Path:
    cdef public Outlet link
    cdef public object node_id
    cdef public object capabilities
    cdef public long long max_payload
    cdef public bint greeted
    cdef public bint paused
    cdef public long long stream_count
    cdef public dict blocked
