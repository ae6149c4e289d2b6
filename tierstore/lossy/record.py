"""The record of a lossy variant: a JSON file beside its weights that says how it was made.

The file is part of the variant's content, so it cannot be lost or exchanged, and it goes along when
the variant is exported. An infinite SNR (an exact copy) is null.
"""

from __future__ import annotations

import math

import msgspec

from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.ids import Buffer
from tierstore.lossy.errors import TensorError
from tierstore.prepared import prepared

PATH = "tierstore-variant.json"
FORMAT = 1


class ErrorRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The error of an approximation, as in ``TensorError``."""

    max_abs: float | None
    relative_l2: float | None
    snr_db: float | None


class TensorRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One tensor that was approximated.

    Attributes:
        dtype: The safetensors dtype of the original.
        shape: The shape of the original.
        parts: The names of the stored tensors, by the method's suffixes.
        file: The path of the file that holds them.
        error: The error of the tensor.
    """

    dtype: str
    shape: list[int]
    parts: dict[str, str]
    file: str
    error: ErrorRecord


class VariantRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The record of one variant.

    Attributes:
        format: The version of this file's format.
        name: The name of the variant.
        base: The manifest digest (hex) of the version that it was made from.
        parameters: The method, as ``method_of`` takes it.
        kept: The pattern of the names of tensors that were left as they are; empty for none.
        tool: The program that made it.
        error: The error of all float tensors of the model as if they were one, with those that were
            kept.
        tensors: The approximated tensors by the original's name, as ``Model`` has it.
    """

    format: int = FORMAT
    name: str
    base: str
    parameters: dict[str, str]
    kept: str
    tool: str
    error: ErrorRecord
    tensors: dict[str, TensorRecord]


def error_record(error: TensorError) -> ErrorRecord:
    """Return the stored form of an error; infinite numbers become null."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return ErrorRecord(
        max_abs=finite(error.max_abs),
        relative_l2=finite(error.relative_l2),
        snr_db=finite(error.snr_db),
    )


def encode_record(record: VariantRecord) -> bytes:
    """Return the bytes of the file, the same for equal records."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1) + b"\n"


def parse_record(data: Buffer, name: str) -> VariantRecord:
    """Parse the file.

    Raises:
        Damaged: It is not a record.
        UnsupportedFormat: It was written by a newer version.
    """
    try:
        fields = msgspec.json.decode(bytes(data), type=dict[str, msgspec.Raw])
        if msgspec.json.decode(fields.get("format", b"null")) != FORMAT:
            raise UnsupportedFormat(f"{name} was written by a newer tierstore; upgrade this one")
        return msgspec.json.decode(bytes(data), type=prepared(VariantRecord))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{name} is not the record of a variant: {error}") from None
