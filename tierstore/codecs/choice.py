"""Whether the native kernels are wanted: said as a store is opened, before a codec is imported."""

from __future__ import annotations


class _Choice:
    wanted = True


choice = _Choice()
"""For the whole process."""
