"""Floors and rooms, held by the code's own imports; and the sizes that keep modules readable.

A floor imports only what is below it, and so does a room in a folder that has rooms of its own.
What lies in a folder is private to it unless the ``__all__`` of its ``__init__`` names it. Imports
inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import tierstore

ROOT = Path(tierstore.__file__).parent
MAX_MODULE_LINES = 500
"""Docstrings not counted."""
MAX_FUNCTION_LINES = 50
"""Docstrings not counted either: those of public functions hold examples."""

FLOORS = {
    "errors": 0, "forks": 0, "arguments": 0, "ids": 0, "prepared": 0, "deferred": 0, "shown": 0,
    "folders": 0, "progress": 0, "locks": 0, "unfinished": 0,
    "format": 1, "codecs": 1, "blobs": 1, "placement": 1, "lossy": 1,
    "tiers": 2,
    "modelstore": 3, "variants": 3, "copying": 3,
    "config": 4, "wiring": 4,
    "admin": 5,
    "store": 6,
    "serving": 7, "torch": 7, "safetensors": 7, "cli": 7, "testing": 7, "__main__": 7,
    "": 8,  # the package itself, which gives out the public names
}  # fmt: skip
OTHERS = "*"
ROOMS = {
    "blobs": {"base": 0, "shared": 1, "fsspec": 3, OTHERS: 2},
    "tiers": {
        "stats": 0,
        "activity": 1, "guard": 1, "base": 1,
        "durable": 2, "node": 2, "heat": 2,
        "hot": 3,
        "upkeep": 4,
    },
    "modelstore": {
        "settings": 0, "version": 0, "places": 0, "defaults": 0,
        "home": 1,
        "chunks": 2, "names": 2,
        "loading": 3,
        "saving": 4, "placing": 4,
        "patches": 5, "care": 5,
        "reclaim": 6,
        "parts": 7,
        "store": 8,
    },
    "serving": {"metrics": 0, "hub": 1, OTHERS: 2},
    "cli": {"commands": 0, "schemas": 1, "kit": 2, OTHERS: 3},
}  # fmt: skip
"""The floors inside of a folder. What has no rooms of its own may share one, and see each other."""
SAME_FLOOR = {
    ("arguments", "errors"), ("ids", "errors"), ("ids", "arguments"), ("progress", "errors"),
    ("progress", "arguments"), ("format", "codecs"), ("variants", "modelstore"),
    ("copying", "modelstore"),
    ("prepared", "forks"), ("folders", "errors"), ("locks", "forks"), ("unfinished", "locks"),
    ("unfinished", "folders"),
    ("wiring", "config"),
    ("__main__", "cli"), ("cli", "serving"), ("torch", "serving"), ("safetensors", "serving"),
}  # fmt: skip
"""Imports within a floor that are allowed, (importer, imported)."""

USES_PACKAGE = {"cli", "serving", "testing", "__main__"}
"""Who may say ``import tierstore`` as a user does."""

ALWAYS_THERE = {
    "errors", "ids", "format", "codecs", "blobs", "modelstore", "config", "wiring", "admin",
    "testing",
}  # fmt: skip
SOURCES = {"SourceFile", "ArrayBytes", "BaseVersion"}
"""What a save takes bytes from."""
UNVERIFIED = {"ChunkReader", "FileView", "LocalChunks", "Model", "Opened", "Store", "Tensor"}
"""What reads from the store and believes what is hot on this node."""
FORK_BREAKS = {
    "Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Queue", "LifoQueue",
    "SimpleQueue", "Thread", "ThreadPoolExecutor",
}  # fmt: skip
NEVER_FORKED = {
    # of one call, whose threads are waited for
    "tierstore.modelstore.saving.base_selection", "tierstore.modelstore.saving.delta",
    "tierstore.modelstore.saving.packer", "tierstore.modelstore.saving.savestate",
    "tierstore.modelstore.saving.segments", "tierstore.modelstore.saving.writer",
    "tierstore.modelstore.chunks.sharing", "_Fetch",
    "tierstore.tiers.durable.mover", "Waiting", "tierstore.progress", "_Stage",
    "SftpFileSystem", "Clients",  # left to the parent as a whole
    "tierstore.serving.agent", "tierstore.serving.node",  # of a program of its own
}  # fmt: skip
"""Modules and classes that hold locks or threads which no forked child uses."""
NO_IO = {
    "os", "io", "pathlib", "shutil", "tempfile", "glob", "mmap", "fcntl", "ctypes", "sqlite3",
    "socket", "ssl", "http", "urllib", "selectors", "asyncio", "subprocess", "signal", "time",
    "datetime", "threading", "multiprocessing", "concurrent", "logging",
}  # fmt: skip
"""What placement may not import: it is pure, without I/O, threads or a clock."""


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of its tree: to walk through all trees takes a second each time."""
        return tuple(ast.walk(self.tree))

    @property
    def top(self) -> str:
        """Its file or folder right below the package; ``""`` for the package itself."""
        return self.name.partition(".")[2].partition(".")[0]


