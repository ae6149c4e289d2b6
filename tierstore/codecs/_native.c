/* tierstore.codecs._native: the plane kernels for Python. One call per chunk; the GIL is released except
 * while a plane goes through the caller's zstd function. Limited API, so that one build serves 3.11 on. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "kernels/kernels.h"

static PyObject *Damage; /* raised for payloads that are not well formed; a ValueError */

/* Scratch of idle calls, at most one for each core that ever worked at once; guarded by the GIL. */
#define POOL 16
#define POOLED_BLOCK ((size_t)1 << 20)
static tsk_scratch *pool[POOL];
static int pooled;

static tsk_scratch *take_scratch(size_t block_size)
{
    if (block_size > POOLED_BLOCK) return tsk_scratch_new(block_size);
    for (int i = pooled; i-- > 0;)
        if (tsk_scratch_block_size(pool[i]) >= block_size) {
            tsk_scratch *s = pool[i];
            pool[i] = pool[--pooled];
            return s;
        }
    return tsk_scratch_new(block_size < (size_t)1 << 18 ? (size_t)1 << 18 : block_size);
}

static void give_scratch(tsk_scratch *s)
{
    if (s && tsk_scratch_block_size(s) <= POOLED_BLOCK && pooled < POOL) pool[pooled++] = s;
    else tsk_scratch_free(s);
}

typedef struct {
    PyObject *function;
    PyThreadState *thread; /* saved while the GIL is released */
} callback;

/* function(bytes of the plane, capacity) -> bytes; empty when it does not fit. */
static ptrdiff_t call_zstd(void *ctx, const uint8_t *src, size_t n, uint8_t *dst, size_t cap)
{
    callback *c = ctx;
    ptrdiff_t used = -1;
    char *bytes;
    Py_ssize_t length;

    PyEval_RestoreThread(c->thread);
    /* no format with '#': compiled for the limited API by Python 3.13 it raises in older ones */
    PyObject *plane = PyBytes_FromStringAndSize((const char *)src, (Py_ssize_t)n);
    PyObject *result = PyObject_CallFunction(c->function, "Nn", plane, (Py_ssize_t)cap);
    if (result && !PyBytes_AsStringAndSize(result, &bytes, &length)) {
        if ((size_t)length <= cap) {
            memcpy(dst, bytes, (size_t)length);
            used = length;
        } else PyErr_SetString(PyExc_ValueError, "the zstd function returned more than it may");
    }
    Py_XDECREF(result);
    c->thread = PyEval_SaveThread();
    return used;
}

static int check_form(const tsk_form *form, Py_ssize_t n, const Py_buffer *base)
{
    const char *wrong = NULL;
    if (form->word != 1 && form->word != 2 && form->word != 4 && form->word != 8) wrong = "word size";
    else if (form->map > TSK_DELTA_FLOAT) wrong = "mapping";
    else if (form->block_size < 64 || form->block_size > TSK_MAX_CHUNK || form->block_size % 8) wrong = "block size";
    else if ((size_t)n > TSK_MAX_CHUNK) wrong = "chunk length";
    else if ((form->map >= TSK_DELTA_INT) != (base->obj != NULL)) wrong = "base";
    else if (base->obj && base->len != n) wrong = "base length";
    if (wrong) PyErr_Format(PyExc_ValueError, "the kernels do not take this %s", wrong);
    return wrong ? -1 : 0;
}

static size_t block_bytes(const tsk_form *form, Py_ssize_t n)
{
    return (size_t)n < form->block_size ? (size_t)n : form->block_size;
}

