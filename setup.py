"""The native parts; everything else about the package is in pyproject.toml.

They are optional: where they do not build, tierstore reads and writes the same format with numpy,
writes no proofs and reads whole chunks to verify parts of them, opens a hot tier's files one by
one, and holds requests up for longer while it writes in place.
"""

from collections.abc import Sequence
from pathlib import Path
from platform import machine

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("tierstore/codecs/kernels")
FORMAT = Path("tierstore/format")
BLAKE3 = FORMAT / "blake3"
BLAKE3_SIMD = {
    "x86_64": [f"blake3_{isa}_x86-64_unix.S" for isa in ("sse2", "sse41", "avx2", "avx512")],
    "aarch64": ["blake3_neon.c"],
}


def extension(name: str, *sources: str, depends: Sequence[str] = ()) -> Extension:
    return Extension(
        name,
        sources=list(sources),
        depends=list(depends),
        define_macros=[
            ("Py_LIMITED_API", "0x030B0000"),
            ("BLAKE3_API", ""),  # nothing is seen from outside but the module
            ("BLAKE3_PRIVATE", ""),
        ],
        extra_compile_args=["-O3", "-fvisibility=hidden"],
        py_limited_api=True,
        optional=True,
    )


class Build(build_ext):
    """Builds assembly files, too: the C compiler takes them like any other."""

    def build_extensions(self) -> None:
        self.compiler.src_extensions.append(".S")
        super().build_extensions()


setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        extension(
            "tierstore.codecs._native",
            "tierstore/codecs/_native.c",
            *sorted(map(str, KERNELS.glob("*.c"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
        ),
        extension(
            "tierstore.format._tree",
            str(FORMAT / "_tree.c"),
            *(str(BLAKE3 / f"blake3{part}.c") for part in ("", "_dispatch", "_portable")),
            *(str(BLAKE3 / name) for name in BLAKE3_SIMD.get(machine(), [])),
            depends=sorted(map(str, BLAKE3.glob("*.h"))),
        ),
        extension("tierstore.tiers.node._chunkio", "tierstore/tiers/node/_chunkio.c"),
        extension("tierstore.serving._scatter", "tierstore/serving/_scatter.c"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
