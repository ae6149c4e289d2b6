/* tierstore.format._tree: the chaining values of blocks in BLAKE3's tree (SPEC.md section 3.2), which the
 * blake3 package does not give out. The GIL is released while bytes are hashed. Limited API, so that one build
 * serves 3.11 on. format/tree.py does without where it was not built. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "blake3/blake3.h"
#include "blake3/blake3_impl.h"

#define CV BLAKE3_OUT_LEN

/* The parent of two chaining values that lie end to end. */
static void parent(const uint8_t *pair, uint8_t flags, uint8_t *out)
{
    uint32_t words[8];
    memcpy(words, IV, sizeof words);
    blake3_compress_in_place(words, pair, BLAKE3_BLOCK_LEN, 0, (uint8_t)(PARENT | flags));
    store_cv_words(out, words);
}

/* Hashes the values up to one, in place; an odd one out goes up as it is, which is BLAKE3's shape. */
static void merge(uint8_t *values, size_t count, uint8_t flags_of_last)
{
    while (count > 1) {
        size_t pairs = count / 2;
        for (size_t i = 0; i < pairs; i++) parent(values + 2 * i * CV, count == 2 ? flags_of_last : 0, values + i * CV);
        if (count % 2) memmove(values + pairs * CV, values + 2 * pairs * CV, CV);
        count -= pairs;
    }
}

/* The chaining value of a subtree whose first byte lies at `offset`, a multiple of its size to be. */
static void subtree(const uint8_t *data, size_t size, uint64_t offset, uint8_t *out)
{
    uint8_t values[MAX_SIMD_DEGREE_OR_2 * CV];
    size_t count = blake3_compress_subtree_wide(data, size, IV, offset / BLAKE3_CHUNK_LEN, 0, values, false);
    merge(values, count, 0);
    memcpy(out, values, CV);
}

static int check_block(unsigned long long block)
{
    if (block >= BLAKE3_CHUNK_LEN && !(block & (block - 1))) return 0;
    PyErr_Format(PyExc_ValueError, "blocks of %llu bytes are no subtrees", block);
    return -1;
}

PyDoc_STRVAR(hash_doc, "hash(data, block_bytes) -> (digest, values)\n\nThe BLAKE3 of data, and the chaining values of its blocks; empty when there is one block.");
static PyObject *hash(PyObject *self, PyObject *args)
{
    Py_buffer data;
    unsigned long long block;
    uint8_t digest[CV], *to, *copy;
    PyObject *values = NULL, *result = NULL;
    size_t size, count;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*K:hash", &data, &block)) return NULL;
    const uint8_t *bytes = data.buf;
    size = (size_t)data.len;
    if (check_block(block)) goto end;
    count = size > block ? (size - 1) / block + 1 : 0;
    values = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * CV));
    copy = count ? PyMem_Malloc(count * CV) : NULL;
    if (!values || (count && !copy)) {
        if (values) PyErr_NoMemory();
        PyMem_Free(copy);
        goto end;
    }
    to = (uint8_t *)PyBytes_AsString(values);
    Py_BEGIN_ALLOW_THREADS
    if (count) {
        for (size_t i = 0; i < count; i++) {
            size_t at = i * block;
            subtree(bytes + at, size - at < block ? size - at : block, at, to + i * CV);
        }
        memcpy(copy, to, count * CV);
        merge(copy, count, ROOT);
        memcpy(digest, copy, CV);
    } else {
        blake3_hasher hasher;
        blake3_hasher_init(&hasher);
        blake3_hasher_update(&hasher, bytes, size);
        blake3_hasher_finalize(&hasher, digest, CV);
    }
    Py_END_ALLOW_THREADS
    PyMem_Free(copy);
    result = Py_BuildValue("NN", PyBytes_FromStringAndSize((char *)digest, CV), values);
    values = NULL;
end:
    Py_XDECREF(values);
    PyBuffer_Release(&data);
    return result;
}

PyDoc_STRVAR(value_doc, "value(block, offset) -> bytes\n\nThe chaining value of a block that lies at offset of a longer message.");
static PyObject *value(PyObject *self, PyObject *args)
{
    Py_buffer block;
    unsigned long long offset;
    uint8_t out[CV];
    (void)self;
    if (!PyArg_ParseTuple(args, "y*K:value", &block, &offset)) return NULL;
    if (!block.len || offset % BLAKE3_CHUNK_LEN) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %llu are no subtree", block.len, offset);
        PyBuffer_Release(&block);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    subtree(block.buf, (size_t)block.len, offset, out);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&block);
    return PyBytes_FromStringAndSize((char *)out, CV);
}

PyDoc_STRVAR(root_doc, "root(values) -> bytes\n\nThe BLAKE3 of the message whose blocks, two or more, have these chaining values.");
static PyObject *root(PyObject *self, PyObject *args)
{
    Py_buffer values;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*:root", &values)) return NULL;
    if (values.len % CV || values.len < 2 * CV) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no two chaining values or more", values.len);
    } else {
        uint8_t *copy = PyMem_Malloc((size_t)values.len);
        if (copy) {
            memcpy(copy, values.buf, (size_t)values.len);
            merge(copy, (size_t)values.len / CV, ROOT);
            result = PyBytes_FromStringAndSize((char *)copy, CV);
            PyMem_Free(copy);
        } else PyErr_NoMemory();
    }
    PyBuffer_Release(&values);
    return result;
}

static PyMethodDef methods[] = {
    {"hash", hash, METH_VARARGS, hash_doc},
    {"value", value, METH_VARARGS, value_doc},
    {"root", root, METH_VARARGS, root_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_tree", "Chaining values of BLAKE3.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__tree(void) { return PyModule_Create(&module); }
