"""A strict parser and writer of safetensors headers, without I/O.

A file is ``n`` (u64, little-endian), ``n`` bytes of JSON, then the tensors' bytes. The rules are
those of the safetensors library 0.8, which differential tests hold it to: the header has at most
100,000,000 bytes of UTF-8 JSON; integers are u64; tensors lie from 0 on, in offset order, with no
hole and no overlap; ``end - begin`` is the product of the shape (multiplied from the left, refused
on u64 overflow) times the element's bits, a whole number of bytes; the last one ends with the file.
An empty name, NUL in a name and a ``null`` ``__metadata__`` are allowed.

Whatever is accepted here the library accepts, with the same tensors. The reverse has these
deliberate exceptions, all of them refused here:

* a name, or a key of ``__metadata__``, that appears twice: the format forbids it, the library
  silently keeps the last one;
* white space before the first ``{``: the format demands that a header begins with ``{``;
* keys of a tensor other than dtype, shape and data_offsets: the library skips them unread, and
  whatever gave them a meaning would not see it honoured;
* a tensor written as an array ``["F32", [2], [0, 8]]`` and a dtype written as ``{"F32": null}``:
  accidents of the library's JSON decoder that no other reader follows.

Nothing but a few objects per tensor is allocated, so memory stays within a small multiple of the
header, and a deep nesting cannot occur in what the schema allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NoReturn

import msgspec

from tierstore.errors import InvalidName, InvalidSafetensors, UsageError
from tierstore.format.dtypes import DTYPES, dtype_bits

MAX_HEADER_BYTES = 100_000_000
"""Longest header in bytes, without its 8-byte length; the library's own limit."""

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_U64_MAX = 2**64 - 1
_METADATA = "__metadata__"
_DTYPE_ORDER = {name: order for order, name in enumerate(DTYPES)}


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """One tensor; ``begin`` and ``end`` are byte offsets in the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A valid safetensors header.

    Attributes:
        raw: The 8-byte length and the JSON, exactly as in the file, padding included.
        tensors: The tensors in the order of their data.
        metadata: The content of ``__metadata__``; ``None`` when the file has none.
        data_size: Bytes of the data section, which follows ``raw``.
    """

    raw: bytes
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str] | None
    data_size: int


class _RawTensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_decode_entries = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_tensor = msgspec.json.Decoder(_RawTensor).decode
_decode_metadata: Callable[[msgspec.Raw], dict[str, str] | None] = msgspec.json.Decoder(
    dict[str, str] | None
).decode


