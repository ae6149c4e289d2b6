"""What a lossy variant says of itself: a JSON file beside its weights.

The file is part of the variant's content, so it cannot be lost or exchanged, and it goes along when
the variant is exported. Numbers are JSON's; an infinite SNR (an exact copy) is null.
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
    """How far an approximation is from its original, see ``TensorError``."""

    max_abs: float | None
    relative_l2: float | None
    snr_db: float | None


class TensorRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One tensor that was approximated.

    Attributes:
        dtype: safetensors dtype of the original.
        shape: of the original.
        parts: names of the stored tensors by the method's suffixes.
        file: path of the file that holds them.
        error: of the tensor.
    """

    dtype: str
    shape: list[int]
    parts: dict[str, str]
    file: str
    error: ErrorRecord


class VariantRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One variant.

    Attributes:
        format: of this file.
        name: of the variant.
        base: manifest digest (hex) of the version it was made from.
        parameters: the method, as ``method_of`` takes it.
        kept: the pattern of tensor names that were left as they are; empty for none.
        tool: what made it.
        error: of the whole model: all its float tensors as if they were one, also those that were
            kept.
        tensors: by the original's name as ``Model`` has it.
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
    """The form in which an error is kept; what is infinite becomes null."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return ErrorRecord(
        max_abs=finite(error.max_abs),
        relative_l2=finite(error.relative_l2),
        snr_db=finite(error.snr_db),
    )


def encode_record(record: VariantRecord) -> bytes:
    """The bytes of the file: the same for equal records."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1) + b"\n"


def parse_record(data: Buffer, name: str) -> VariantRecord:
    """Read the file.

    Raises:
        Damaged: it is no record.
        UnsupportedFormat: it was written by a newer version.
    """
    try:
        fields = msgspec.json.decode(bytes(data), type=dict[str, msgspec.Raw])
        if msgspec.json.decode(fields.get("format", b"null")) != FORMAT:
            raise UnsupportedFormat(f"{name} was written by a newer tierstore; upgrade this one")
        return msgspec.json.decode(bytes(data), type=prepared(VariantRecord))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{name} is no variant's record: {error}") from None
