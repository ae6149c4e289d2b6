"""What the program says of words that are no commands, and of names that are misspelt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.kit.command import walk
from tierstore.cli.kit.words import TRIED
from tierstore.errors import NotFound, TensorMissing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("delete m@1", "'tierstore rm REF' removes a version"), ("recover m@1", "undelete REF"),
        ("prune", "'tierstore gc' deletes"), ("export m", "load REF --to DIR"),
        ("follow m@prod", "agent --follow REF"), ("alias delete m prod", "called 'rm'"),
        ("rollout ls", "rollout status"), ("--json remove save", "tierstore rm REF"),
        ("sav", "Did you mean 'save'"),
    ],
)  # fmt: skip
def test_a_word_that_is_no_command(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err


def test_words_are_no_commands() -> None:
    """Else what is said of them would never be seen."""
    root, _ = app.command_tree()
    commands = {" ".join(path) for path, _ in walk(root)}
    assert not TRIED.keys() & commands
    assert {word.rpartition(" ")[0] for word in TRIED} <= commands


def test_what_is_misspelt_is_guessed(tmp_path: Path) -> None:
    store = tierstore.init(tmp_path / "store")
    store.save("ranker", {"emb.weight": np.ones(3, np.float32)})
    for call in (lambda: store.load("rankr"), lambda: store.versions("rankr")):
        with pytest.raises(NotFound, match=r"no model 'rankr'; did you mean 'ranker'\?"):
            call()
    with pytest.raises(TensorMissing, match=r"did you mean 'emb\.weight'\?"):
        store.load("ranker")["emb.weigth"]
    with pytest.raises(NotFound, match="a release follows a model's name, MODEL@release:search"):
        store.load("release:search")
    with pytest.raises(NotFound) as error:
        store.load("tokenizer")
    assert "did you mean" not in str(error.value)


def test_a_number_and_all_aliases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))
    store = tierstore.init(tmp_path / "store")
    for name in ("a", "b"):
        for value in (1, 2):
            store.save(name, {"w": np.full(3, value, np.float32)}, alias="prod")
    assert app.run(["alias", "set", "a", "prod", "1"]) == 0
    assert store.resolve("a@prod").number == 1
    capsys.readouterr()
    assert app.run(["alias", "ls", "-q"]) == 0
    assert capsys.readouterr().out == "a@prod\nb@prod\n"
    assert app.run(["alias", "ls"]) == 0
    assert "a@prod" in capsys.readouterr().out
    assert app.run(["alias", "ls", "a"]) == 0
    assert "a@prod" not in capsys.readouterr().out
    assert [entry.version for entry in store.history("a", "prod")] == [1, 2, 1]
    assert len(store.history("a", "prod", limit=2)) == 2
