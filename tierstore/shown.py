"""How values show themselves to people: sizes as text, and tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

MOST_ROWS = 50
"""A table in a notebook shows so many rows at most, and says how many it left out."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: int) -> str:
    """Bytes for people: ``86.7 MiB``."""
    number, unit = float(count), 0
    while abs(number) >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2 files``, ``2 processes``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def html_facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A table with a line for each fact, its name before it. Everything is escaped."""
    rows = "".join(
        f"<tr><th style='text-align: left'>{escape(name)}</th>"
        f"<td style='text-align: left'>{escape(value)}</td></tr>"
        for name, value in facts
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>"


def html_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], count: int
) -> str:
    """A table whose first column is text and whose others are numbers. Everything is escaped.

    Args:
        title: what stands above it.
        columns: the names of the columns.
        rows: the cells; at most ``MOST_ROWS`` rows are taken.
        count: the number of rows that there are.
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
