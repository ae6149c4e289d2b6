"""Types are shown to msgspec by one thread at a time: it would crash the process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tierstore

RACE = """
import sys, threading
import msgspec
from tierstore.prepared import prepared
sys.setswitchinterval(1e-6)
for number in range(40):
    inner = msgspec.defstruct(f"Inner{number}", [(f"f{k}", str, "") for k in range(6)])
    outer = msgspec.defstruct(f"Outer{number}", [("x", list[inner]), ("y", inner | None, None)])
    other = msgspec.defstruct(f"Other{number}", [("z", dict[str, inner], {})])
    barrier = threading.Barrier(8)
    def run():
        barrier.wait()
        msgspec.json.decode(b'{"x":[{}]}', type=prepared(outer))
        msgspec.convert({}, prepared(other))
    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("fine")
"""


def test_types_that_threads_meet_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr[-2000:]


def test_every_struct_is_prepared_where_it_is_decoded() -> None:
    root = Path(tierstore.__file__).parent
    bare = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            models = [word.value for word in node.keywords if word.arg == "type"]
            if node.func.attr == "convert":
                models += node.args[1:2]
            elif node.func.attr != "decode":
                continue
            bare += [
                f"{path}:{node.lineno}: give prepared({model.id})"
                for model in models
                if isinstance(model, ast.Name) and model.id[0].isupper()
            ]
    assert not bare, "\n".join(bare)
