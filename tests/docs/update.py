"""Write what the blocks of pages print into the pages: ``python -m tests.docs.update PAGE...``.

``...`` is put in place of directories, digests and names of machines. Other lines with ``...`` stay
as they are while they match. Read what is new before you commit it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tests.docs.blocks import Block, blocks_of, matches
from tests.docs.session import Session

ROOT = Path(__file__).parents[2]


def update(page: Path) -> int:
    """Run a page and renew its outputs; returns how many were wrong."""
    lines = page.read_text("utf-8").splitlines(keepends=True)
    outputs, wrong = [], 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "here"
        folder.mkdir()
        with Session(page, folder, ROOT) as session:
            for block in (block for block in blocks_of(page) if not block.not_run):
                printed = session.run(block)
                if block.output is not None:
                    same = matches(printed, block.output, numbers_vary=block.numbers_vary)
                    wrong += not same
                    outputs.append((block, _shortened(printed, folder)))
    for block, printed in reversed(outputs):  # from the end: numbers of lines stay right
        begin = block.output_line - 1
        assert block.output is not None
        lines[begin : begin + block.output.count("\n")] = _renewed(block, printed)
    page.write_text("".join(lines), "utf-8")
    return wrong


def _shortened(printed: str, folder: Path) -> str:
    """Without what is different on every machine and in every run."""
    text = printed.replace(str(folder), "...")
    text = re.sub(r"\b[0-9a-f]{64}\b|(?<=b3:)[0-9a-f]{12}\b", "...", text)
    return re.sub(r"\byou@\S+", "you@...", text)


def _renewed(block: Block, printed: str) -> list[str]:
    old = (block.output or "").splitlines()
    new = [line.rstrip() for line in printed.strip("\n").splitlines()]
    if len(old) == len(new):
        new = [
            before
            if "..." in before
            and "..." not in after
            and matches(after, before, numbers_vary=block.numbers_vary)
            else after
            for before, after in zip(old, new, strict=True)
        ]
    return [f"{line}\n" for line in new]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {update(Path(name))} outputs were wrong")
