"""The error of a lossy tensor compared with the original, computed in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 20  # elements taken at once, so that a large tensor is never widened as a whole


@dataclass(frozen=True, slots=True)
class TensorError:
    """The distance of an approximation from its original.

    It is kept as sums rather than ratios, so that the errors of several tensors add up.

    Attributes:
        elements: How many elements were compared.
        max_abs: The largest absolute difference; infinite where one side is not finite and the
            other differs.
        squared_error: The sum of the squared differences.
        squared_norm: The sum of the squares of the original.
    """

    elements: int
    max_abs: float
    squared_error: float
    squared_norm: float

    @property
    def relative_l2(self) -> float:
        """The norm of the difference over the norm of the original; 0 for an exact copy."""
        if self.squared_error == 0:
            return 0.0
        if self.squared_norm == 0 or math.isinf(self.squared_error):
            return math.inf
        return math.sqrt(self.squared_error / self.squared_norm)

    @property
    def snr_db(self) -> float:
        """The signal-to-noise ratio ``10 log10(signal / noise)`` in decibels; infinite if equal."""
        if self.squared_error == 0:
            return math.inf
        if self.squared_norm == 0 or math.isinf(self.squared_error):
            return -math.inf
        return 10 * math.log10(self.squared_norm / self.squared_error)


def compare(original: npt.NDArray[Any], approximation: npt.NDArray[Any]) -> TensorError:
    """Return the error of ``approximation``; both have one shape, and any float or integer dtypes.

    Values that are equal, or both NaN, do not differ. A difference that is not finite counts as
    infinite.
    """
    if original.shape != approximation.shape:
        raise ValueError(f"shapes {original.shape} and {approximation.shape} differ")
    left, right = original.reshape(-1), approximation.reshape(-1)
    largest = error = norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, left.size, _BLOCK):
            a = left[at : at + _BLOCK].astype(np.float64)
            b = right[at : at + _BLOCK].astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            difference = np.where(same, 0.0, a - b)
            difference[~np.isfinite(difference)] = np.inf
            largest = max(largest, float(np.abs(difference).max(initial=0.0)))
            error += float(difference @ difference)
            finite = a[np.isfinite(a)]
            norm += float(finite @ finite)
    return TensorError(left.size, largest, error, norm)


def total(errors: list[TensorError]) -> TensorError:
    """Return the error of all tensors together, as if they were one."""
    return TensorError(
        sum(e.elements for e in errors),
        max((e.max_abs for e in errors), default=0.0),
        math.fsum(e.squared_error for e in errors),
        math.fsum(e.squared_norm for e in errors),
    )