def _modules() -> list[Module]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["tierstore", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path))
    return found


MODULES = _modules()
NAMES = {module.name for module in MODULES}


def imports_of(module: Module) -> Iterator[tuple[str, int]]:
    """Every imported module's full name and the line, ``import_module("…")`` included."""
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in NAMES else base), node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            first = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def imported_names(module: Module) -> Iterator[tuple[str, int]]:
    """Every module of tierstore that is imported, and every name out of a folder's ``__init__``."""
    for name, line in imports_of(module):
        if name.startswith("tierstore."):
            yield name, line
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and node.module in DOORS:  # never relative, see below
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _doors() -> dict[str, frozenset[str]]:
    """What the ``__init__`` of every folder below the package names in ``__all__``."""
    found = {}
    for module in MODULES:
        if module.path.name != "__init__.py" or not module.top:
            continue
        named: frozenset[str] = frozenset()
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                named = frozenset(ast.literal_eval(node.value))
        found[module.name] = named
    return found


DOORS = _doors()


@pytest.fixture(autouse=True, scope="module")
def _trees() -> Iterator[None]:
    """Keep what was parsed, which takes 70 MiB, for as long as these tests run."""
    yield
    for module in MODULES:
        module.__dict__.pop("tree", None)
        module.__dict__.pop("nodes", None)


FOR_OTHERS = {"tierstore.serving", "tierstore.testing", "tierstore.codecs", "tierstore.wiring"}
"""Folders whose names are also used by programs outside of the package."""


def own_imports(module: Module) -> Iterator[tuple[str, str, int]]:
    """Imports of tierstore: the full name, its top-level part, the line."""
    for name, line in imports_of(module):
        head, _, rest = name.partition(".")
        if head == "tierstore":
            yield name, rest.partition(".")[0], line


def _report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_every_top_level_name_has_a_floor() -> None:
    tops = {module.top for module in MODULES}
    assert tops <= set(FLOORS), f"give these a floor: {sorted(tops - set(FLOORS))}"
    assert tops >= ALWAYS_THERE, f"gone: {sorted(ALWAYS_THERE - tops)}"
    assert (ROOT / "py.typed").is_file()


COMPUTED_IMPORTS = {
    "tierstore", "tierstore.codecs", "tierstore.admin.doctor", "tierstore.cli.kit.app",
    "tierstore.cli.schemas.markdown",
}  # fmt: skip
"""Who imports by a computed name: out of a table that other tests hold."""


