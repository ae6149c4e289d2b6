"""The rules of safetensors headers, one hostile header each, and the header we write."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save

from tierstore.errors import InvalidName, InvalidSafetensors, UsageError
from tierstore.format import safetensors
from tierstore.format.dtypes import DTYPE_CODES, DTYPE_OF_CODE, DTYPES, name_of, numpy_dtype
from tierstore.format.safetensors import (
    MAX_HEADER_BYTES,
    TensorInfo,
    build_header,
    header_length,
    parse_header,
)

A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def framed(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return len(data).to_bytes(8, "little") + data


def tensor(shape: str = "[2]", offsets: str = "[0,8]", dtype: str = '"F32"') -> str:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "begins with"),
    "not an object": ("[]", "begins with"),
    "leading space": (" {}", "begins with"),
    "byte order mark": (b"\xef\xbb\xbf{}", "begins with"),
    "not UTF-8": (b'{"\xff":1}', "not UTF-8 (byte 2)"),
    "UTF-8 of a surrogate": (b'{"\xed\xa0\x80":1}', "not UTF-8"),
    "cut JSON": ('{"a":', "truncated"),
    "trailing NUL": ("{" + A + "}\0", "trailing"),
    "trailing comma": ("{" + A + ",}", "trailing comma"),
    "control character": ('{"a\n":1}', "invalid character"),
    "lone surrogate": ('{"\\ud800......":1}', "surrogate"),
    "deep arrays": ('{"a":' + "[" * 10**6 + "]" * 10**6 + "}", "deep"),
    "deep objects": ('{"a":' * 10**6 + "1" + "}" * 10**6, "deep"),
    "deep, below the decoder's bound": (
        '{"a":' + "[" * 300 + "]" * 300 + "}",
        "'a': Expected `obj",
    ),
    "tensor is null": ('{"a":null}', "tensor 'a': Expected `object`"),
    "tensor is an array": ('{"a":["F32",[2],[0,8]]}', "tensor 'a'"),
    "unknown key": (tensor(offsets='[0,8],"x":1'), "unknown field `x`"),
    "missing key": ('{"a":{"dtype":"F32","shape":[2]}}', "data_offsets"),
    "unknown dtype": (tensor(dtype='"f32"'), "unknown dtype 'f32'"),
    "dtype is an object": (tensor(dtype='{"F32":null}'), "dtype"),
    "float": (tensor("[2.0]"), "got `float`"),
    "exponent": (tensor("[2e0]"), "got `float`"),
    "bool": (tensor("[2]", "[false,8]"), "got `bool`"),
    "string": (tensor('["2"]'), "got `str`"),
    "leading zero": (tensor("[02]"), "invalid number"),
    "negative": (tensor("[-2]", "[0,-8]"), "'a'"),
    "two negatives": (tensor("[-2,-1]"), "negative"),
    "negative zero": (tensor("[2]", "[-0,8]"), "negative"),
    "beyond u64 after zero": (tensor("[0,18446744073709551616]", "[0,0]"), "overflows"),
    "long integer": (tensor("[" + "9" * 5000 + "]"), "out of range"),
    "offset beyond u64": (tensor("[0]", "[18446744073709551616,18446744073709551616]"), "u64"),
    "three offsets": (tensor("[2]", "[0,8,8]"), "length 2"),
    "offsets reversed": (tensor("[2]", "[8,0]"), "increasing"),
    "shape overflows before its zero": (tensor("[9223372036854775808,2,0]", "[0,0]"), "overflows"),
    "bits overflow": (tensor("[4611686018427387904]", "[0,0]"), "overflows"),
    "huge shape": (tensor("[" + "4294967296," * 10**5 + "1]", "[0,0]"), "overflows"),
    "size is not the shape's": (tensor("[3]"), "need 12"),
    "sub-byte end": (tensor("[3]", "[0,2]", '"F4"'), "12 bits of F4"),
    "first tensor not at 0": (tensor("[2]", "[8,16]"), "hole"),
    "hole": ("{" + A + ',"b":{"dtype":"U8","shape":[1],"data_offsets":[9,10]}}', "'b'"),
    "overlap": ("{" + A + ',"b":{"dtype":"U8","shape":[1],"data_offsets":[7,8]}}', "overlaps"),
    "same bytes twice": ("{" + A + "," + A.replace('"a"', '"b"') + "}", "overlaps"),
    "duplicate tensor": ("{" + A + "," + A + "}", "key 'a' appears twice"),
    "duplicate by escape": ("{" + A + "," + A.replace('"a"', '"\\u0061"') + "}", "key 'a'"),
    "duplicate behind quotes": (
        "{" + A.replace('"a"', '"\\\\\\":"') + "," + A.replace('"a"', '"\\\\\\":"') + "}",
        "appears twice",
    ),
    "duplicate field": (tensor(dtype='"U8","dtype":"F32"'), "key 'dtype' appears twice"),
    "duplicate metadata": ('{"__metadata__":{},"__metadata__":{}}', "'__metadata__' appears"),
    "duplicate metadata key": ('{"__metadata__":{"k":"1","k":"1"}}', "'k' appears twice"),
    "metadata is an array": ('{"__metadata__":[]}', "must map strings to strings"),
    "metadata holds an integer": ('{"__metadata__":{"k":1}}', "must map strings to strings"),
    "metadata holds null": ('{"__metadata__":{"k":null}}', "must map strings to strings"),
    "metadata looks like a tensor": (tensor().replace('"a"', '"__metadata__"'), "must map"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_header_is_refused_in_one_line(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(InvalidSafetensors) as caught:
        parse_header(framed(text), None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_length_limit_is_checked_on_the_first_8_bytes() -> None:
    assert header_length(MAX_HEADER_BYTES.to_bytes(8, "little")) == MAX_HEADER_BYTES
    for bad in ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), b"\xff" * 8, b"\0" * 7, b""):
        with pytest.raises(InvalidSafetensors):
            header_length(bad)


def test_raw_and_file_size_must_agree_with_the_header() -> None:
    raw = framed("{" + A + "}")
    assert parse_header(raw, len(raw) + 8) == parse_header(raw, None)
    for cut in (raw[:-1], raw + b" ", raw[:5]):
        with pytest.raises(InvalidSafetensors):
            parse_header(cut, None)
    with pytest.raises(InvalidSafetensors, match="cut short"):
        parse_header(raw, len(raw) + 7)
    with pytest.raises(InvalidSafetensors, match="no tensor covers"):
        parse_header(raw, len(raw) + 9)


def test_tensors_come_in_data_order_and_raw_is_verbatim() -> None:
    text = (
        '{ "z":{"shape":[2],"data_offsets":[8, 16],"dtype":"F32"},\n'
        '"scalar":{"dtype":"U8","shape":[],"data_offsets":[16,17]},'
        '"none":{"dtype":"F64","shape":[3,0,18446744073709551615],"data_offsets":[17,17]},'
        '"six":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[17,20]},'
        + A.replace('"a"', '"a\\u0000\\ud83d\\ude00:\\"-"')
        + ',"__metadata__":{"":"-:\\"","format":"pt"}} \t\r\n'
    )
    header = parse_header(framed(text), 8 + len(text) + 20)
    assert header.raw == framed(text)
    assert header.data_size == 20
    assert header.metadata == {"": '-:"', "format": "pt"}
    assert header.tensors == (
        TensorInfo('a\0😀:"-', "F32", (2,), 0, 8),
        TensorInfo("z", "F32", (2,), 8, 16),
        TensorInfo("scalar", "U8", (), 16, 17),
        TensorInfo("none", "F64", (3, 0, 2**64 - 1), 17, 17),
        TensorInfo("six", "F6_E2M3", (4,), 17, 20),
    )


def test_no_tensors_and_kinds_of_absent_metadata() -> None:
    for text, metadata in (
        ("{}", None),
        ('{"__metadata__":null}', None),
        ('{"__metadata__":{}}', {}),
    ):
        header = parse_header(framed(text), 8 + len(text))
        assert (header.tensors, header.metadata, header.data_size) == ((), metadata, 0)
        assert deserialize(framed(text)) == []


@pytest.mark.parametrize("metadata", [None, {}, {"format": "np"}, {'k"\\\x07\x7fé\u2028😀': "\n/"}])
def test_built_header_is_the_librarys(metadata: dict[str, str] | None) -> None:
    shapes = itertools.cycle([(3,), (), (0, 7), (2, 3, 1)])
    arrays = {
        f"{i % 3}.{name}\x1f\x00é\\": np.zeros(next(shapes), numpy_dtype(name))
        for i, name in enumerate(DTYPES)
        if not name.startswith(("F4", "F6"))
    }
    described = [(name, name_of(array.dtype), array.shape) for name, array in arrays.items()]
    header = build_header(described, metadata)
    assert header.raw + bytes(header.data_size) == save(arrays, metadata)
    assert header == parse_header(header.raw, len(header.raw) + header.data_size)


def test_built_header_sorts_metadata_and_pads_no_tensors() -> None:
    assert build_header([], None).raw == save({}) == framed("{}      ")
    header = build_header([], {"b": "1", "a": "2"})
    assert json.loads(header.raw[8:]) == {"__metadata__": {"a": "2", "b": "1"}}
    assert header.raw.index(b'"a"') < header.raw.index(b'"b"')
    assert deserialize(header.raw) == []


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ([("a", "F32", (1,)), ("a", "U8", (1,))], InvalidName),
        ([("__metadata__", "F32", (1,))], InvalidName),
        ([("\ud800", "F32", (1,))], InvalidName),
        ([("a", "F33", (1,))], UsageError),
        ([("a", "F32", (-1, -1))], UsageError),
        ([("a", "F32", (2**40, 2**40))], UsageError),
        ([("a", "F4", (3,))], UsageError),
        ([("a", "U8", (2**63,)), ("b", "U8", (2**63,))], UsageError),
    ],
)
def test_header_that_cannot_be_written(
    tensors: list[tuple[str, str, tuple[int, ...]]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        build_header(tensors, None)


def test_a_header_above_the_limit_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_HEADER_BYTES == 100_000_000, "that of the library"
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 1000)
    build_header([("a" * 900, "U8", ())], None)
    with pytest.raises(UsageError, match="1000"):
        build_header([("a" * 1001, "U8", ())], None)


def test_dtype_names_map_both_ways() -> None:
    for row in DTYPES.values():
        if row.numpy is None:
            with pytest.raises(UsageError, match="no numpy counterpart"):
                numpy_dtype(row.name)
        else:
            assert name_of(numpy_dtype(row.name)) == row.name
            assert numpy_dtype(row.name).itemsize * 8 == row.bits
    for unknown in (np.dtype("c16"), np.dtype("V2"), np.dtype("M8[s]"), np.dtype("O")):
        with pytest.raises(UsageError, match="no safetensors counterpart"):
            name_of(unknown)
    with pytest.raises(UsageError, match="big-endian"):
        name_of(np.dtype(">f4"))


def test_dtype_codes_are_one_distinct_byte_each() -> None:
    assert set(DTYPE_CODES) == {"", *DTYPES}
    assert {DTYPE_OF_CODE[code]: code for code in DTYPE_CODES.values()} == DTYPE_CODES
    assert all(0 <= code < 256 for code in DTYPE_CODES.values())
    assert DTYPE_CODES[""] == 0


def test_dtype_bits_match_the_library() -> None:
    for row in DTYPES.values():
        raw = framed(tensor("[8]", f"[0,{row.bits}]", f'"{row.name}"'))
        assert deserialize(raw + bytes(row.bits))[0][1]["dtype"] == row.name
