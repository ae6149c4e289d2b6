"""Lossy methods beside those whose formats they write: torch and compressed-tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given

from tests.unit.test_lossy import MATRICES, normal
from tierstore.lossy.methods import Channel, Int8Row


def test_int8_rows_are_what_torch_packs() -> None:
    array = normal(500, 96)
    array[1], array[2], array[3] = 0, 2.5, array[3] * 1e-6
    packed = torch.ops.quantized.embedding_bag_byte_prepack(torch.from_numpy(array)).numpy()
    parts = Int8Row().encode(array)
    assert parts[""].tobytes() == packed.tobytes()
    unpacked = torch.ops.quantized.embedding_bag_byte_unpack(torch.from_numpy(packed)).numpy()
    back = Int8Row().decode(parts, "F32", array.shape)
    np.testing.assert_allclose(back, unpacked, rtol=1e-6, atol=1e-6)


@given(MATRICES)
def test_int8_codes_are_what_compressed_tensors_unpacks(matrix: np.ndarray) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import (
        pack_to_int32,
        unpack_from_int32,
    )

    matrix = matrix[:, : max(1, matrix.shape[1] - 1)]  # widths that fill no whole word
    parts = Channel("int8").encode(matrix)
    packed = torch.from_numpy(parts["_packed"])
    codes = unpack_from_int32(packed, 8, torch.Size(matrix.shape)).numpy()
    back = Channel("int8").decode(parts, "F32", matrix.shape)
    assert (back == codes.astype(np.float32) * parts["_scale"]).all()
    assert (pack_to_int32(torch.from_numpy(codes), 8).numpy() == parts["_packed"]).all()
