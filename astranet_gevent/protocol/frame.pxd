# Types for the compiled variant; see "Two builds" in docs/design.md.
cimport cython

cdef object _HEADER
cdef int _DATA
cdef Py_ssize_t _HEADER_SIZE, _SIZE_OFFSET, _PAIR_SIZE, _LENT_PAYLOAD, _SMALL_RUN, _LARGE_PAYLOAD, _LARGE_RUN

@cython.locals(start=bytes, size_bytes=bytes, length=Py_ssize_t, end=Py_ssize_t, size="long long")
cdef Py_ssize_t _end_of_small_run(bytes run, Py_ssize_t first, Py_ssize_t position, long long largest) except -1


cdef class FrameBuffer:
    cdef long long _max_payload
    cdef object _relayed
    cdef Py_ssize_t _start
    cdef Py_ssize_t _end
    cdef bytearray _slab
    cdef object _view
    cdef bint _is_lent
    cdef object _spare
    cdef Py_ssize_t _slab_size
    cdef list _lent
    cdef public object error

    # What a header says of its payload is a u32: Py_ssize_t would not hold it everywhere.
    @cython.locals(end=Py_ssize_t, position=Py_ssize_t, after=Py_ssize_t, size="long long", frames=list, is_small=bint)
    cpdef list decode(self, Py_ssize_t count)

    @cython.locals(run=bytes, end=Py_ssize_t, position=Py_ssize_t, size="long long", body=Py_ssize_t, stop="long long", largest="long long", key=bytes)
    cdef Py_ssize_t _cut_small(self, list frames, Py_ssize_t start) except -1

    @cython.locals(end=Py_ssize_t, position=Py_ssize_t, size="long long", body=Py_ssize_t, stop="long long")
    cdef Py_ssize_t _cut_large(self, list frames, Py_ssize_t start) except -1

    @cython.locals(end=Py_ssize_t, position=Py_ssize_t, size="long long", stop="long long")
    cdef Py_ssize_t _end_of_run(self, Py_ssize_t start, bytes pair_key) except -1

    cdef _lend(self)

    cdef _find_spare(self)

    @cython.locals(left=Py_ssize_t)
    cdef _compact(self, Py_ssize_t position)
