# Types for the compiled variant; see "Two builds" in docs/design.md.


cdef class WindowBudget:
    cdef public long long used