def test_imports_can_be_read_by_these_tests() -> None:
    """Nothing is reached by a way that imports cannot be told from."""
    problems = []
    for module in MODULES:
        for node in module.nodes:
            where = f"{module.path}:{getattr(node, 'lineno', 0)}: "
            if isinstance(node, ast.ImportFrom) and node.level:
                problems.append(where + "a relative import")
            elif isinstance(node, ast.Import):
                problems += [
                    f"{where}import {alias.name}; say 'from … import …'"
                    for alias in node.names
                    if alias.name.startswith("tierstore.")
                ]
            elif isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name in {"resolve_name", "exec", "eval", "spec_from_file_location"}:
                    problems.append(f"{where}{name}")
            elif isinstance(node, ast.Call) and module.name not in COMPUTED_IMPORTS:
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if called in {"import_module", "__import__"} and not (
                    len(node.args) == 1
                    and isinstance(node.args[0], ast.Constant)
                    and not str(node.args[0].value).startswith(".")
                ):
                    problems.append(f"{where}{called} of a name that is computed")
    _report(problems)


def test_imports_go_down() -> None:
    problems = []
    for module in MODULES:
        for name, top, line in own_imports(module):
            if module.top == "" or top == module.top:
                continue
            if top == "":
                allowed = module.top in USES_PACKAGE
            else:
                down = FLOORS[top] < FLOORS[module.top]
                allowed = down or (module.top, top) in SAME_FLOOR
            if not allowed:
                problems.append(
                    f"{module.path}:{line}: {module.name} (floor {FLOORS[module.top]}) imports "
                    f"{name} (floor {FLOORS[top]})"
                )
    _report(problems)


def _room(name: str, floors: dict[str, int]) -> str:
    """The room of a module: its file or folder below the folder that has the floors."""
    room = name.split(".")[2]
    folder = (ROOT.parent / Path(*name.split(".")[:3])).is_dir()
    return room if room in floors or folder or OTHERS not in floors else OTHERS


def test_every_folder_with_folders_has_rooms() -> None:
    folders = {path.parent.parent.name for path in ROOT.glob("*/*/__init__.py")}
    assert folders <= set(ROOMS), f"give its rooms floors: {sorted(folders - set(ROOMS))}"


def test_rooms_are_entered_from_above() -> None:
    problems = []
    for module in MODULES:
        floors = ROOMS.get(module.top)
        if floors is None or module.name.count(".") < 2:
            continue
        own = _room(module.name, floors)
        assert own in floors or OTHERS in floors, f"give {module.name} a floor in {module.top}"
        floor = floors.get(own, floors.get(OTHERS, 0))
        for name, top, line in own_imports(module):
            if top != module.top or name.count(".") < 2:
                continue
            other = _room(name, floors)
            below = floors.get(other, floors.get(OTHERS, 0))
            if other != own and below >= floor:
                problems.append(
                    f"{module.path}:{line}: {module.name} (floor {floor} of {top}) imports {name} "
                    f"(floor {below})"
                )
    _report(problems)


def test_rooms_are_entered_by_the_door() -> None:
    problems = []
    for module in MODULES:
        for name, line in imported_names(module):
            parts = name.split(".")
            for depth in range(2, len(parts)):
                folder = ".".join(parts[:depth])
                inside = module.name == folder or module.name.startswith(folder + ".")
                if folder in DOORS and not inside and parts[depth] not in DOORS[folder]:
                    problems.append(
                        f"{module.path}:{line}: {module.name} imports {name}, but the __all__ of "
                        f"{folder} does not name {parts[depth]!r}"
                    )
    _report(problems)


def test_doors_name_what_is_there_and_what_is_used() -> None:
    used = {name for module in MODULES for name, _ in imported_names(module)}
    problems = []
    for folder, doors in DOORS.items():
        path = ROOT.parent / folder.replace(".", "/")
        there = {each.stem for each in path.iterdir()} | _defined(path / "__init__.py")
        problems += [f"{folder} has no {door}" for door in doors - there]
        problems += [
            f"nobody outside of {folder} uses {door}"
            for door in doors
            if folder not in FOR_OTHERS
            and not any((name + ".").startswith(f"{folder}.{door}.") for name in used)
        ]
    _report(problems)


