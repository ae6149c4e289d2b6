"""Values for people: sizes and counts as text, and tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from html import escape
from itertools import islice

MOST_ROWS = 50
"""Most rows that a table in a notebook shows; it says how many are left out."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: int) -> str:
    """Return a count of bytes for people, such as ``86.7 MiB``."""
    number, unit = float(count), 0
    while abs(number) >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 file``, ``2 files``, ``2 processes``."""
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'NAME'? `` with the known name that is most like it, or nothing."""
    found = get_close_matches(name, list(known), 1)
    return f"did you mean {found[0]!r}? " if found else ""


def html_facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """Return a table with one line per fact, name first. Everything is escaped."""
    rows = "".join(
        f"<tr><th style='text-align: left'>{escape(name)}</th>"
        f"<td style='text-align: left'>{escape(value)}</td></tr>"
        for name, value in facts
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>"


def html_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], count: int
) -> str:
    """Return a table whose first column is text and whose others are numbers, escaped.

    Args:
        title: Text above the table.
        columns: Names of the columns.
        rows: Cells by row; at most ``MOST_ROWS`` rows are taken.
        count: Number of all rows.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(_row(row) for row in islice(rows, MOST_ROWS))
    if count > MOST_ROWS:
        body += f"<tr><td colspan='{len(columns)}'>and {count - MOST_ROWS} more</td></tr>"
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = map(escape, cells)
    numbers = "".join(f"<td>{cell}</td>" for cell in others)
    return f"<tr><td style='text-align: left'>{first}</td>{numbers}</tr>"
