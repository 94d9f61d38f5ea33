# Types for the compiled variant; see "Two builds" in docs/design.md.
cimport cython

from astranet_gevent.transport.link cimport Link
from astranet_gevent.transport.send_queue cimport SendQueue, TurnSource

# Names that every frame looks up: in C variables instead of the module's dictionary.
cdef object encode_header
cdef long long HEADER_SIZE, SMALL_FRAME, UNJOINED_PAYLOAD


cdef class RelayPair(TurnSource):
    cdef public Link source
    cdef public Link target
    cdef public bint paused
    cdef public set overrun
    cdef Relay _relay
    cdef long long _pause_at

    @cython.locals(target=Link, queue=SendQueue, length="long long", size="long long")
    cpdef forward(self, command, key, payload)

    @cython.locals(target=Link, queue=SendQueue)
    cpdef bint forward_run(self, run)
    cpdef on_queued(self)
    cdef _tell(self, command)


cdef class Relay:
    cdef object _config
    cdef object _find_link
    cdef public dict _pairs
    cdef set _reported

    @cython.locals(queue=SendQueue)
    cpdef bint has_room(self, RelayPair pair, long long size)
    cpdef reset_stream(self, RelayPair pair, key)
