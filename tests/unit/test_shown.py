"""How values show themselves: as text, and as tables that no name can break out of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore.cli import main
from tierstore.format.tiers import has_secret
from tierstore.shown import MOST_ROWS, html_facts, html_table, shown_url, size
from tierstore.wiring import backends

EVIL = "<script>alert('1')</script><img src=x onerror=\"a()\"> & </td></table>"
TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


class Page(HTMLParser):
    """The cells of a page's rows; fails at an element that no table has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.caption = ""
        self._in: list[str] = []
        self.feed(text)
        self.close()
        assert self._in == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style", "colspan"}
        self._in.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._in.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._in[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data


def page(value: Any) -> Page:
    return Page(value._repr_html_())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    with tierstore.init(tmp_path / "store", chunk_size=1 << 20) as opened:
        yield opened


def array(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((256, 1024), np.float32)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_tables_escape_everything() -> None:
    found = Page(html_facts(EVIL, [(EVIL, EVIL)]))
    assert (found.caption, found.rows) == (EVIL, [[EVIL, EVIL]])
    found = Page(html_table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], 1))
    assert (found.caption, found.rows) == (EVIL, [[EVIL, EVIL], [EVIL, EVIL]])


def test_a_long_table_says_what_it_leaves_out() -> None:
    count = MOST_ROWS + 3
    found = Page(html_table("t", ["n"], ([str(n)] for n in range(count)), count))
    assert found.rows == [["n"], *([str(n)] for n in range(MOST_ROWS)), ["and 3 more"]]
    found = Page(html_table("t", ["n"], ([str(n)] for n in range(MOST_ROWS)), MOST_ROWS))
    assert found.rows[-1] == [str(MOST_ROWS - 1)]


def test_a_version(store: tierstore.Store) -> None:
    saved = store.save("<b>/m", {"w": array(1)}, message=EVIL)
    time = saved.created.strftime("%Y-%m-%d %H:%M:%S UTC")
    short = saved.digest.short
    assert re.fullmatch(r"b3:[0-9a-f]{12}", short)
    assert repr(saved) == f"<Version <b>/m@1 {short}, {time} by {saved.who}, {EVIL[:60]!r}>"
    assert saved.stats is not None
    found = page(saved)
    assert found.caption == "<b>/m@1"
    assert found.rows == [
        ["digest", str(saved.digest)], ["created", f"{time} by {saved.who}"], ["message", EVIL],
        ["size", "1.0 MiB"], ["new", f"1.0 MiB, stored as {size(saved.stats.stored_bytes)}"],
    ]  # fmt: skip
    plain = store.save("m", {"v": np.arange(3.0)})
    assert repr(store.resolve("m")) == (
        f"<Version m@1 {plain.digest.short}, {plain.created:%Y-%m-%d %H:%M:%S UTC} by {plain.who}>"
    )


def test_a_model(store: tierstore.Store) -> None:
    saved = store.save("m", {EVIL: array(1), "v": np.arange(3.0)})
    model = store.load("m")
    title = f"m@1 {saved.digest.short}, 2 tensors, 1.0 MiB"
    assert repr(model) == f"<Model {title}>"
    found = page(model)
    assert found.caption == title
    assert sorted(found.rows) == sorted([
        ["tensor", "dtype", "shape", "size"], [EVIL, "F32", "[256, 1024]", "1.0 MiB"],
        ["v", "F64", "[3]", "24 B"],
    ])  # fmt: skip
    assert repr(model.tensor("v")) == "Tensor('v', F64, [3], 24 bytes)"


def test_names_are_completed_in_ipython(store: tierstore.Store) -> None:
    store.save("m", {"b": np.arange(3, dtype="<f4"), "a": np.arange(16.0, dtype="<f4")[None]})
    assert sorted(store.load("m")._ipython_key_completions_()) == ["a", "b"]
    variant = tierstore.derive(store, "m", {"cast": "bf16"})
    approximated = store.load(variant, dequantize=True)
    assert sorted(approximated._ipython_key_completions_()) == ["a", "b"]


def test_a_diff(store: tierstore.Store) -> None:
    same = array(1)
    store.save("m", {EVIL: array(2), "same": same}, base=None)
    store.save("m", {EVIL: array(3), "same": same}, base=None)
    found = store.diff("m@1", "m@2")
    stored = size(found.stored_bytes)
    summary = f"m@1 -> m@2: 1 of 2 tensors changed, 1.0 MiB new, {stored} stored"
    assert repr(found) == f"<Diff {summary}>"
    assert [item.name for item in found.changed] == [EVIL]
    shown = page(found)
    assert shown.caption == summary
    assert shown.rows == [
        ["name", "change", "old", "new", "new chunks", "stored"],
        [EVIL, "changed", "1.0 MiB", "1.0 MiB", "1.0 MiB", stored],
    ]


def test_usage(store: tierstore.Store) -> None:
    weights = {"w": array(1)}
    store.save("m", weights)
    store.save("n", weights)
    found = store.usage()
    assert repr(found) == (
        f"<Usage of 2 models, 2 versions: 2.0 MiB logical, 1.0 MiB unique, {size(found.stored)} "
        "stored>"
    )
    rows = dict(page(found).rows)
    assert rows["models"] == rows["versions"] == "2"
    assert rows["logical"] == "2.0 MiB"
    assert rows["stored"] == f"{size(found.stored)} in 1 pack, 1 chunk"
    assert rows["saved by deduplication"] == size(found.dedup_saved)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@host/0", "redis://:***@host/0"),
        ("sftp://me:hunter2@host:22/p", "sftp://me:***@host:22/p"),
        ("sftp://me:a@b:hunter2@host/p", "sftp://me:***@host/p"),
        ("s3://b/p?secret_access_key=hunter2&x=1", "s3://b/p?secret_access_key=***&x=1"),
        ("s3://b/p?x=1;sig=hunter2", "s3://b/p?x=1;sig=***"),
        ("sftp://me@host/p", "sftp://me@host/p"),
        ("file:///a:b@c", "file:///a:b@c"),
        ("/a:b@c", "/a:b@c"),
    ],
)
def test_urls_are_shown_without_passwords(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert has_secret(url) == (shown != url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hunter2@127.0.0.1:1/0", "sftp://me:hunter2@127.0.0.1:1/x",
        "s3://me:hunter2@bucket/x", "http://me:hunter2@127.0.0.1:1/x",
        "file://me:hunter2@/tmp/x", "s3://bucket/x?secret_access_key=hunter2",
        "memcached://me:hunter2@127.0.0.1:1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["doctor"], ["doctor", "--json"], ["ls"]])
@pytest.mark.parametrize("extras", ["here", "missing"])
def test_no_command_prints_a_password_of_a_url(
    url: str,
    command: list[str],
    extras: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if extras == "missing":
        monkeypatch.setattr(backends, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["tierstore", "--store", url, *command])
    with pytest.raises(SystemExit):
        main()
    out, err = capfd.readouterr()
    assert out + err
    assert "hunter2" not in out + err
