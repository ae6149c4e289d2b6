"""Values for people: sizes, counts and URLs as text, and tables for notebooks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

MOST_ROWS = 50
"""Most rows that a table in a notebook shows; it says how many are left out."""

SECRET_NAME = re.compile(
    r"(.*(password|passwd|secret|token|credential|signature|access.?key).*|sig|pass|pwd|key)\Z",
    re.IGNORECASE,
)
"""Names of fields and options that hold what nobody is to see."""

_AUTHORITY = re.compile(r"[^/?#]*")
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: int) -> str:
    """Return a count of bytes for people, such as ``86.7 MiB``."""
    number, unit = float(count), 0
    while abs(number) >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def printable(text: str) -> str:
    """Return ``text`` on one line, with what could move a terminal's cursor escaped."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _HIDDEN else c
        for c in text
    )


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 file``, ``2 files``, ``2 processes``, ``2 copies``."""
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    if noun.endswith("copy"):
        plural = f"{noun[:-1]}ies"
    return f"{count} {noun if count == 1 else plural}"


def quarantine_text(packs: int) -> str:
    """Return how many packs are quarantined, and what to do about it."""
    return (
        f"{counted(packs, 'pack')} without a good copy in any tier: 'tierstore repair' repairs "
        "what can be repaired, and lists what is lost; saving that content again heals it"
    )


def time_text(time: datetime) -> str:
    """Return a time for people, such as ``2026-11-30 05:11:22 UTC``."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration_text(time: timedelta) -> str:
    """Return a time for people in its two largest units, such as ``1 d 12 h`` or ``30 min``."""
    left = int(time.total_seconds())
    parts: list[tuple[int, str]] = []
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if parts or left >= unit_s:
            parts.append((left // unit_s, unit))
            left %= unit_s
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"


def why_unread(error: OSError | UnicodeDecodeError) -> str:
    """Return why a text file could not be read."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"


def nearest(name: str, known: Iterable[str], where: str = "") -> str:
    """Return ``did you mean 'NAME'?`` with the known name that is most like one that is not known.

    Args:
        name: The name that was given.
        known: The names that are known.
        where: What lists them, to be said too. Without it they are listed if none is like ``name``.
    """
    from difflib import get_close_matches

    names = list(known)
    found = get_close_matches(name, names, 1)
    if found:
        return f"did you mean {found[0]!r}? {where}".rstrip()
    return where or f"known are {', '.join(names) or 'none'}"


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)


def html_facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """Return a table with one line per fact, name first. Everything is escaped."""
    rows = "".join(
        f"<tr><th style='text-align: left'>{_escaped(name)}</th>"
        f"<td style='text-align: left'>{_escaped(value)}</td></tr>"
        for name, value in facts
    )
    return f"<table><caption>{_escaped(title)}</caption><tbody>{rows}</tbody></table>"


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
    head = "".join(f"<th>{_escaped(column)}</th>" for column in columns)
    body = "".join(_row(row) for row in islice(rows, MOST_ROWS))
    if count > MOST_ROWS:
        body += f"<tr><td colspan='{len(columns)}'>and {count - MOST_ROWS} more</td></tr>"
    return (
        f"<table><caption>{_escaped(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = map(_escaped, cells)
    numbers = "".join(f"<td>{cell}</td>" for cell in others)
    return f"<tr><td style='text-align: left'>{first}</td>{numbers}</tr>"


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: a password, and what looks like a key, is ``***``.

    Whatever shows a URL that somebody gave shows it by this.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    found = _AUTHORITY.match(rest)
    authority = found.group() if found else ""
    user, at, host = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    path, question, query = rest[len(authority) :].partition("?")
    fields = [
        f"{field.partition('=')[0]}=***" if SECRET_NAME.match(field.partition("=")[0]) else field
        for field in re.split(r"([&;])", query)
    ]
    password = ":***" if colon else ""
    return f"{scheme}://{name}{password}{at}{host}{path}{question}{''.join(fields)}"
