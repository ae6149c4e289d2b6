"""numpy, imported when it is first used: most commands that only look at a store do without it.

It takes longer to import than ``tierstore ls`` needs for everything else. Names that annotations
alone use come from numpy itself, under ``TYPE_CHECKING``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _Numpy:
        def __getattr__(self, name: str) -> Any:
            import numpy

            found = getattr(numpy, name)
            setattr(self, name, found)  # from now on as fast as any attribute
            return found

    np = _Numpy()

__all__ = ["np"]
