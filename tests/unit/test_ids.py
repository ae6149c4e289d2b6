"""Digests, byte ranges, names and references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import InvalidName, UsageError
from tierstore.ids import ByteRange, Digest, ModelRef, check_alias, check_name
from tierstore.testing.strategies import names

HEX = "0123456789abcdef" * 4


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_and_its_hex(raw: bytes) -> None:
    digest = Digest(raw)
    assert Digest.from_hex(digest.hex) == digest
    assert str(digest) == f"b3:{raw.hex()}"
    assert digest.short == f"b3:{raw.hex()[:12]}"
    assert (digest < Digest(b"\xff" * 32)) == (raw < b"\xff" * 32)


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
def test_no_digest(raw: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Digest(raw)


@pytest.mark.parametrize(
    "text", ["", HEX[1:], HEX + "0", HEX.upper(), HEX[:-1] + "g", HEX[:-1] + "\n", "٠" * 64]
)
def test_no_hex_of_a_digest(text: str) -> None:
    with pytest.raises(InvalidName, match="64 lower-case hex digits"):
        Digest.from_hex(text)


def test_byte_ranges() -> None:
    assert len(ByteRange(3, 10)) == 7
    assert len(ByteRange(3, 3)) == 0
    for start, stop in ((-1, 2), (3, 2)):
        with pytest.raises(ValueError, match="byte range"):
            ByteRange(start, stop)


@given(names())
def test_a_name_that_was_checked_is_a_reference_to_itself(name: str) -> None:
    assert check_name("model", name) == name
    assert ModelRef.parse(name) == ModelRef(name)
    assert str(ModelRef.parse(name)) == name


@given(st.text())
def test_any_text_is_a_reference_or_an_invalid_name(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except InvalidName:
        return
    assert ModelRef.parse(str(ref)) == ref
    assert sum(part is not None for part in (ref.alias, ref.number, ref.prefix, ref.release)) <= 1


@pytest.mark.parametrize(("name", "why"), [
    ("", "1 to 200"), ("x" * 201, "1 to 200"), ("a\nb", "control"), ("a\0", "control"),
    ("\ud800", "control"), ("\u2028", "control"), ("\u0378", "unassigned"), ("a@b", "'@'"),
    ("a\\b", "backslash"), ("/a", "empty"), ("a/", "empty"), ("a//b", "empty"), (".", "part"),
    ("..", "part"), ("a/../b", "part"), (" a", "white space"), ("a ", "white space"),
])  # fmt: skip
def test_names_that_are_not_allowed(name: str, why: str) -> None:
    with pytest.raises(InvalidName, match=f"model name .* is not allowed: .*{why}"):
        check_name("model", name)


def test_names_are_composed() -> None:
    assert check_name("model", "e\u0301") == "é"
    assert ModelRef.parse("e\u0301@e\u0301") == ModelRef("é", alias="é")


@pytest.mark.parametrize(("text", "ref"), [
    ("org/m", ModelRef("org/m")),
    ("m@prod", ModelRef("m", alias="prod")),
    ("m@12", ModelRef("m", number=12)),
    ("m@007", ModelRef("m", number=7)),
    ("m@b3:01234567", ModelRef("m", prefix="01234567")),
    (f"m@b3:{HEX}", ModelRef("m", prefix=HEX)),
    ("m@١", ModelRef("m", alias="١")),
    ("m@+bf16", ModelRef("m", variant="bf16")),
    ("m@12+int8-row", ModelRef("m", number=12, variant="int8-row")),
    ("m@release:org/s", ModelRef("m", release="org/s@prod")),
    ("m@release:s@12", ModelRef("m", release="s@12")),
    ("m@release:s@next+bf16", ModelRef("m", release="s@next", variant="bf16")),
    ("m@release:e\u0301@canary", ModelRef("m", release="é@canary")),
])  # fmt: skip
def test_references(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref
    assert ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", [
    "", "@prod", "m@", "m@0", "m@00", f"m@{'9' * 19}", "m@b3:", "m@b3:0123456", f"m@b3:{HEX}0",
    "m@b3:0123456G", "m@b3:ABCDEF01", "m@a@b", "m@ a", "m@b3:0123456\n", "m@release:",
    "m@release:s@", "m@release:s@a@b", "m@release:s@release:t", "m@release:s+", "m@12+A",
])  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidName):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    "name", ["12", "0", "b3:", "b3:0123", "", "a@b", "a+b", "release:", "release:s"]
)
def test_aliases_that_would_read_as_versions(name: str) -> None:
    with pytest.raises(InvalidName):
        check_alias(name)


@pytest.mark.parametrize(("value", "says"), [
    (12, "12 alone is no reference: name the model as well, such as 'ranker@12'"),
    (None, "a reference is text, such as 'ranker' (its newest version), 'ranker@prod' or "
     "'ranker@12', not None"),
    (Path("models/a"), "'models/a' is a path, and a reference names a version in the store, such "
     "as 'ranker' (its newest version), 'ranker@prod' or 'ranker@12'; 'tierstore save' and "
     "Store.save make a version of a path"),
    (b"m", "a reference is text, such as 'ranker' (its newest version), 'ranker@prod' or "
     "'ranker@12', not a value of type bytes"),
    (True, "a reference is text, such as 'ranker' (its newest version), 'ranker@prod' or "
     "'ranker@12', not True"),
])  # fmt: skip
def test_no_text_is_no_reference(value: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelRef.parse(value)
    assert str(caught.value) == says


@pytest.mark.parametrize(("value", "says"), [
    (["a"], "alias takes one name, such as 'prod', not a list of them"),
    ({"a"}, "alias takes one name, such as 'prod', not a set of them"),
    (None, "alias takes a name as text, such as 'prod', not None"),
    (12, "alias takes a name as text, such as 'prod', not 12"),
])  # fmt: skip
def test_no_text_is_no_name(value: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_alias(value)
    assert str(caught.value) == says


def test_a_digest_shows_as_it_is_written_in_a_reference() -> None:
    digest = Digest.from_hex(HEX)
    assert repr(digest) == str(digest) == f"b3:{HEX}"
    assert ModelRef.parse(f"m@{digest!r}").prefix == HEX
