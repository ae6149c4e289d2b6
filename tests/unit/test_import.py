"""What ``import tierstore`` costs, and that the public names are there and typed."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tierstore
import tierstore.serving.safetensors

HEAVY = (
    "torch", "obstore", "fsspec", "redis", "pymemcache", "click", "rich", "numba", "numpy",
    "ml_dtypes", "msgspec", "zstandard", "blake3", "sqlite3", "asyncio", "boto3", "hypothesis",
    "pytest",
)  # fmt: skip
BESIDE = {"__version__", "open", "safetensors"}


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``code``."""
    return {name.partition(".")[0] for name in modules_of(code)}


def modules_of(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``code``."""
    show = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    found = loaded_by("import tierstore, tierstore.errors, tierstore.ids")
    assert "tierstore" in found
    assert found.isdisjoint(HEAVY), sorted(found & set(HEAVY))


UNUSED = (
    "tierstore.admin", "tierstore.codecs.registry", "tierstore.copying", "tierstore.lossy",
    "tierstore.modelstore.care", "tierstore.modelstore.chunks", "tierstore.modelstore.loading",
    "tierstore.modelstore.patches", "tierstore.modelstore.placing",
    "tierstore.modelstore.reclaim.re", "tierstore.modelstore.saving", "tierstore.placement",
    "tierstore.tiers.heat", "tierstore.tiers.node", "tierstore.variants", "sqlite3", "tomllib",
    "numpy", "ml_dtypes",
)  # fmt: skip
"""What a process that only looks at names does without: names of modules begin so."""


def unused(modules: set[str], *others: str) -> list[str]:
    return sorted(one for one in modules if one.startswith(UNUSED + others))


NETWORK = {"torch", "obstore", "fsspec", "redis", "pymemcache", "aiohttp"}


def test_a_store_is_opened_without_what_reads_and_writes(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "s") as store:
        store.save("m", {"w": np.arange(8.0)})
    code = f"import tierstore; tierstore.open({str(tmp_path / 's')!r})"
    found = modules_of(code)
    assert "msgspec" in found
    assert not unused(found, *NETWORK, "click", "rich", "secrets")
    loads = modules_of(f"{code}.load('m')['w']")
    assert "tierstore.modelstore.loading.model" in loads
    rooms = "tierstore.modelstore."
    others = tuple(rooms + one for one in ("saving", "patches", "care", "placing", "reclaim.re"))
    assert not [one for one in loads if one.startswith(others)]


def test_a_list_of_models_is_shown_without_what_reads_and_writes(tmp_path: Path) -> None:
    """Imports are most of the time that ``tierstore ls`` takes."""
    with tierstore.init(tmp_path / "s") as store:
        store.save("m", {"w": np.arange(8.0)}, alias="prod")
    found = run_as(["--store", str(tmp_path / "s"), "--json", "ls"])
    assert "click" in found
    assert not unused(found, *NETWORK, "pydantic", "secrets")


def test_the_version_is_printed_without_a_store() -> None:
    found = run_as(["--version"])
    assert not unused(
        found, *NETWORK, "pydantic", "tierstore.cli.models", "tierstore.store", "tierstore.wiring"
    )


def run_as(argv: list[str]) -> set[str]:
    """The modules that a run of the program has loaded."""
    return modules_of(
        f"import sys; sys.argv = {['tierstore', *argv]!r}\n"
        "from tierstore.cli import main\n"
        "try: main()\nexcept SystemExit as done: assert not done.code, done.code"
    )


def test_public_names() -> None:
    assert tierstore.__all__ == sorted(tierstore.__all__)
    for name in tierstore.__all__:
        assert getattr(tierstore, name) is not None, name
    assert set(dir(tierstore)) >= {*tierstore.__all__, *BESIDE}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tierstore.nothing  # noqa: B018


def test_the_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(tierstore.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    given = {name for node in block.body for name in _assigned(node)}
    assert given == {"open", "__version__"}
    assert (seen | given) - {"open_store"} == {*tierstore.__all__, *BESIDE}


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_a_star_takes_no_name_from_anybody() -> None:
    """``open`` stays the builtin one, ``safetensors`` the library."""
    names: dict[str, object] = {}
    exec("from tierstore import *", names)
    assert names["init"] is tierstore.init
    assert names.keys().isdisjoint(BESIDE)
    assert callable(tierstore.open)
    assert tierstore.open is not open


def test_the_version_is_that_of_the_installed_package() -> None:
    assert tierstore.__version__ == importlib.metadata.version("tierstore")
    assert "importlib.metadata" not in modules_of("import tierstore")


def test_safetensors_under_its_public_name() -> None:
    code = "import tierstore; tierstore.safetensors.install(); tierstore.safetensors.uninstall()"
    assert "tierstore.serving.safetensors" in modules_of(code)
    public, own = tierstore.safetensors, tierstore.serving.safetensors
    for name in public.__all__:
        assert getattr(public, name) is getattr(own, name)
    assert tierstore.safe_open is public.safe_open
