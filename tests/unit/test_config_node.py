"""What a node's own file says of names, labels and profiles; the environment wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierstore import config
from tierstore.config import settings_from
from tierstore.errors import ConfigError
from tierstore.format.tiers import TierSpec
from tierstore.wiring.places import canonical

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


def test_a_tilde_is_the_home_directory_in_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text("hush\n")
    (tmp_path / "node.toml").write_text(
        'store = "~/store"\n'
        '[hot]\nurl = "file://~/hot"\n'
        '[tiers.warm]\nurl = "~/warm"\nca = "~/ca.pem"\npassword_file = "~/secret"\n'
    )
    environ = {"TIERSTORE_CONFIG": "~/node.toml", "TIERSTORE_CACHE_DIR": "~/cache"}
    node = config.node_config(environ)
    assert node.hot is not None
    assert node.hot.url == f"file://{tmp_path}/hot"
    warm = node.tiers["warm"]
    assert (warm.url, warm.ca) == (f"{tmp_path}/warm", f"{tmp_path}/ca.pem")
    assert warm.password == "hush"
    assert config.settings_from(environ).cache_dir == tmp_path / "cache"
    other = {"XDG_CACHE_HOME": "~/x", "TIERSTORE_CONFIG": ""}
    assert config.settings_from(other).cache_dir == tmp_path / "x/tierstore"
    monkeypatch.setenv("TIERSTORE_CONFIG", "~/node.toml")
    monkeypatch.delenv("TIERSTORE_STORE", raising=False)
    assert config.store_url(None) == f"{tmp_path}/store"
    assert config.store_url("~/other") == f"{tmp_path}/other"
    assert config.store_url("~") == str(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "file://~/third")
    assert config.store_url(None) == f"file://{tmp_path}/third"
    assert config.store_url("a/~/b") == "a/~/b"
    with pytest.raises(ConfigError, match="'~nobody-at-all/x': there is no such home directory"):
        config.store_url("~nobody-at-all/x")
    spec = TierSpec(name="warm", role="warm", url="~/warm", size=1)
    assert canonical(spec).url == f"file://{tmp_path}/warm"
