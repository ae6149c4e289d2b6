"""The layout of ``--help``: commands in groups, and arguments by their plain names."""

from __future__ import annotations

from typing import Any

from tierstore.cli.commands import COMMANDS
from tierstore.cli.kit.command import walk
from tierstore.cli.kit.words import explain_tried


def arrange(root: Any) -> None:
    """Order the commands of a click tree, and change how its help is printed."""
    order = dict.fromkeys(each.first for each in COMMANDS)
    root.commands = {name: root.commands[name] for name in order if name in root.commands}
    root.format_commands = lambda context, formatter: _write_sections(root, context, formatter)
    for path, node in walk(root):
        if hasattr(node, "commands"):
            explain_tried(path, node)
        for parameter in node.params:
            if parameter.param_type_name == "argument":
                _plain(parameter)


def _write_sections(root: Any, context: Any, formatter: Any) -> None:
    longest = max(map(len, root.commands))
    sections: dict[str, dict[str, None]] = {}
    for each in COMMANDS:
        sections.setdefault(each.section, {})[each.first] = None
    for title, names in sections.items():
        with formatter.section(title):
            rows = []
            for name in names:
                text = root.commands[name].get_short_help_str(formatter.width - longest - 4)
                rows.append((name.ljust(longest), text))
            formatter.write_dl(rows)


def _plain(argument: Any) -> None:
    """Show an argument as ``NAME``, or ``[NAME]`` when it may be left out."""
    name = argument.metavar or argument.name.upper()
    shown = name if argument.required else f"[{name}]"
    argument.get_usage_pieces = lambda context: [shown]
    argument.get_help_record = lambda context: (name, argument.help or "")