static PyObject *ends_tuple(const uint64_t *ends, Py_ssize_t blocks)
{
    PyObject *tuple = PyTuple_New(blocks);
    for (Py_ssize_t i = 0; tuple && i < blocks; i++) {
        PyObject *end = PyLong_FromUnsignedLongLong(ends[i]);
        if (!end || PyTuple_SetItem(tuple, i, end)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *encode_buffers(const tsk_form *form, const Py_buffer *plain, const Py_buffer *base,
                                const Py_buffer *out, PyObject *compress)
{
    PyObject *result = NULL;
    size_t blocks = ((size_t)plain->len + form->block_size - 1) / form->block_size, head_len = 0;
    ptrdiff_t rc = TSK_NO_MEMORY;
    callback c = {compress, NULL};

    if (check_form(form, plain->len, base)) return NULL;
    tsk_scratch *scratch = take_scratch(block_bytes(form, plain->len));
    uint64_t *ends = PyMem_Malloc((blocks + 1) * sizeof *ends);
    uint8_t *head = PyMem_Malloc(TSK_MAX_HEAD);
    if (scratch && ends && head) {
        c.thread = PyEval_SaveThread();
        rc = tsk_encode(scratch, form, plain->buf, (size_t)plain->len, base->buf, out->buf, (size_t)out->len,
                        head, &head_len, ends, call_zstd, &c);
        PyEval_RestoreThread(c.thread);
    }
    if (rc >= 0) {
        PyObject *tuple = ends_tuple(ends, (Py_ssize_t)blocks);
        PyObject *bytes = PyBytes_FromStringAndSize((char *)head, (Py_ssize_t)head_len);
        result = Py_BuildValue("(NNn)", bytes, tuple, (Py_ssize_t)rc);
    } else if (rc == TSK_NO_GAIN) {
        result = Py_NewRef(Py_None);
    } else if (rc == TSK_NO_MEMORY) {
        PyErr_NoMemory();
    }
    give_scratch(scratch);
    PyMem_Free(ends);
    PyMem_Free(head);
    return result;
}

PyDoc_STRVAR(encode_doc,
"encode(plain, base, out, word, map, block_size, compress) -> (head, ends, length) or None\n\n"
"Encode into `out`; None when the payload would not fit there. `compress(plane, capacity)` returns a zstd\n"
"frame of at most `capacity` bytes, or nothing.");

static PyObject *native_encode(PyObject *module, PyObject *args)
{
    Py_buffer plain, base, out;
    PyObject *compress, *result;
    unsigned map;
    Py_ssize_t block_size;
    tsk_form form;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*z*w*IInO", &plain, &base, &out, &form.word, &map, &block_size, &compress))
        return NULL;
    form.map = (enum tsk_map)map;
    form.block_size = (size_t)block_size;
    result = encode_buffers(&form, &plain, &base, &out, compress);
    PyBuffer_Release(&plain);
    PyBuffer_Release(&base);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *raise_damage(int rc, size_t block)
{
    static const char *const what[] = {"a code table is not well formed", "the block ends do not fit",
                                       "its lengths disagree", "a Huffman stream does not end where it should"};
    if (rc == TSK_NO_MEMORY) return PyErr_NoMemory();
    if (rc == TSK_BAD_HEAD || rc == TSK_BAD_ENDS) PyErr_SetString(Damage, what[-rc + TSK_BAD_HEAD]);
    else if (rc != TSK_CALLBACK) PyErr_Format(Damage, "block %zu: %s", block, what[-rc + TSK_BAD_HEAD]);
    return NULL;
}

static PyObject *decode_buffers(const tsk_form *form, const Py_buffer *head, PyObject *ends_tuple,
                                const Py_buffer *payload, const Py_buffer *base, const Py_buffer *out,
                                PyObject *decompress)
{
    Py_ssize_t n_ends = PyTuple_Size(ends_tuple);
    size_t bad_block = 0;
    int rc = TSK_NO_MEMORY;
    callback c = {decompress, NULL};

    if (n_ends < 0 || check_form(form, out->len, base)) return NULL;
    if ((size_t)n_ends > TSK_MAX_BLOCKS) return raise_damage(TSK_BAD_ENDS, 0);
    uint64_t *ends = PyMem_Malloc(((size_t)n_ends + 1) * sizeof *ends);
    tsk_scratch *scratch = take_scratch(block_bytes(form, out->len));
    if (ends && scratch) {
        for (Py_ssize_t i = 0; i < n_ends; i++) /* negative or huge: all ones, which no payload has */
            ends[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(ends_tuple, i));
        PyErr_Clear();
        c.thread = PyEval_SaveThread();
        rc = tsk_decode(scratch, form, head->buf, (size_t)head->len, ends, (size_t)n_ends, payload->buf,
                        (size_t)payload->len, out->buf, (size_t)out->len, base->buf, call_zstd, &c, &bad_block);
        PyEval_RestoreThread(c.thread);
    }
    PyMem_Free(ends);
    give_scratch(scratch);
    if (rc != TSK_OK) return raise_damage(rc, bad_block);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(decode_doc,
"decode(head, ends, payload, base, out, word, map, block_size, decompress)\n\n"
"Decode into exactly `out`; Damage when anything does not fit. `decompress(frame, length)` returns exactly\n"
"`length` bytes or raises.");

static PyObject *native_decode(PyObject *module, PyObject *args)
{
    Py_buffer head, payload, base, out;
    PyObject *ends, *decompress, *result;
    unsigned map;
    Py_ssize_t block_size;
    tsk_form form;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*Oy*z*w*IInO", &head, &ends, &payload, &base, &out, &form.word, &map,
                          &block_size, &decompress))
        return NULL;
    form.map = (enum tsk_map)map;
    form.block_size = (size_t)block_size;
    result = decode_buffers(&form, &head, ends, &payload, &base, &out, decompress);
    PyBuffer_Release(&head);
    PyBuffer_Release(&payload);
    PyBuffer_Release(&base);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *native_isa(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    return PyUnicode_FromString(tsk_isa_name());
}

static PyObject *native_limit_isa(PyObject *module, PyObject *args)
{
    const char *name;
    (void)module;
    if (!PyArg_ParseTuple(args, "z", &name)) return NULL;
    if (tsk_isa_limit(name)) return PyErr_Format(PyExc_ValueError, "no instruction set is called %s", name);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"encode", native_encode, METH_VARARGS, encode_doc},
    {"decode", native_decode, METH_VARARGS, decode_doc},
    {"isa", native_isa, METH_NOARGS, "isa() -> the instruction set in use: avx512, avx2 or generic"},
    {"limit_isa", native_limit_isa, METH_VARARGS, "limit_isa(name or None): use at most this one"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The plane kernels in C.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    Damage = PyErr_NewException("tierstore.codecs._native.Damage", PyExc_ValueError, NULL);
    if (!Damage || PyModule_AddObjectRef(module, "Damage", Damage)) Py_CLEAR(module);
    return module;
}
