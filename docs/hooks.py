"""What MkDocs does to pages: pages made from the code, and links that also work on a code host.

A page says ``<!-- made from the code: NAME -->`` where the text of ``MADE[NAME]`` goes, or
``<!-- text of PATH -->`` where that of a file of the repository goes.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/project/contributing.md",
    "CHANGELOG.md": "docs/project/changelog.md",
    "SECURITY.md": "docs/project/security.md",
    "tierstore/format/SPEC.md": "docs/reference/format.md",
    "tierstore/format/SPEC-codecs.md": "docs/reference/format-codecs.md",
    "tierstore/cli/SCHEMAS.md": "docs/reference/json.md",
}
"""Files of the repository that are pages of the site under another name."""

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<to>[^):]+?)(?P<anchor>#[^)]*)?\)")
_MADE = re.compile(r"<!-- made from the code: (\w+) -->")
_TEXT = re.compile(r"<!-- text of (\S+) -->")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill a page, and have its links lead to pages of the site."""
    here = f"docs/{page.file.src_uri}"

    def text_of(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text("utf-8")
        if match[1].endswith(".md"):
            return relinked(text.partition("\n")[2], match[1], here)  # the page has a title
        return f"```{Path(match[1]).suffix[1:]}\n{text}```"

    markdown = _MADE.sub(lambda match: MADE[match[1]](), relinked(markdown, here, here))
    return _TEXT.sub(text_of, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Mend what is made from docstrings.

    reStructuredText has two colons before code, and ``tierstore.open`` cannot have its name where
    it is defined, since that would hide Python's own.
    """
    output = output.replace("<p>::</p>", "").replace("::</p>", ":</p>")
    return output.replace(">open_store<", ">open<")


def relinked(markdown: str, source: str, here: str) -> str:
    """Text of the file ``source`` as a part of the page ``here``, both paths in the repository.

    A link to a file that is no page of the site becomes its name.
    """

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["to"]))
        path = PAGES.get(path, path)
        if not path.startswith("docs/"):
            return match["text"] if match["text"].startswith("`") else f"`{match['text']}`"
        to = posixpath.relpath(path, posixpath.dirname(here))
        return f"[{match['text']}]({to}{match['anchor'] or ''})"

    return _LINK.sub(link, markdown)


# Pages made from the code


def commands() -> str:
    """Every command with its arguments and options."""
    from tierstore.cli.commands import COMMANDS
    from tierstore.cli.kit.app import command_tree
    from tierstore.cli.kit.command import walk

    root, _ = command_tree()
    sections: dict[str, dict[str, None]] = {}
    for each in COMMANDS:
        sections.setdefault(each.section, {})[each.first] = None
    lines = []
    for section, names in sections.items():
        lines += [f"## {section}", ""]
        for name in names:
            for path, command in walk(root.commands[name], (name,)):
                lines += _command(path, command)
    return "\n".join(lines)


def _command(path: tuple[str, ...], command: Any) -> Iterator[str]:
    title = " ".join(path)
    parameters = [
        one for one in command.params if one.name not in {"help", "store", "json", "quiet"}
    ]
    yield from (f"{'#' * (2 + len(path))} {title}", "", *_paragraphs(command.help), "")
    if hasattr(command, "commands"):
        return
    words = [
        "[OPTIONS]",
        *(_argument(one) for one in parameters if one.param_type_name == "argument"),
    ]
    yield from ("```text", f"tierstore {' '.join([title, *words])}", "```", "")
    if parameters:
        yield from ("| argument or option | what it is | environment variable |", "|---|---|---|")
        for one in parameters:
            about = one.text if one.param_type_name == "argument" else one.help
            yield f"| {_names(one)} | {_cell(about or '')}{_default(one)} | {_variable(one)} |"
        yield ""


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in (text or "").split("\n\n"):
        yield from (_cell(" ".join(paragraph.split())), "")


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    metavar = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return f"`{', '.join(parameter.opts)}{metavar}`".replace("|", "\\|")


def _default(parameter: Any) -> str:
    value = None if parameter.required else parameter.default
    shown = not (callable(value) or value is None or value is False or value in ("", ()))
    return f" Default: `{value}`." if shown and parameter.param_type_name == "option" else ""


def _variable(parameter: Any) -> str:
    return f"`{parameter.envvar}`" if parameter.param_type_name == "option" else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def settings() -> str:
    """The environment variables that are no options of a command."""
    from tierstore import config

    rows = [
        f"| `{name}` | {meaning} | {default} |"
        for name, (meaning, default) in config.VARIABLES.items()
    ]
    return "\n".join(["| variable | meaning | default |", "|---|---|---|", *rows, ""])


def backends() -> str:
    """The kinds of storage: how their URLs begin, and what tiers can be there."""
    from tierstore.wiring.backends import BACKENDS

    lines = ["| kind | URL | roles | extra | options |", "|---|---|---|---|---|"]
    for backend in BACKENDS:
        urls = ", ".join(
            f"`{scheme}://`" if scheme[-1] != "+" else f"`{scheme}<protocol>://`"
            for scheme in backend.schemes
        )
        options = "any" if backend.options is None else ", ".join(f"`{o}`" for o in backend.options)
        extra = f"`tierstore[{backend.extra}]`" if backend.extra else ""
        lines.append(
            f"| {backend.name} | {urls} | {', '.join(backend.roles)} | {extra} | {options} |"
        )
    return "\n".join([*lines, ""])


MADE: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "backends": backends,
}
"""Texts by the name that pages give them."""
