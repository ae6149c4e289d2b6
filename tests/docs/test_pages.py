"""The examples of README and docs run as they are printed, and print what is printed there."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.docs.blocks import RUN, Block, PageError, blocks_of, matches
from tests.docs.session import Session

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _run(page: Path, folder: Path) -> int:
    """Run the blocks of a page; returns how many there were."""
    folder.mkdir()
    blocks = [block for block in blocks_of(page) if not block.not_run]
    with Session(page, folder, ROOT) as session:
        for block in blocks:
            printed = session.run(block)
            if block.output is not None:
                same = matches(printed, block.output, numbers_vary=block.numbers_vary)
                assert same, f"{page}:{block.line} printed\n{printed}\nand not\n{block.output}"
    return len(blocks)


@pytest.mark.alone
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_as_it_is_printed(page: Path, tmp_path: Path) -> None:
    _run(page, tmp_path / "here")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_is_at_least_well_formed(page: Path) -> None:
    for block in blocks_of(page):
        if block.not_run and block.language == "python":
            compile(block.code, str(page), "exec")
        elif block.not_run:
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)


def test_the_readme_is_short_and_its_first_path_runs() -> None:
    page = ROOT / "README.md"
    assert len(page.read_text("utf-8").splitlines()) <= 180
    assert {block.language for block in blocks_of(page) if not block.not_run} == set(RUN)


# The rules themselves


def _page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, "utf-8")
    return page


def test_blocks_of_a_page_share_a_directory_and_names(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        "```python\nfrom pathlib import Path\nx = 1\n```\n\n"
        "```sh\nexport WHAT=it\necho $WHAT > file\n```\n\n"
        "```python\nprint(x, Path('file').read_text())\n```\n\n```text\n1 it\n```\n\n"
        "```sh\necho $WHAT is 12.5\n```\n<!-- numbers vary -->\n```text\nit is 3\n```\n",
    )
    assert _run(page, tmp_path / "here") == 4


def test_a_page_runs_in_a_directory_with_a_space(tmp_path: Path) -> None:
    page = _page(tmp_path, "```sh\necho 1\n```\n\n```text\n1\n```\n")
    assert _run(page, tmp_path / "a directory") == 1


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```sh\necho 1\n```\n\n```text\n2\n```\n",
        "```sh\nfalse\necho hidden\n```\n",
        "```sh\nfalse | true\n```\n",
        "```python\nraise SystemExit\n```\n",
        "```python\nx = 1\n```\n\n```sh\necho $x\n```\n",
    ],
)
def test_a_page_that_lies_fails(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _run(_page(tmp_path, text), tmp_path / "here")


@pytest.mark.parametrize(
    "text",
    [
        "```\nx\n```\n",
        "```pycon\n>>> 1\n```\n",
        "```python\nx = 1\n",
        "<!-- not run: it is shown -->\n```text\nx\n```\n",
        "<!-- numbers vary -->\n```python\nx\n```\n",
        "Words.\n\n<!-- numbers vary -->\n```text\n1\n```\n",
        "~~~sh\nfalse\n~~~\n",
        "````sh\nfalse\n````\n",
        "> ```sh\n> false\n> ```\n",
        ">```sh\n>false\n>```\n",
        "\t```sh\n\tfalse\n\t```\n",
        "* ```sh\n  false\n  ```\n",
        "1. ~~~sh\n   false\n   ~~~\n",
        "```sh\ntrue\n````\n\nWords.\n\n```sh\nfalse\n```\n",
        "  ```sh\n  true\n```\n\nWords.\n\n  ```sh\n  false\n  ```\n",
    ],
)
def test_a_page_that_breaks_the_rules_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(PageError):
        blocks_of(_page(tmp_path, text))


def test_a_block_that_is_not_run_says_why(tmp_path: Path) -> None:
    text = "<!-- not run: {} -->\n```python\nx = 1\n```\n"
    assert blocks_of(_page(tmp_path, text.format("no bucket"))) == [
        Block("python", "x = 1\n", 3, not_run="no bucket")
    ]
    (block,) = blocks_of(_page(tmp_path, text.format("")))
    assert not block.not_run


@pytest.mark.parametrize(
    ("printed", "expected", "numbers_vary", "same"),
    [
        ("a\nb  \n", "a\nb", False, True),
        ("a 1\n", "a 2", False, False),
        ("a  1.5 MiB\n", "a 12 MiB", True, True),
        ("a 1 MiB\n", "a 1 KiB", True, False),
        ("pack 00a1, 5 s\n", "pack ..., 12 s", True, True),
        ("b3:0123 of it\n", "b3:... of it", False, True),
        ("a\nx\ny\nb\n", "a\n...\nb", False, True),
        ("a\nb\n", "a\n...\nb", False, True),
        ("a\nb\nc\n", "a\n...\nb", False, False),
        ("a\nb\n", "a\n...", False, True),
    ],
)
def test_output_is_compared(printed: str, expected: str, numbers_vary: bool, same: bool) -> None:
    assert matches(printed, expected, numbers_vary=numbers_vary) is same


# Blocks that are only shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_data_in_a_page_can_be_parsed(page: Path) -> None:
    import yaml

    parse = {"toml": tomllib.loads, "json": json.loads, "yaml": yaml.safe_load}
    text = page.read_text("utf-8")
    for language, loads in parse.items():
        for code in text.split(f"\n```{language}\n")[1:]:
            loads(code.partition("\n```")[0])
