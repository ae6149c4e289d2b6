"""What a node's own file says of names, labels and profiles; the environment wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierstore.config import settings_from
from tierstore.errors import ConfigError

TEXT = """
node = "rack7-3"
profile = "cpu"

[labels]
region = "eu"

[profiles]
cpu = ["int8-row", "bf16", "full"]
gpu = "fp8-e4m3, full"
"""


def environ(folder: Path, text: str, **more: str) -> dict[str, str]:
    path = folder / "tierstore.toml"
    path.write_text(text)
    return {"TIERSTORE_CONFIG": str(path), **more}


def test_a_node_says_what_it_is_and_prefers(tmp_path: Path) -> None:
    found = settings_from(environ(tmp_path, TEXT))
    assert (found.node, found.labels) == ("rack7-3", {"region": "eu"})
    assert found.preference(None) == ["int8-row", "bf16", "full"]
    assert found.preference("gpu") == ["fp8-e4m3", "full"]
    assert found.preference("bf16,full") == ["bf16", "full"]


def test_the_environment_wins(tmp_path: Path) -> None:
    more = {"TIERSTORE_PROFILE": "gpu", "TIERSTORE_LABELS": "rack=8", "TIERSTORE_NODE": "b"}
    found = settings_from(environ(tmp_path, TEXT, **more))
    assert (found.node, found.labels) == ("b", {"rack": "8"})
    assert found.preference(None) == ["fp8-e4m3", "full"]


def test_nothing_is_preferred_by_default(tmp_path: Path) -> None:
    found = settings_from(environ(tmp_path, ""))
    assert (found.labels, found.profiles, found.preference(None)) == ({}, {}, ["full"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("labels = 3", "labels must be a table"), ("profile = 3", "profile must be text"),
        ("[labels]\nregion = 3", "region must be text"),
        ('[profiles]\ncpu = ["int8-row", 3]', "cpu must be text"),
        ('profil = "x"', "did you mean 'profile'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        settings_from(environ(tmp_path, text))


def test_parts_are_verified_by_blocks_unless_whole_chunks_are_asked_for(tmp_path: Path) -> None:
    assert settings_from(environ(tmp_path, "")).verify_parts == "blocks"
    for chosen in ("blocks", "chunks"):
        found = settings_from(environ(tmp_path, "", TIERSTORE_VERIFY_PARTS=chosen))
        assert found.verify_parts == chosen
    for wrong in ("always", "1", "Chunks", "chunks "):
        with pytest.raises(ConfigError, match=r"TIERSTORE_VERIFY_PARTS.*expected blocks or chunks"):
            settings_from(environ(tmp_path, "", TIERSTORE_VERIFY_PARTS=wrong))
