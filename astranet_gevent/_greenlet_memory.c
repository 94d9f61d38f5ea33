/* Keeps the memory in which ended greenlets had their Python frames, for the next ones. See greenlet_memory.py.

   CPython (3.11 and later) gives every greenlet a piece of 16 KiB for its frames, mapped by the system when the first is entered and unmapped
   when the greenlet ends. For a server that runs each stream in a greenlet of its own that is a quarter of its time. The pieces come from the
   allocator that also provides the interpreter's arenas, which may be replaced (PyObject_SetArenaAllocator). What stands here passes every
   request on to the one that was there, but for pieces of just that size, of which it keeps some. Nothing depends on where they come from: a
   piece that is kept is one that the other allocator has made, and goes back to it when there are enough. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* DATA_STACK_CHUNK_SIZE of CPython's pystate.c, 3.11 to 3.14. Where it is another, nothing is kept. */
#define PIECE ((size_t)16 * 1024)

/* Two MiB, of which a greenlet that was not deep has touched a page each. */
#define MOST 128

static PyObjectArenaAllocator original;
/* Not the GIL: interpreters with their own have the same allocator. Nobody waits for it. */
static PyThread_type_lock lock;
static void *kept[MOST];
static int count;

static int
try_lock(void)
{
    return PyThread_acquire_lock(lock, NOWAIT_LOCK);
}

static void *
allocate(void *Py_UNUSED(context), size_t size)
{
    void *piece = NULL;
    if (size == PIECE && try_lock()) {
        if (count) {
            piece = kept[--count];
        }
        PyThread_release_lock(lock);
    }
    return piece ? piece : original.alloc(original.ctx, size);
}

static void
release(void *Py_UNUSED(context), void *piece, size_t size)
{
    if (size == PIECE && piece && try_lock()) {
        int keeps = count < MOST;
        if (keeps) {
            kept[count++] = piece;
        }
        PyThread_release_lock(lock);
        if (keeps) {
            return;
        }
    }
    original.free(original.ctx, piece, size);
}

static PyObject *
keep(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (!lock) {
        PyObjectArenaAllocator ours = {NULL, allocate, release};
        lock = PyThread_allocate_lock();
        if (!lock) {
            return PyErr_NoMemory();
        }
        PyObject_GetArenaAllocator(&original);
        PyObject_SetArenaAllocator(&ours);
    }
    Py_RETURN_NONE;
}

static PyObject *
held(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(count);
}

static PyMethodDef functions[] = {
    {"keep", keep, METH_NOARGS, "Begin to keep the memory of ended greenlets; at once for the whole process, and to its end."},
    {"held", held, METH_NOARGS, "How many pieces are held."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_greenlet_memory", "Memory of ended greenlets, kept for the next ones.", -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__greenlet_memory(void)
{
    return PyModule_Create(&definition);
}
