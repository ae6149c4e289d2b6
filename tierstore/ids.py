"""Values that all other modules use: digests, byte ranges and references to models."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tierstore.arguments import shown
from tierstore.errors import InvalidName

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes, as functions pass them on."""

DIGEST_BYTES = 32

_HEX = re.compile(r"[0-9a-f]+\Z")
_MIN_PREFIX = 8
_VARIANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_EXAMPLES = {"model": "ranker", "alias": "prod", "release": "search", "variant": "int8-row"}
DEFAULT_ALIAS = "prod"
"""The alias that is meant where one is needed and none is named."""

SCHEME = "tierstore://"
"""What a reference begins with as a URL."""
RELEASE = "release:"
FULL = "full"
"""The version itself, not a variant of it, in an order of preference."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A BLAKE3-256 digest: the identity of a chunk, a pack or a manifest.

    Source: https://github.com/BLAKE3-team/BLAKE3-specs, with an output of 32 bytes.

    Attributes:
        raw: The 32 bytes.

    Examples:
        >>> digest = tierstore.Digest.from_hex("59c857c3" * 8)
        >>> digest.short
        'b3:59c857c359c8'
        >>> digest
        b3:59c857c359c857c359c857c359c857c359c857c359c857c359c857c359c857c3
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(self.raw)}")

    @classmethod
    def from_hex(cls, text: str) -> Digest:
        """Parse 64 lower-case hex digits; ``InvalidName`` when ``text`` is anything else."""
        if len(text) != 2 * DIGEST_BYTES or not _HEX.match(text):
            raise InvalidName(f"not a digest: {text[:80]!r}; expected 64 lower-case hex digits")
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """The digest as 64 lower-case hex digits."""
        return self.raw.hex()

    @property
    def short(self) -> str:
        """A short form for people: ``b3:`` and the first 12 hex digits."""
        return f"b3:{self.raw[:6].hex()}"

    def __str__(self) -> str:
        return f"b3:{self.hex}"

    def __repr__(self) -> str:
        return str(self)


def split_digests(column: bytes) -> list[bytes]:
    """Return the raw digests that lie end to end in ``column``."""
    return [column[at : at + DIGEST_BYTES] for at in range(0, len(column), DIGEST_BYTES)]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The half-open range ``[start, stop)`` in bytes."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a byte range: [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start


def check_name(kind: str, name: str) -> str:
    """Return ``name`` in NFC, or raise ``InvalidName``.

    A name has 1 to 200 characters once normalised, no control characters, no ``@``, no backslash,
    and no empty, ``.`` or ``..`` part between slashes.

    Args:
        kind: The kind of name, for messages, such as "model" or "alias".
        name: The name as the user gave it.
    """
    if not isinstance(name, str):
        raise InvalidName(_no_name(kind, name))
    normal = unicodedata.normalize("NFC", name)
    why = None
    if not 1 <= len(normal) <= 200:
        why = "it must have 1 to 200 characters"
    elif any(unicodedata.category(c) in {"Cc", "Cs", "Cn", "Zl", "Zp"} for c in normal):
        why = "it holds a control or unassigned character"
    elif "@" in normal or "\\" in normal:
        why = "it must not hold '@' or a backslash"
    elif any(part in {"", ".", ".."} for part in normal.split("/")):
        why = "it holds an empty, '.' or '..' part"
    elif normal != normal.strip():
        why = "it starts or ends with white space"
    if why:
        raise InvalidName(f"{kind} name {name[:80]!r} is not allowed: {why}")
    return normal


def _no_name(kind: str, given: object) -> str:
    example = _EXAMPLES.get(kind, "a name")
    if isinstance(given, list | tuple | set | frozenset):
        return f"{kind} takes one name, such as {example!r}, not a {type(given).__name__} of them"
    return f"{kind} takes a name as text, such as {example!r}, not {shown(given)}"


def _no_reference(given: object) -> str:
    forms = "such as 'ranker' (its newest version), 'ranker@prod' or 'ranker@12'"
    if isinstance(given, int) and not isinstance(given, bool):
        return f"{given} alone is no reference: name the model as well, such as 'ranker@{given}'"
    if isinstance(given, os.PathLike):
        return (
            f"{os.fspath(given)!r} is a path, and a reference names a version in the store, "
            f"{forms}; 'tierstore save' and Store.save make a version of a path"
        )
    return f"a reference is text, {forms}, not {shown(given)}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed reference: ``model``, ``model@alias``, ``model@12`` or ``model@b3:<hex prefix>``.

    At most one of ``alias``, ``number``, ``prefix`` and ``release`` is set; none for the newest
    version. Behind what follows the ``@`` a variant can be named: ``model@12+int8-row``,
    ``model@+bf16``.

    Attributes:
        model: The model's name.
        alias: An alias of the model.
        number: The number of a version.
        prefix: The first hex digits of a version's digest, at least 8.
        variant: The name of a lossy variant.
        release: A reference to a release, as in ``model@release:search``; ``search@prod`` is meant
            unless another one is given (``model@release:search@12``).

    Examples:
        >>> reference = tierstore.ModelRef.parse("ranker@12+int8-row")
        >>> reference.model, reference.number, reference.variant
        ('ranker', 12, 'int8-row')
    """

    model: str
    alias: str | None = None
    number: int | None = None
    prefix: str | None = None
    variant: str | None = None
    release: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parse a reference that a user typed; ``InvalidName`` says what is wrong with it."""
        if not isinstance(text, str):
            raise InvalidName(_no_reference(text))
        if text.startswith(("/", "./", "../")):
            raise InvalidName(_no_reference(Path(text)))
        if text.startswith(SCHEME) and "?" in text:
            raise InvalidName(
                f"{text[:120]!r} names a store, too: open that, and name {SCHEME}MODEL"
            )
        model, at, rest = text.removeprefix(SCHEME).partition("@")
        model = check_name("model", model)
        if not at:
            return cls(model)
        rest, plus, last = rest.partition("+")
        variant = check_variant(last) if plus else None
        if plus and not rest:
            return cls(model, variant=variant)
        if rest.startswith(RELEASE):
            return cls(model, release=_release(rest.removeprefix(RELEASE)), variant=variant)
        if rest.startswith("b3:"):
            prefix = rest[3:]
            if not (_MIN_PREFIX <= len(prefix) <= 2 * DIGEST_BYTES and _HEX.match(prefix)):
                raise InvalidName(
                    f"reference {text[:120]!r}: after 'b3:' come {_MIN_PREFIX} to 64 "
                    "lower-case hex digits"
                )
            return cls(model, prefix=prefix, variant=variant)
        if rest.isascii() and rest.isdigit():
            if len(rest) > 18 or int(rest) < 1:
                raise InvalidName(f"reference {text[:120]!r}: versions are numbered from 1")
            return cls(model, number=int(rest), variant=variant)
        return cls(model, alias=check_alias(rest), variant=variant)

    def __str__(self) -> str:
        which = self.alias or ""
        if self.number is not None:
            which = str(self.number)
        elif self.prefix is not None:
            which = f"b3:{self.prefix}"
        elif self.release is not None:
            which = RELEASE + self.release
        if self.variant is not None:
            which += f"+{self.variant}"
        return f"{self.model}@{which}" if which else self.model


def _release(text: str) -> str:
    parsed = ModelRef.parse(text)
    if parsed.release is not None:
        raise InvalidName(f"reference {text[:120]!r}: a release names no releases")
    return str(parsed) if "@" in text else f"{parsed}@{DEFAULT_ALIAS}"


def check_alias(name: str) -> str:
    """Return an alias name in NFC, or raise ``InvalidName``.

    Digits alone would read as a version number, ``b3:`` as a digest, ``release:`` as a release, and
    ``+`` begins a variant.
    """
    alias = check_name("alias", name)
    digits = alias.isascii() and alias.isdigit()
    if digits or alias.startswith(("b3:", RELEASE)) or "+" in alias:
        raise InvalidName(f"alias name {name!r} is not allowed: it reads as a version")
    return alias


def check_variant(name: str) -> str:
    """Return a variant's name, or raise ``InvalidName``.

    A name has 1 to 64 of ``a-z 0-9 . _ -`` and begins with a letter or digit; ``full`` is not
    allowed, since it means no variant.
    """
    if not isinstance(name, str):
        raise InvalidName(_no_name("variant", name))
    if not _VARIANT.match(name) or name == FULL:
        raise InvalidName(
            f"variant name {name[:80]!r} is not allowed: use 1 to 64 of a-z, 0-9, '.', '_', '-'"
        )
    return name
