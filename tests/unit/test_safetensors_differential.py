"""Our reader against the safetensors library: the same verdict and tensors for mutated headers."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from tierstore.errors import InvalidSafetensors
from tierstore.format.dtypes import DTYPES
from tierstore.format.safetensors import Header, build_header, parse_header

MUTATIONS = 20_000
MAX_DATA = 1 << 16
TOKENS = (
    *(b'{}[]:,"\\-.0 1 7 \n\t\0e null true "a" "__metadata__" "dtype" "shape"'.split(b" ")),
    *(b'"data_offsets"', b'"F32"', b'"BF16"', b'"F4"', b"\\u0061", b"\\ud800", b"\\udc00"),
    *(b"18446744073709551615", b"18446744073709551616", b"\xff", b"\xc3\xa9", b" ", b"-0", b"0.0"),
    *(b'"x":1,', b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', b"[0,0]", b"[]", b"{}"),
)


def ours(text: bytes, data_size: int) -> Header | str:
    raw = len(text).to_bytes(8, "little") + text
    try:
        return parse_header(raw, len(raw) + data_size)
    except InvalidSafetensors as error:
        return str(error)


def librarys(text: bytes, data_size: int) -> dict[str, Any] | str:
    try:
        found = deserialize(len(text).to_bytes(8, "little") + text + bytes(data_size))
    except SafetensorError as error:
        return str(error)
    return {name: (t["dtype"], tuple(t["shape"]), len(t["data"])) for name, t in found}


class _Exception(Exception):
    """The header is one of those that we refuse on purpose."""


def _strict_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise _Exception
    return dict(pairs)


def refused_on_purpose(text: bytes) -> bool:
    """Whether one of the exceptions listed in the module's docstring applies to ``text``."""
    if not text.startswith(b"{"):
        return True
    try:
        header = json.loads(text, object_pairs_hook=_strict_pairs)
    except _Exception:
        return True
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    return any(
        not isinstance(tensor, dict)
        or set(tensor) != {"dtype", "shape", "data_offsets"}
        or not isinstance(tensor["dtype"], str)
        for tensor in tensors
    )


def compare(text: bytes, data_size: int) -> str:
    """Fail unless both readers agree; which verdict it was."""
    mine, theirs = ours(text, data_size), librarys(text, data_size)
    if isinstance(mine, Header):
        got = {t.name: (t.dtype, t.shape, t.end - t.begin) for t in mine.tensors}
        assert got == theirs, f"we accept what the library reads otherwise: {text!r}"
        return "accepted"
    if isinstance(theirs, str):
        return "refused"
    assert refused_on_purpose(text), f"the library accepts, we say {mine!r}: {text!r}"
    return "refused on purpose"


def seeds() -> list[tuple[bytes, int]]:
    small = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[]'
    small += ',"data_offsets":[8,9]},"c\\u0000":{"dtype":"F4","shape":[2,3],"data_offsets":[9,12]}'
    small += ',"d":{"dtype":"BF16","shape":[0,5],"data_offsets":[12,12]}'
    small += ',"__metadata__":{"k":"v","":"\\ud83d\\ude00"}}  '
    first = '{"__metadata__":null,"":{"shape":[1,3],"dtype":"I8","data_offsets":[0,3]}}'
    names = ("position_ids", "LayerNorm.bias", "LayerNorm.weight")
    bert = build_header([(f"embeddings.{n}", "F16", (3, 2)) for n in names], {"f": "pt"})
    return [(small.encode(), 12), (first.encode(), 3), (bert.raw[8:], bert.data_size)]


def mutate(rng: random.Random, text: bytes) -> bytes:
    """Between one and three edits: a token put in, or over a few bytes, or pieces cut or moved."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        after_opening = [i + 1 for i, byte in enumerate(text) if byte in b"{,"]
        at = rng.choice((rng.randrange(len(text) + 1), rng.choice(after_opening or [0])))
        upto = min(len(text), at + rng.choice((1, 1, 2, 5, 30)))
        piece = rng.choice(
            (rng.choice(TOKENS), b"", bytes([rng.randrange(256)]), text[at:upto] * 2)
        )
        text = text[:at] + piece + text[rng.choice((at, upto)) :]
    return text


def test_mutated_headers_get_the_librarys_verdict() -> None:
    rng = random.Random(8)
    originals = seeds()
    verdicts = {"accepted": 0, "refused": 0, "refused on purpose": 0}
    for _ in range(MUTATIONS):
        text, size = rng.choice(originals)
        verdicts[compare(mutate(rng, text), size)] += 1
    assert min(verdicts.values()) > MUTATIONS // 1000, verdicts


sizes = st.integers(0, 4) | st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, 2**64])
odd: st.SearchStrategy[Any] = st.sampled_from([-1, -0.0, 1.0, True, None, "1", [], {}, 10**30])


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, int]:
    """Mostly valid headers of a few tensors, with now and then one field of another kind."""
    entries: list[tuple[str, Any]] = []
    at = 0
    for name in draw(st.lists(st.text(max_size=4), max_size=4)):
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = draw(st.lists(sizes, max_size=4))
        count = 1
        for size in shape:
            count *= size
        end = at + count * DTYPES[dtype].bits // 8
        info: dict[str, Any] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        if draw(st.integers(0, 9)) == 0:
            info[draw(st.sampled_from([*info, "extra"]))] = draw(odd | st.lists(odd | sizes))
        entries.append((name, info))
        at = end
    if draw(st.booleans()):
        values = st.text(max_size=4) if draw(st.integers(0, 9)) else odd
        metadata = st.dictionaries(st.text(max_size=4), values, max_size=3) | st.none()
        entries.append(("__metadata__", draw(metadata)))
    ascii_only = draw(st.booleans())
    parts = (
        json.dumps(name, ensure_ascii=ascii_only) + ":" + json.dumps(v, ensure_ascii=ascii_only)
        for name, v in draw(st.permutations(entries))
    )
    text = "{" + ",".join(parts) + "}" + " " * draw(st.integers(0, 2))
    off = draw(st.sampled_from([0, 0, 0, 1, -1]))
    return text.encode("utf-8", "surrogatepass"), min(max(at + off, 0), MAX_DATA)


@settings(max_examples=8 * settings().max_examples)
@given(headers())
def test_generated_headers_get_the_librarys_verdict(case: tuple[bytes, int]) -> None:
    compare(*case)
