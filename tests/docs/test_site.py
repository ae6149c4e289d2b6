"""The site builds without a warning and fetches nothing from elsewhere; no link leads nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.test_pages import PAGES, ROOT

LOADS = {
    "link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src",
    "audio": "src", "video": "src", "object": "data", "embed": "src",
}  # fmt: skip
"""What a browser fetches by itself, by the tag and its attribute."""

_REMOTE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]*)|@import\s*['\"]([^'\"]*)")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a warning is an error."""
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(target)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in {"canonical", "next", "prev", "edit"}:
            return  # says where a page is; nothing is fetched
        self.found.append(given.get(LOADS.get(tag, "")) or "")
        self.found.append("mermaid, from a CDN" if "mermaid" in (given.get("class") or "") else "")


def remote(text: str) -> list[str]:
    """What a browser would fetch from elsewhere for a page."""
    parser = _Loads()
    parser.feed(text)
    found = [url for url in parser.found if _REMOTE.match(url) or "CDN" in url]
    return found + [a or b for a, b in _IN_STYLE.findall(text) if _REMOTE.match(a or b)]


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")]
    assert len(list(site.rglob("*.html"))) > len(list((ROOT / "docs").rglob("*.md")))
    problems = {str(page): found for page in pages if (found := remote(page.read_text("utf-8")))}
    assert not problems


@pytest.mark.parametrize(
    "text",
    [
        "<script src='https://cdn.example/x.js'></script>",
        "<link rel='stylesheet' href='//fonts.example/css'>",
        "<style>@import 'https://fonts.example/css';</style>",
        "<style>a { background: url(http://example/x.png) }</style>",
        "<pre class='mermaid'>graph</pre>",
    ],
)
def test_what_comes_from_elsewhere_is_noticed(text: str) -> None:
    assert remote(text)
    assert not remote("<a href='https://example.com'>a link</a><img src='x.svg'>")


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given.get("id", ""), given.get("name", "")}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])


def broken(site: Path) -> list[str]:
    """Links between pages whose page or place does not exist; mkdocs overlooks some of them."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path.resolve()] = parser = _Anchors()
        parser.feed(path.read_text("utf-8"))
    found = []
    for path, page in pages.items():
        for url in map(urlsplit, page.links):
            if url.scheme or url.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            there = pages.get(target)
            if there is None:
                exists = target.exists()
            else:
                exists = not url.fragment or unquote(url.fragment) in there.ids
            if not exists:
                found.append(f"{path.relative_to(site.resolve())} links to {url.geturl()}")
    return found


def test_no_link_leads_nowhere(site: Path, tmp_path: Path) -> None:
    assert not broken(site)
    for number, link in enumerate(("b.html", "#there", "a.html#there", "sub/")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.html").write_text(f"<p id=here><a href='{link}'>x</a>")
        assert broken(tmp_path / str(number))


def test_pages_from_the_code_are_there(site: Path) -> None:
    from tierstore import config
    from tierstore.wiring.backends import BACKENDS

    commands = (site / "reference/cli.html").read_text("utf-8")
    for option in ("TIERSTORE_SAVE_ALIAS", "TIERSTORE_ROLLOUT_START_GATE", "tierstore tier add"):
        assert option in commands
    settings = (site / "reference/settings.html").read_text("utf-8")
    assert all(name in settings for name in config.KNOWN)
    options = {name for backend in BACKENDS for name in backend.options or ()}
    # in the table that is made from the code, and in the one that explains them
    assert all(settings.count(f"<code>{name}</code>") > 1 for name in options)
    assert 'id="tierstore.Store.save"' in (site / "reference/python.html").read_text("utf-8")
    assert "condemned" in (site / "reference/format.html").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in _LINK.findall(text):
        assert (page.parent / target).exists(), f"{page} links to {target}"