def _defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_concrete_stores_are_imported_only_where_they_are_wired() -> None:
    problems = []
    for module in MODULES:
        if module.top in {"blobs", "wiring", "testing"}:
            continue
        problems += [
            f"{module.path}:{line}: {module.name} imports {name}; take a BlobStore instead"
            for name, top, line in own_imports(module)
            if top == "blobs" and name != "tierstore.blobs.base"
        ]
    _report(problems)


def test_only_config_reads_the_environment() -> None:
    forbidden = {"environ", "environb", "getenv", "getenvb", "putenv"}
    problems = []
    for module in MODULES:
        if module.top == "config":
            continue
        for node in module.nodes:
            used: set[str] = set()
            if isinstance(node, ast.Attribute):  # of 'os' by whatever name
                used = {node.attr}
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                used = {alias.name for alias in node.names}
            problems += [
                f"{module.path}:{getattr(node, 'lineno', 0)}: os.{name} outside of config"
                for name in used & forbidden
            ]
    _report(problems)


def test_placement_does_no_io() -> None:
    problems = []
    for module in MODULES:
        if module.top != "placement":
            continue
        problems += [
            f"{module.path}:{line}: placement is pure, it cannot import {name}"
            for name, line in imports_of(module)
            if name.partition(".")[0] in NO_IO
        ]
        problems += [
            f"{module.path}:{node.lineno}: placement is pure, it cannot open files"
            for node in module.nodes
            if (isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"open", "print"})
            or (isinstance(node, ast.ImportFrom) and node.module in {"builtins", "numpy.lib"})
            or (isinstance(node, ast.Attribute) and node.attr in {"memmap", "tofile"})
        ]
    _report(problems)


def test_hypothesis_and_pytest_stay_in_testing() -> None:
    _report([
        f"{module.path}:{line}: {module.name} imports {name}"
        for module in MODULES
        if module.top != "testing"
        for name, line in imports_of(module)
        if name.partition(".")[0] in {"hypothesis", "pytest", "_pytest", "unittest"}
    ])  # fmt: skip


def test_what_is_saved_of_the_store_is_read_to_be_stored_again() -> None:
    """Only what is verified in every tier reaches a writer: the types of its sources say so."""
    classes = {
        node.name: (module, node)
        for module in MODULES
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
    }

    def is_source(name: str) -> bool:
        bases = (
            [getattr(base, "id", "") for base in classes[name][1].bases] if name in classes else []
        )
        return name in SOURCES or any(map(is_source, bases))

    sources = [classes[name] for name in classes if is_source(name)]
    assert len(sources) > len(SOURCES) + 5
    problems = []
    for module, node in sources:
        for made in [one for one in node.body if getattr(one, "name", "") == "__init__"]:
            assert isinstance(made, ast.FunctionDef)
            for arg in [*made.args.args, *made.args.kwonlyargs]:
                named = {n.id for n in ast.walk(arg.annotation or arg) if isinstance(n, ast.Name)}
                problems += [
                    f"{module.path}:{arg.lineno}: {node.name} takes a {name}; take what its "
                    "verified() gives"
                    for name in named & UNVERIFIED
                ]
    _report(problems)


