"""Printing for all commands: JSON, ids only, or text for people."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING

from tierstore.cli.kit.streams import print_error
from tierstore.cli.kit.warnings import WARNINGS
from tierstore.shown import counted as counted
from tierstore.shown import printable as printable
from tierstore.shown import size as size

if TYPE_CHECKING:
    from tierstore.cli.schemas.core import Schema

_GAP, _NARROWEST, _DIGEST_CELLS = "  ", 12, 12


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; ``right`` aligns numbers, a ``digest`` is cut short on a terminal."""

    title: str
    right: bool = False
    digest: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """The form in which a command prints its result; ``json`` wins over ``quiet``."""

    json: bool
    quiet: bool

    def show(self, data: Schema, ids: Iterable[str], text: Callable[[], None]) -> None:
        """Print ``data`` as JSON, or ``ids`` one per line, or let ``text`` print for people."""
        if self.json:
            print(as_json(data, indent=2))
        elif self.quiet:
            for one in ids:
                print(printable(one))
        else:
            text()

    def told_down(self, down: Mapping[str, str]) -> None:
        """Note that the result says why tiers could not be asked, by name.

        Warnings of these that were held back are dropped. Where ids alone are printed they are
        said on stderr.
        """
        WARNINGS.tell_held(told=down)
        self.warn_quiet(f"tier {name} could not be asked: {why}" for name, why in down.items())

    def warn_quiet(self, lines: Iterable[str]) -> None:
        """Say on stderr what the text for people says of failures, where ids alone are printed."""
        if self.quiet and not self.json:
            for line in lines:
                print_error(f"tierstore: warning: {printable(line)}")


def as_json(data: Schema, indent: int | None = None) -> str:
    """Return a result as JSON: sorted keys, exact bytes, RFC 3339 times."""
    import msgspec

    plain = msgspec.to_builtins(data)
    return json.dumps(plain, indent=indent, sort_keys=True, ensure_ascii=False)


NOT_ENABLED = "the store does not allow removal yet: 'tierstore gc --enable' does, once for all"
"""What a dry run says that works before ``gc --enable``."""


def when(time: datetime) -> str:
    """Return a time for a column whose title ends with ``(UTC)``."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def shares(parts: Sequence[int]) -> list[str]:
    """Return each part's percentage of their sum with one decimal; they add up to 100.0.

    The largest remainders are rounded up, all others down.
    """
    total = sum(parts)
    if total <= 0:
        return ["-" for _ in parts]
    tenths = [part * 1000 // total for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda at: -(parts[at] * 1000 % total))
    for at in by_remainder[: 1000 - sum(tenths)]:
        tenths[at] += 1
    return [f"{tenth / 10:.1f} %" for tenth in tenths]


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, fitted to the terminal's width, or in full where there is no terminal."""
    lines = [[column.title for column in columns]]
    lines += [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_lines(columns, lines, _widths(lines))
        return
    lines[1:] = [
        [_shown(column, cell) for column, cell in zip(columns, line, strict=True)]
        for line in lines[1:]
    ]
    widths = _widths(lines)
    limit = shutil.get_terminal_size().columns
    left = limit - _total(widths[1:]) - len(_GAP)
    if widths[0] == max(widths) and widths[0] * 2 / 3 > left:
        _print_stacked(columns, lines, widths)
    else:
        _narrow(widths, columns, limit)
        _print_lines(columns, lines, widths)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair per line; a repeated name is left blank."""
    shown = [(name, printable(value)) for name, value in pairs]
    indent = max(len(name) for name, _ in shown) + len(_GAP)
    width = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else sys.maxsize
    previous = ""
    for name, value in shown:
        for line in textwrap.wrap(value, max(width, _NARROWEST), break_on_hyphens=False):
            print(("" if name == previous else name).ljust(indent) + line)
            previous = name


def _print_lines(
    columns: Sequence[Column], lines: Sequence[Sequence[str]], widths: Sequence[int]
) -> None:
    for line in lines:
        folded = [_fold(cell, width) for cell, width in zip(line, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            print(_line(columns, parts, widths))


def _print_stacked(
    columns: Sequence[Column], lines: Sequence[Sequence[str]], widths: Sequence[int]
) -> None:
    """Print the first cell of each line on a line of its own, so that long names stay whole."""
    for line in lines:
        print(line[0])
        print(_GAP + _line(columns[1:], line[1:], widths[1:]))


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_cells, column)) for column in zip(*lines, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _shown(column: Column, cell: str) -> str:
    return cell[:_DIGEST_CELLS] + "…" if column.digest else cell


def _narrow(widths: list[int], columns: Sequence[Column], limit: int) -> None:
    """Take from the widest columns of text until a line has at most ``limit`` cells."""
    text = [at for at, column in enumerate(columns) if not column.right]
    while _total(widths) > limit:
        widest = max(text, key=lambda at: widths[at])
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def _fold(text: str, width: int) -> list[str]:
    """Cut ``text`` into pieces of at most ``width`` cells, best behind a dot, slash or space."""
    pieces = []
    while _cells(text) > width:
        fits = next(n for n in range(len(text), 0, -1) if n == 1 or _cells(text[:n]) <= width)
        cut = max(text.rfind(mark, 0, fits) for mark in "./ ") + 1
        at = cut if cut > fits // 2 else fits
        pieces.append(text[:at].rstrip())
        text = text[at:]
    return [*pieces, text]


def _line(columns: Sequence[Column], parts: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, part, width in zip(columns, parts, widths, strict=True):
        padding = " " * (width - _cells(part))
        cells.append(padding + part if column.right else part + padding)
    return _GAP.join(cells).rstrip()


def _cells(text: str) -> int:
    """Return how many cells ``text`` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
