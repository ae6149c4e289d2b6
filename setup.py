"""The native codec kernels; everything else about the package is in pyproject.toml.

The extension is optional: where it does not build, tierstore reads and writes the same format
with numpy.
"""

from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("tierstore/codecs/kernels")

setup(
    ext_modules=[
        Extension(
            "tierstore.codecs._native",
            sources=["tierstore/codecs/_native.c", *sorted(map(str, KERNELS.glob("*.c")))],
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
