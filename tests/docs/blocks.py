"""The fenced blocks of a Markdown page, and what is to be done with each.

A ``python`` or ``sh`` block is run, in the order of the page. A ``text`` block right behind it is
what it prints. HTML comments right above a block say more, and do not show on the page::

    <!-- not run: needs a bucket on AWS -->     the block is only checked for its syntax
    <!-- numbers vary -->                       of the ``text`` block: numbers are not compared

Fences are three backticks, behind spaces at most: those that a quotation or a list item begins
with, tildes, tabs and longer fences are refused, since their blocks would not be seen here.

In a ``text`` block, ``...`` stands for anything within a line, and a line of its own for any lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUN = ("python", "sh")
"""Languages whose blocks are run."""

SHOWN = ("text", "toml", "yaml", "json", "ini")
"""Languages whose blocks are only shown."""

_FENCE = re.compile(r"(?P<indent> *)```(?P<info>[^`]*)$")
_ANY_FENCE = re.compile(r"(?:[\s>]|[-*+]\s|\d+[.)]\s)*(?:```|~~~)")
"""Whatever a site could take for a fence."""

_NOT_RUN = re.compile(r"<!-- not run: (?P<why>\S.*) -->$")
_COMMENT = re.compile(r"\s*<!--.*-->$")
_NUMBERS_VARY = "<!-- numbers vary -->"


class PageError(Exception):
    """A page breaks the rules above."""


@dataclass
class Block:
    """A fenced block.

    Attributes:
        language: the first word behind its fence.
        code: its lines, without the indentation of its fence.
        line: number of its first line of code, from 1.
        not_run: why it cannot be run; empty when it is run.
        output: what it must print; ``None`` when the page does not show it.
        output_line: number of the first line of ``output``.
        numbers_vary: whether numbers in ``output`` may differ.
    """

    language: str
    code: str
    line: int
    not_run: str = ""
    output: str | None = None
    output_line: int = 0
    numbers_vary: bool = False


@dataclass(frozen=True)
class _Fenced:
    """A block as it stands in the page: ``first`` and ``last`` are the indices of its fences."""

    language: str
    code: str
    first: int
    last: int
    comments: tuple[str, ...]
    behind: bool
    """Whether nothing but comments and blank lines lies between it and the block before."""


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page that are run or checked, in order.

    Raises:
        PageError: a block has a language that is not known, a comment that means nothing, or a
            fence of another form or without an end.
    """
    found: list[Block] = []
    before: Block | None = None
    for fenced in _fenced(page.read_text("utf-8").splitlines(), page):
        where = f"{page}:{fenced.first + 1}"
        numbers_vary = _NUMBERS_VARY in fenced.comments
        reasons: list[str] = [
            match["why"] for text in fenced.comments if (match := _NOT_RUN.match(text))
        ]
        if fenced.language in RUN:
            if numbers_vary:
                raise PageError(f"{where}: 'numbers vary' belongs above the output")
            before = Block(fenced.language, fenced.code, fenced.first + 2, "".join(reasons))
            found.append(before)
            continue
        if fenced.language not in SHOWN:
            known = ", ".join((*RUN, *SHOWN))
            raise PageError(f"{where}: the language {fenced.language!r} is none of {known}")
        if reasons:
            raise PageError(f"{where}: a {fenced.language} block is never run")
        is_output = fenced.language == "text" and fenced.behind and before is not None
        if is_output and before is not None:
            before.output, before.numbers_vary = fenced.code, numbers_vary
            before.output_line = fenced.first + 2
        elif numbers_vary:
            raise PageError(f"{where}: 'numbers vary', but this is no block's output")
        before = None
    return found


def _fenced(lines: list[str], page: Path) -> list[_Fenced]:
    found: list[_Fenced] = []
    at = 0
    while at < len(lines):
        match = _FENCE.match(lines[at])
        if match is None:
            _refuse_fence(lines, at, page)
            at += 1
            continue
        indent, end = match["indent"], f"{match['indent']}```"
        last = next((i for i in range(at + 1, len(lines)) if lines[i].rstrip() == end), None)
        if last is None:
            raise PageError(f"{page}:{at + 1}: this block has no end")
        for inside in range(at + 1, last):
            _refuse_fence(lines, inside, page)
        code = "".join(f"{line.removeprefix(indent)}\n" for line in lines[at + 1 : last])
        above, comments = at, []
        while above and (not lines[above - 1].strip() or _COMMENT.match(lines[above - 1])):
            above -= 1
            if lines[above].strip():
                comments.append(lines[above].strip())
        behind = bool(found) and above == found[-1].last + 1
        language = (match["info"].split() or [""])[0]
        found.append(_Fenced(language, code, at, last, tuple(comments), behind))
        at = last + 1
    return found


def _refuse_fence(lines: list[str], at: int, page: Path) -> None:
    if _ANY_FENCE.match(lines[at]):
        raise PageError(
            f"{page}:{at + 1}: {lines[at]!r} may begin or end a block that is not run: write three "
            "backticks, behind spaces at most"
        )


def matches(printed: str, expected: str, *, numbers_vary: bool = False) -> bool:
    """Whether a program printed what a page shows; space at the ends of lines does not count."""
    pattern = ""
    for line in _normal(expected, numbers_vary):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(map(re.escape, line.split("..."))) + r"\n"
    lines = _normal(printed, numbers_vary)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def _normal(text: str, numbers_vary: bool) -> list[str]:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    if numbers_vary:  # and with them the widths of columns
        lines = [re.sub(r" +", " ", re.sub(r"\d+(?:[.,]\d+)*", "#", line)) for line in lines]
    return lines