def _quote(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")


def _refuse(why: str) -> NoReturn:
    raise InvalidSafetensors(f"not a valid safetensors header: {why}")


def _refuse_tensor(name: str, why: str) -> NoReturn:
    _refuse(f"tensor {_quote(name)}: {why}")


def header_length(first8: bytes) -> int:
    """Return how many bytes of JSON follow the first 8 bytes of a file.

    Raises ``InvalidSafetensors`` above the limit, before anyone allocates that much.
    """
    if len(first8) != _LENGTH_BYTES:
        _refuse(f"the file has {len(first8)} bytes, not even the {_LENGTH_BYTES} of its length")
    n = int.from_bytes(first8, "little")
    if n > MAX_HEADER_BYTES:
        _refuse(f"it claims {n} bytes, above {MAX_HEADER_BYTES}: see that it is a safetensors file")
    return n


def parse_header(raw: bytes, file_size: int | None) -> Header:
    """Parse the 8-byte length and the JSON of a file.

    Args:
        raw: Exactly ``8 + header_length(raw[:8])`` bytes.
        file_size: Bytes of the whole file; ``None`` when unknown (its end is then not checked).

    Raises ``InvalidSafetensors`` with one line that names the tensor and the broken rule.
    """
    n = header_length(raw[:_LENGTH_BYTES])
    if len(raw) != _LENGTH_BYTES + n:
        _refuse(f"it has {len(raw) - _LENGTH_BYTES} bytes where its length says {n}")
    text = raw[_LENGTH_BYTES:]
    if not text.startswith(b"{"):
        _refuse(f"it begins with {text[:1]!r}, not with '{{'")
    entries = _decode(text)
    metadata_raw = entries.pop(_METADATA, None)
    metadata = None if metadata_raw is None else _parse_metadata(metadata_raw)
    tensors = [_parse_tensor(name, entry) for name, entry in entries.items()]
    keys = len(tensors) * (1 + len(_RawTensor.__struct_fields__))
    keys += 0 if metadata_raw is None else 1 + len(metadata or ())
    _check_tokens(text, keys)
    tensors.sort(key=attrgetter("begin", "end"))
    data_size = _check_offsets(tensors)
    total = _LENGTH_BYTES + n + data_size
    if file_size is not None and total != file_size:
        what = "cut short" if file_size < total else "followed by bytes that no tensor covers"
        _refuse(f"its tensors end at byte {total}, the file has {file_size}: it is {what}")
    return Header(raw, tuple(tensors), metadata, data_size)


def _decode(text: bytes) -> dict[str, msgspec.Raw]:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        _refuse(f"it is not UTF-8 (byte {error.start})")
    try:
        return _decode_entries(text)
    except msgspec.MsgspecError as error:
        _refuse(f"{error}")
    except RecursionError:
        _refuse("its JSON is nested too deep")


def _parse_metadata(entry: msgspec.Raw) -> dict[str, str] | None:
    try:
        return _decode_metadata(entry)
    except msgspec.MsgspecError as error:
        _refuse(f"{_METADATA} must map strings to strings: {error}")


def _parse_tensor(name: str, entry: msgspec.Raw) -> TensorInfo:
    try:
        tensor = _decode_tensor(entry)
    except msgspec.MsgspecError as error:
        _refuse_tensor(name, f"{error}")
    row = DTYPES.get(tensor.dtype)
    if row is None:
        _refuse_tensor(name, f"unknown dtype {_quote(tensor.dtype)}; known: {', '.join(DTYPES)}")
    begin, end = tensor.data_offsets
    if end > _U64_MAX or end < begin:
        _refuse_tensor(name, f"data_offsets [{begin}, {end}] are not an increasing pair of u64")
    bits = _checked_bits(name, tensor.shape, row.bits)
    if bits % 8:
        _refuse_tensor(name, f"its {bits} bits of {row.name} do not end on a byte boundary")
    if end - begin != bits // 8:
        _refuse_tensor(
            name,
            f"data_offsets [{begin}, {end}] hold {end - begin} bytes, but its shape and "
            f"{row.name} need {bits // 8}",
        )
    return TensorInfo(name, row.name, tensor.shape, begin, end)


def _checked_bits(name: str, shape: tuple[int, ...], bits: int) -> int:
    """Return the product of ``shape`` times ``bits``, multiplied from the left; refused beyond u64.

    Stopping at the first overflow keeps a hostile shape from growing a huge integer.
    """
    count = 1
    for size in shape:
        count *= size
        if count > _U64_MAX or size > _U64_MAX:
            _refuse_tensor(name, "the product of its shape overflows 64 bits")
    if count * bits > _U64_MAX:
        _refuse_tensor(name, "its size overflows 64 bits")
    return count * bits


def _check_tokens(text: bytes, keys: int) -> None:
    """Refuse what the JSON decoder lets pass: repeated keys, and ``-0`` for an integer.

    Every key of an object has one colon outside strings, so a repeated one, of which the decoder
    keeps the last, shows as a colon too many. Without escaped quotes (and the escaped backslashes
    that could precede a quote), every second piece between quotes lies outside strings.
    """
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(unescaped.split(b'"')[::2])
    if b"-" in outside:
        _refuse("it holds a negative number")
    if outside.count(b":") != keys:
        _refuse(f"the key {_quote(_first_repeated_key(text))} appears twice in one object")


def _first_repeated_key(text: bytes) -> str:
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                repeated.append(key)
            seen.add(key)

    json.loads(text, object_pairs_hook=note)
    return repeated[0]


def _check_offsets(tensors: list[TensorInfo]) -> int:
    """Refuse holes and overlaps between ``tensors``; return the size of the data section."""
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            what = "overlaps the tensor before it" if tensor.begin < at else "leaves a hole"
            _refuse_tensor(tensor.name, f"it begins at byte {tensor.begin}, not at {at}: it {what}")
        at = tensor.end
    return at


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> Header:
    """Return the header that the safetensors library writes for these tensors, byte for byte.

    Tensors are laid out by dtype (in the library's order, widest first), then by name; the JSON is
    padded with spaces to 8 bytes. The keys of ``metadata`` are sorted: the library's own order
    changes from call to call.

    Args:
        tensors: Name, safetensors dtype and shape of each tensor.
        metadata: Written as ``__metadata__`` unless None.

    Raises ``InvalidName`` for a name that is reserved, repeated or not Unicode text, ``UsageError``
    for an unknown dtype, a bad shape or a header beyond the limit.
    """
    infos: list[TensorInfo] = []
    at = 0
    ordered = sorted(tensors, key=lambda t: (-_DTYPE_ORDER.get(t[1], 0), t[0]))
    for name, dtype, shape in ordered:
        size = _bytes_to_save(name, dtype, shape)
        infos.append(TensorInfo(name, dtype, tuple(shape), at, at + size))
        at += size
    _check_names([info.name for info in infos])
    entries: dict[str, object] = {}
    if metadata is not None:
        entries[_METADATA] = dict(sorted(metadata.items()))
    for info in infos:
        offsets = (info.begin, info.end)
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": offsets}
    text = _encode(entries)
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES or at > _U64_MAX:
        raise UsageError(
            f"{len(infos)} tensors need a header of {len(text)} bytes for {at} bytes of data: the "
            f"limits are {MAX_HEADER_BYTES} and 2**64; save them as several files"
        )
    raw = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return Header(raw, tuple(infos), None if metadata is None else dict(metadata), at)


def _bytes_to_save(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    bits = dtype_bits(dtype)
    if any(size < 0 for size in shape):
        raise UsageError(f"tensor {_quote(name)}: its shape {list(shape)} has a negative size")
    try:
        bits = _checked_bits(name, shape, bits)
    except InvalidSafetensors as error:
        raise UsageError(str(error)) from None
    if bits % 8:
        raise UsageError(
            f"tensor {_quote(name)}: {bits} bits of {dtype} do not end on a byte boundary"
        )
    return bits // 8


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name == _METADATA:
            raise InvalidName(f"a tensor cannot be named {_METADATA!r}: rename it")
        if name in seen:
            raise InvalidName(f"two tensors are named {_quote(name)}: rename one")
        seen.add(name)


def _encode(entries: dict[str, object]) -> bytes:
    try:
        return json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        before = _quote(error.object[max(0, error.start - 20) : error.start])
        raise InvalidName(
            f"a tensor name or metadata string holds a lone surrogate after {before}: rename it"
        ) from None
