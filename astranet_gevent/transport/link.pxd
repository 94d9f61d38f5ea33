# Types for the compiled variant; see "Two builds" in docs/design.md.
cimport cython

from astranet_gevent.protocol.frame cimport FrameBuffer
from astranet_gevent.protocol.window cimport WindowBudget
from astranet_gevent.transport.outlet cimport Outlet
from astranet_gevent.transport.path cimport Path
from astranet_gevent.transport.stream cimport Stream

# Names that every frame looks up: in C variables instead of the module's dictionary.
cdef object CLOSED, DRAINING, HANDSHAKE, OPEN, READY, SENT_FIN, monotonic
cdef object Greenlet, _switch
cdef int _DATA
cdef dict _STREAM_FRAMES


cdef class Link(Outlet):
    cdef public long long frame_size
    cdef public bint loopback
    cdef public dict streams
    cdef public dict dialing
    cdef public dict paths
    cdef public dict relayed
    cdef public object error
    cdef public object ended
    cdef public object heard
    cdef public object _owner
    cdef bytes _own_id
    cdef public FrameBuffer _buffer
    cdef object _cancelled
    cdef WindowBudget _budget
    cdef public dict _large
    cdef public double round_trip
    cdef double _ping_sent
    cdef public long long _pings
    cdef object _ready
    cdef public bint accepted
    cdef bytes _bulk_key
    cdef bint _reads_ahead
    cdef bint _discarding
    cdef bint _suspected
    cdef dict _readable
    cdef dict _writable
    cdef bint _run_scheduled
    cdef object _halves
    cdef object _timer
    cpdef _on_read(self, Py_ssize_t count)

    @cython.locals(now=double)
    cdef _note_bulk(self, list frames)

    @cython.locals(stream=Stream, streams=dict, readable=dict, handlers=dict, frame=tuple, size=Py_ssize_t)
    cdef _receive(self, list frames)

    cdef _receive_other(self, command, key, payload)
    cpdef wake_later(self, Stream stream, bint receiver, bint sender)
    cdef _schedule_run(self)
    cdef _note_received(self)
    cdef _receive_link_frame(self, command, key, payload)

    @cython.locals(stream=Stream)
    cdef _receive_syn(self, key)

    @cython.locals(stream=Stream)
    cdef switch_away(self, current)

    @cython.locals(stream=Stream, readable=dict, writable=dict, woken=list)
    cdef _run_noted(self)

    @cython.locals(stream=Stream)
    cdef _run_lone(self)

    cpdef path_to(self, node_id)
    cpdef note_credit(self, Stream stream, credit)
    cpdef add(self, Stream stream)

    @cython.locals(path=Path, granted="long long")
    cpdef forget(self, Stream stream)
