"""The native parts; everything else about the package is in pyproject.toml.

They are optional: where they do not build, tierstore reads and writes the same format with numpy,
opens a hot tier's files one by one, and holds requests up for longer while it writes in place.
"""

from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("tierstore/codecs/kernels")


def extension(name: str, *sources: str, depends: Sequence[str] = ()) -> Extension:
    return Extension(
        name,
        sources=list(sources),
        depends=list(depends),
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=["-O3"],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        extension(
            "tierstore.codecs._native",
            "tierstore/codecs/_native.c",
            *sorted(map(str, KERNELS.glob("*.c"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
        ),
        extension("tierstore.tiers.node._chunkio", "tierstore/tiers/node/_chunkio.c"),
        extension("tierstore.serving._scatter", "tierstore/serving/_scatter.c"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
