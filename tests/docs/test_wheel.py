"""What ``python -m build`` makes: a wheel that runs on its own, wherever the checkout is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (".c", ".h", ".S")
BLAKE3 = "format/blake3/"
"""What is there beside sources is in a wheel only as licences of the whole."""


def _run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env | {"HOME": str(cwd)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the package in this checkout, by their paths below it."""
    found = _run("git", "-c", f"safe.directory={ROOT}", "ls-files", "tierstore", cwd=ROOT)
    return [line.removeprefix("tierstore/") for line in found.splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source distribution of a copy of this checkout, and the wheel made from that, by suffix."""
    folder = tmp_path_factory.mktemp("build")
    skipped = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "tests", "benchmarks"
    )
    shutil.copytree(ROOT, folder / "checkout", ignore=skipped)
    _run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist",
        folder / "checkout", cwd=folder,
    )  # fmt: skip
    return {path.suffix: path for path in (folder / "dist").iterdir()}


@pytest.fixture(scope="module")
def bare(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    _run(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index",
        "--no-deps", built[".whl"], cwd=folder,
    )  # fmt: skip
    site = folder / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # behind the wheel's own; .pth files in there, an editable installation's, have no effect
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_a_wheel_holds_the_whole_package_and_nothing_else(
    built: dict[str, Path], tracked: list[str]
) -> None:
    assert built[".whl"].name.split("-", 2)[2].startswith("cp311-abi3-linux_")
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    inside = {name.removeprefix("tierstore/") for name in names}
    native = {name for name in inside if name.endswith(".so")}
    assert native == {f"{name.replace('.', '/')}.abi3.so" for name in _extensions()}
    others = {name for name in tracked if not name.endswith(SOURCES) and BLAKE3 not in name}
    assert inside - native == others
    licences = {"LICENSE", *(f"tierstore/{BLAKE3}LICENSE_{name}" for name in ("A2", "CC0"))}
    with zipfile.ZipFile(built[".whl"]) as wheel:
        kept = {name.partition("/licenses/")[2] for name in wheel.namelist()}
    assert kept - {""} == licences


def _extensions() -> list[str]:
    """The native parts that setup.py names, by their names below the package."""
    text = (ROOT / "setup.py").read_text("utf-8")
    return re.findall(r'"tierstore\.([a-z_.]+)"', text)


def test_a_source_distribution_holds_what_a_build_and_a_reader_need(
    built: dict[str, Path], tracked: list[str]
) -> None:
    import tarfile

    with tarfile.open(built[".gz"]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside >= {f"tierstore/{name}" for name in tracked}
    assert inside >= {"README.md", "CHANGELOG.md", "LICENSE", "docs/index.md", "mkdocs.yml"}


def _demo(bare: Path, *arguments: str) -> Any:
    command = bare / "venv" / "bin" / "tierstore"
    return json.loads(_run(command, *arguments, "--json", cwd=bare))


def test_the_demo_runs_from_the_wheel(bare: Path) -> None:
    python = bare / "venv" / "bin" / "python"
    where = _run(python, "-c", "import tierstore; print(tierstore.__file__)", cwd=bare)
    assert Path(where.strip()).is_relative_to(bare)

    found = _demo(bare, "demo", "--dir", str(bare))
    assert found["exported"]
    assert all(file["identical"] for file in found["exported"])
    assert found["usage"]["stored_bytes"] < found["usage"]["unique_bytes"]


def test_the_wheel_has_its_native_parts_and_its_data(bare: Path) -> None:
    found = _demo(bare, "doctor")
    assert found["kernels"]["in_use"]
    assert all(found["native_parts"].values())
    command = bare / "venv" / "bin" / "tierstore"
    example = _run(command, "tier", "example", cwd=bare)
    assert example == (ROOT / "tierstore/cli/tierstore.example.toml").read_text("utf-8")
