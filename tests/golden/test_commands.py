"""Every command prints with ``--json`` what was recorded of it, and exits as it did."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden.replay import RECORDED, command_tree, laid_out, play, recorded
from tests.golden.scenarios import SCENARIOS, WITH_EXTRAS


def check_scenario(name: str, folder: Path) -> None:
    """Play a scenario and compare it with its file; shows the lines that differ."""
    found, expected = play(name, folder), recorded(name)
    changed = difflib.unified_diff(
        expected.splitlines(), found.splitlines(), f"commands/{name}.json", "now", n=6, lineterm=""
    )
    assert found == expected, (
        f"if it is meant, run 'python -m tests.golden.record_commands {name}':\n"
        + "\n".join(changed)
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario(name: str, tmp_path: Path) -> None:
    check_scenario(name, tmp_path)


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    children = getattr(node, "commands", {})
    if not children:
        yield path
    for name, child in children.items():
        yield from leaves(child, (*path, name))


def test_every_command_is_recorded() -> None:
    """With an output, and not only with an error."""
    assert {path.stem for path in RECORDED.iterdir()} == set(SCENARIOS | WITH_EXTRAS)
    ran = [
        step["run"].split()
        for name in SCENARIOS | WITH_EXTRAS
        for step in json.loads(recorded(name))
        if "stdout" in step
    ]
    every = list(leaves(command_tree()[0]))
    assert ("tier", "drain") in every
    missing = [
        path for path in every if not any(tuple(words[: len(path)]) == path for words in ran)
    ]
    assert not missing, f"add them to tests/golden/scenarios.py: {missing}"


def test_a_file_is_json_on_lines_of_its_own() -> None:
    value = {"a": [1, "é", None, {}], "b": {"long": ["x" * 60, "y" * 60]}}
    text = laid_out(value)
    assert json.loads(text) == value
    assert text.splitlines()[1] == ' "a": [1, "é", null, {}],'
