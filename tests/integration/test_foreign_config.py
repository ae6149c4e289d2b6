"""A directory whose config.json is a model's, not a store's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.errors import Conflict, Damaged, NotFound, UsageError


def test_a_model_directory_is_not_a_store_and_is_not_made_one(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architectures": ["BertModel"], "hidden_size": 384}))
    with pytest.raises(NotFound, match="is not a store"):
        tierstore.open(tmp_path)
    with pytest.raises(Conflict, match="not a store's"):
        tierstore.init(tmp_path)
    assert json.loads(config.read_text())["hidden_size"] == 384
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_damaged_config_of_a_store_is_called_damaged(tmp_path: Path, keep: float) -> None:
    with tierstore.init(tmp_path) as store:
        store.save("m", {"w": np.zeros(3)})
    config = tmp_path / "config.json"
    whole = config.read_text()
    config.write_text(whole[: int(len(whole) * keep)])
    with pytest.raises(Damaged, match=r"config\.json"):
        tierstore.open(tmp_path)
    config.write_text(whole.replace('"store_id"', '"store_ix"'))
    with pytest.raises(Damaged, match=r"config\.json"):
        tierstore.open(tmp_path)


def test_a_directory_that_holds_the_store_is_not_saved_into_it(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("w")
    with tierstore.init(tmp_path / "deep" / "store") as store:
        with pytest.raises(UsageError, match="holds the store itself"):
            store.save("m", tmp_path)
        assert store.models() == []
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "a").write_text("a")
        store.save("m", tmp_path / "other", allow_no_tensors=True)


def test_a_store_that_lost_its_config_is_not_made_anew(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.ones(4, np.float32)})
    (tmp_path / "store" / "config.json").unlink()
    with pytest.raises(NotFound, match="'tierstore repair --home' makes it anew"):
        tierstore.open(tmp_path / "store")
    with pytest.raises(Conflict, match="'tierstore repair --home' makes it anew"):
        tierstore.init(tmp_path / "store")


def test_what_has_a_folder_refs_is_a_store_only_if_models_have_logs_there(tmp_path: Path) -> None:
    """The cache of another program has a file ``refs/main``."""
    (tmp_path / "other" / "refs").mkdir(parents=True)
    (tmp_path / "other" / "refs" / "main").write_text("b5a7c1")
    with pytest.raises(NotFound, match="is not a store"):
        tierstore.open(tmp_path / "other")
    with tierstore.init(tmp_path / "other") as store:
        assert store.models() == []
