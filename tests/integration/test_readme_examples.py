"""The README's examples run as they are printed there, and print what is printed there.

A block below ``<!-- run -->`` is run in an empty directory; a ``text`` block behind it is its
output, but for the numbers, which may differ.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^<!-- run -->\n```(?P<kind>python|sh)\n(?P<code>.*?)^```\n"
    r"(\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Example:
    """A block of the README."""

    title: str
    kind: str
    code: str
    output: str | None


def _examples() -> list[Example]:
    text = (ROOT / "README.md").read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        title = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)[-1]
        found.append(Example(title, match["kind"], match["code"], match["output"]))
    return found


EXAMPLES = _examples()


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d.,]*", "#", text).strip()


def test_every_mark_is_in_front_of_a_block() -> None:
    assert EXAMPLES
    assert len(EXAMPLES) == (ROOT / "README.md").read_text("utf-8").count("<!-- run -->")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_an_example_runs(example: Example, tmp_path: Path) -> None:
    program = [sys.executable, "-c"] if example.kind == "python" else ["bash", "-euc"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": path}
    done = subprocess.run(
        [*program, example.code], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    if example.output is not None:
        assert _without_numbers(done.stdout) == _without_numbers(example.output)
