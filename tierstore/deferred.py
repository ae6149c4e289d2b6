"""numpy, imported at its first use.

Most commands that only look at a store do without it, and it takes longer to import than
``tierstore ls`` needs for everything else. Annotations take their names from numpy itself, under
``TYPE_CHECKING``; so do the array types that the package shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
    Bytes: TypeAlias = npt.NDArray[np.uint8]
    Indices: TypeAlias = npt.NDArray[np.int64]
else:

    class _Numpy:
        def __getattr__(self, name: str) -> Any:
            import numpy

            found = getattr(numpy, name)
            setattr(self, name, found)  # from now on as fast as any attribute
            return found

    np = _Numpy()

__all__ = ["import_numpy", "np"]


def import_numpy() -> None:
    """Import numpy now, before threads start that would compete with the import.

    The import waits for each of its hundreds of files, and every wait gives the other threads a
    turn of 5 ms.
    """
    import numpy  # noqa: F401
