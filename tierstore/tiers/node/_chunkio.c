/* tierstore.tiers.node._chunkio: many chunk files of one folder mapped or read in one call, without the GIL.
 * Limited API, so that one build serves 3.11 on. tiers/node/tensors.py does without it where it was not built. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef O_PATH
#define O_PATH 0
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#define DIGEST 32

enum { DONE = 1, ABSENT = 0, UNCLEAR = 2 }; /* and -errno: the kernel refused to map over the range */

typedef struct {
    const unsigned char *digests;
    Py_buffer out;
    int status;
} item;

/* Opens a chunk's file if it is one of exactly `size` bytes; else the status. */
static int open_chunk(int folder, const unsigned char *digest, size_t size, int *status)
{
    static const char hex[] = "0123456789abcdef";
    char name[2 * DIGEST + 1];
    struct stat found;

    for (int i = 0; i < DIGEST; i++) {
        name[2 * i] = hex[digest[i] >> 4];
        name[2 * i + 1] = hex[digest[i] & 15];
    }
    name[2 * DIGEST] = 0;
    /* O_NONBLOCK: a FIFO that someone put in a chunk's place must not hang */
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        *status = errno == ENOENT ? ABSENT : UNCLEAR;
    } else if (fstat(fd, &found) || !S_ISREG(found.st_mode) || (size_t)found.st_size != size) {
        *status = UNCLEAR;
        close(fd);
        fd = -1;
    }
    return fd;
}

static int read_all(int fd, char *to, size_t size)
{
    size_t at = 0;
    while (at < size) {
        ssize_t got = pread(fd, to + at, size - at, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return UNCLEAR; /* somebody cut it short just now, or the disk fails */
        at += (size_t)got;
    }
    return DONE;
}

static int map_over(int fd, char *to, size_t size)
{
    int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
    return mmap(to, size, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED ? -errno : DONE;
}

static int fill_one(int folder, const item *one, size_t chunk, int map)
{
    size_t length = (size_t)one->out.len;
    int status = DONE;

    for (size_t at = 0, n = 0; at < length && status == DONE; at += chunk, n++) {
        size_t size = length - at < chunk ? length - at : chunk;
        char *to = (char *)one->out.buf + at;
        int fd = open_chunk(folder, one->digests + n * DIGEST, size, &status);
        if (fd < 0) break;
        status = map ? map_over(fd, to, size) : read_all(fd, to, size);
        close(fd);
    }
    return status;
}

static int take_item(PyObject *pair, item *one, size_t chunk)
{
    /* no format with '#': compiled for the limited API by Python 3.13 it raises in older ones */
    char *digests;
    Py_ssize_t length;
    PyObject *joined, *out;

    if (!PyArg_ParseTuple(pair, "SO", &joined, &out)) return -1;
    if (PyBytes_AsStringAndSize(joined, &digests, &length)) return -1;
    if (PyObject_GetBuffer(out, &one->out, PyBUF_WRITABLE)) return -1;
    one->digests = (const unsigned char *)digests;
    if (((size_t)one->out.len + chunk - 1) / chunk * DIGEST == (size_t)length) return 0;
    PyErr_Format(PyExc_ValueError, "%zd digests do not fit %zd bytes", length / DIGEST, one->out.len);
    PyBuffer_Release(&one->out);
    return -1;
}

static PyObject *statuses(const item *items, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *status = PyLong_FromLong(items[i].status);
        if (!status || PyList_SetItem(list, i, status)) Py_CLEAR(list);
    }
    return list;
}

static void fill_all(const char *path, item *items, Py_ssize_t count, size_t chunk, int map)
{
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_PATH);
    for (Py_ssize_t i = 0; i < count; i++)
        items[i].status = folder < 0 ? UNCLEAR : fill_one(folder, &items[i], chunk, map);
    if (folder >= 0) close(folder);
}

PyDoc_STRVAR(fill_doc,
"fill(folder, items, chunk_size, map) -> list of int\n\n"
"Fill buffers with chunk files: each item is a tuple of the digests of its chunks end to end (bytes) and a\n"
"writable buffer; each chunk but the last has `chunk_size` bytes. With `map` the files are mapped over the\n"
"buffers, private and writable: whole pages of an address range that the caller has reserved.\n\n"
"For each item 1 when it is filled; 0 when a file is absent; 2 when something else is the matter with one;\n"
"-errno when the kernel refused to map.");

static PyObject *native_fill(PyObject *module, PyObject *args)
{
    const char *path;
    PyObject *sequence, *result = NULL;
    Py_ssize_t chunk, taken = 0;
    int map;

    (void)module;
    if (!PyArg_ParseTuple(args, "sO!np", &path, &PyTuple_Type, &sequence, &chunk, &map)) return NULL;
    if (chunk <= 0) return PyErr_Format(PyExc_ValueError, "a chunk of %zd bytes", chunk);
    Py_ssize_t count = PyTuple_Size(sequence);
    item *items = PyMem_Calloc((size_t)count + 1, sizeof *items);
    if (!items) return PyErr_NoMemory();
    while (taken < count && !take_item(PyTuple_GetItem(sequence, taken), &items[taken], (size_t)chunk)) taken++;
    if (taken == count) {
        Py_BEGIN_ALLOW_THREADS
        fill_all(path, items, count, (size_t)chunk, map);
        Py_END_ALLOW_THREADS
        result = statuses(items, count);
    }
    while (taken-- > 0) PyBuffer_Release(&items[taken].out);
    PyMem_Free(items);
    return result;
}

static PyMethodDef methods[] = {
    {"fill", native_fill, METH_VARARGS, fill_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_chunkio", "Many chunk files in one call.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__chunkio(void)
{
    return PyModule_Create(&definition);
}
