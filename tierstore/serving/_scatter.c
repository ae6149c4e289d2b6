/* tierstore.serving._scatter: what changed in many arrays written in one call, without the GIL.
 * Limited API, so that one build serves 3.11 on. serving/inplace.py does without it where it was not built. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    Py_buffer live, where, values;
    size_t count, unit;
} piece;

static void release(piece *one)
{
    PyBuffer_Release(&one->live); /* of a buffer that was never taken: nothing */
    PyBuffer_Release(&one->where);
    PyBuffer_Release(&one->values);
}

/* Whether every unit that is named lies in the live bytes, and has its values. */
static int fits(piece *one)
{
    const int64_t *where = one->where.buf;
    size_t bytes = (size_t)one->values.len;

    one->count = (size_t)one->where.len / sizeof *where;
    if ((size_t)one->where.len % sizeof *where) return 0;
    if (!one->count) return !bytes;
    one->unit = bytes / one->count;
    if (!one->unit || bytes % one->count) return 0;
    size_t units = (size_t)one->live.len / one->unit;
    for (size_t i = 0; i < one->count; i++)
        if (where[i] < 0 || (uint64_t)where[i] >= units) return 0;
    return 1;
}

static int take(PyObject *triple, piece *one)
{
    PyObject *live, *where, *values;

    if (!PyArg_ParseTuple(triple, "OOO", &live, &where, &values)) return -1;
    if (PyObject_GetBuffer(live, &one->live, PyBUF_WRITABLE)) return -1;
    if (PyObject_GetBuffer(where, &one->where, PyBUF_SIMPLE)) return -1;
    if (PyObject_GetBuffer(values, &one->values, PyBUF_SIMPLE)) return -1;
    if (fits(one)) return 0;
    PyErr_SetString(PyExc_ValueError, "numbers of units and their values do not fit the live bytes");
    return -1;
}

/* Makes the pages ours without changing them, even if somebody else writes there now. */
static void touch(const piece *one, uintptr_t page)
{
    const int64_t *where = one->where.buf;

    for (size_t i = 0; i < one->count; i++) {
        char *at = (char *)one->live.buf + (size_t)where[i] * one->unit, *end = at + one->unit;
        while (at < end) {
            __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
            at += page - (uintptr_t)at % page;
        }
    }
}

static void put(const piece *one)
{
    const int64_t *where = one->where.buf;
    const char *values = one->values.buf;

    for (size_t i = 0; i < one->count; i++)
        memcpy((char *)one->live.buf + (size_t)where[i] * one->unit, values + i * one->unit, one->unit);
}

static PyObject *on_all(PyObject *args, int write)
{
    PyObject *triples, *result = NULL;
    Py_ssize_t taken = 0;
    int fine = 1;

    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &triples)) return NULL;
    Py_ssize_t count = PyTuple_Size(triples);
    piece *pieces = PyMem_Calloc((size_t)count + 1, sizeof *pieces);
    if (!pieces) return PyErr_NoMemory();
    while (taken < count && fine) fine = !take(PyTuple_GetItem(triples, taken), &pieces[taken]), taken++;
    if (fine) {
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) {
            if (write) put(&pieces[i]);
            else touch(&pieces[i], page);
        }
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    while (taken-- > 0) release(&pieces[taken]);
    PyMem_Free(pieces);
    return result;
}

static PyObject *native_prepare(PyObject *module, PyObject *args)
{
    (void)module;
    return on_all(args, 0);
}

static PyObject *native_write(PyObject *module, PyObject *args)
{
    (void)module;
    return on_all(args, 1);
}

PyDoc_STRVAR(prepare_doc,
"prepare(pieces)\n\n"
"Make every page that `write` would write to this process's own, without changing a byte.");

PyDoc_STRVAR(write_doc,
"write(pieces)\n\n"
"Write units of bytes: each piece is a tuple of a writable buffer, int64 numbers of units in it, in any\n"
"order, and the new content of these units end to end. Nothing is written when one does not fit.");

static PyMethodDef methods[] = {
    {"prepare", native_prepare, METH_VARARGS, prepare_doc},
    {"write", native_write, METH_VARARGS, write_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_scatter", "Units of many arrays written in one call.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__scatter(void)
{
    return PyModule_Create(&definition);
}