def _docstring_lines(tree: ast.AST) -> int:
    """Lines of all strings that stand alone: of modules, classes, functions and attributes."""
    return sum(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_modules_and_functions_are_short() -> None:
    problems = []
    for module in MODULES:
        lines = len(module.path.read_text().splitlines()) - _docstring_lines(module.tree)
        if lines > MAX_MODULE_LINES:
            problems.append(f"{module.path}: {lines} lines, {MAX_MODULE_LINES} are allowed")
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    length -= _docstring_lines(node)
                if length > MAX_FUNCTION_LINES:
                    problems.append(
                        f"{module.path}:{node.lineno}: {node.name} has {length} lines, "
                        f"{MAX_FUNCTION_LINES} are allowed"
                    )
    _report(problems)


_IMPORT_ALL = """
import importlib, sys, threading
names, seen = sys.argv[1:], []
for name in names:  # what others do when they are imported is theirs: load them first
    try:
        importlib.import_module(name)
    except Exception as error:
        missing = error if isinstance(error, ImportError) else error.__cause__
        if not isinstance(missing, ImportError) or (missing.name or "").startswith("tierstore"):
            raise
for name in [name for name in sys.modules if name.partition(".")[0] == "tierstore"]:
    if name != "tierstore.codecs._native":
        del sys.modules[name]
WATCHED = ("socket.", "subprocess.", "os.system", "os.fork", "os.mkdir", "os.rename", "os.remove",
           "sqlite3.", "urllib.", "shutil.", "tempfile.")
def watch(event, args):
    if event.startswith(WATCHED) or (
        event == "open" and isinstance(args[1], str) and set("wax+") & set(args[1])
        and "__pycache__" not in str(args[0])
    ):
        seen.append((event, str(args)[:200]))
sys.addaudithook(watch)
threads = threading.active_count()
loaded = 0
for name in names:
    try:
        importlib.import_module(name)
        loaded += 1
    except Exception:  # looked at above: an optional package is missing
        pass
assert not seen, seen
assert threading.active_count() == threads, threading.enumerate()
print(loaded)
"""


def test_locks_and_threads_of_what_lasts_begin_anew_in_a_forked_child() -> None:
    """What outlives a call is made by a method that ``forks.begin`` is given."""
    problems = []
    for module in MODULES:
        own_program = module.top in {"cli", "testing"} or ".serving.hub." in module.name
        if own_program or module.name in NEVER_FORKED:
            continue
        problems += [
            f"{module.path}:{node.lineno}: a lock of a module stays locked in a forked child"
            for node in module.tree.body
            if isinstance(node, ast.Assign) and _makes_what_a_fork_breaks(node)
        ]
        for kind in module.nodes:
            if not isinstance(kind, ast.ClassDef) or kind.name in NEVER_FORKED:
                continue
            methods = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
            begun = {
                node.args[0].attr
                for node in ast.walk(kind)
                if isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "begin"
                and isinstance(node.args[0], ast.Attribute)
            }
            anew = {
                name for one in methods if one.name in begun for name, _ in _attributes_set(one)
            }
            problems += [
                f"{module.path}:{node.lineno}: {kind.name}.{name} is the parent's in a forked "
                "child: begin() needs a method that sets it"
                for one in methods
                for name, node in _attributes_set(one)
                if name not in anew and _makes_what_a_fork_breaks(node)
            ]
    _report(problems)


def test_locks_on_files_are_given_up_by_forked_children() -> None:
    """A copy of an open file in a child would hold the lock of a parent that was killed."""
    calls = {"flock", "lockf"}
    _report([
        f"{module.path}:{node.lineno}: take the lock by tierstore.locks"
        for module in MODULES
        if module.name != "tierstore.locks"
        for node in module.nodes
        if isinstance(node, ast.Attribute) and node.attr in calls
    ])  # fmt: skip


def _attributes_set(function: ast.FunctionDef) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Attribute):
                        yield part.attr, node


def _makes_what_a_fork_breaks(node: ast.stmt) -> bool:
    return any(
        isinstance(part, ast.Call)
        and getattr(part.func, "attr", getattr(part.func, "id", "")) in FORK_BREAKS
        for part in ast.walk(node)
    )


def test_importing_any_module_only_defines_names() -> None:
    """No network, process, thread, database or file that is written, by an audit hook."""
    names = sorted(NAMES - {"tierstore.__main__"})
    done = subprocess.run(
        [sys.executable, "-B", "-c", _IMPORT_ALL, *names], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(ALWAYS_THERE)


def test_no_module_imports_itself_through_others() -> None:
    """The package's own ``__init__`` is left out: it gives out what others define."""
    graph = {
        module.name: {
            name for name, _ in imports_of(module) if name in NAMES and name != "tierstore"
        }
        for module in MODULES
        if module.top
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
