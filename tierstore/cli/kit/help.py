"""Groups of commands: what their ``--help`` shows, and what is said of other words."""

from __future__ import annotations

from typing import Any

import click

from tierstore.cli.commands import COMMANDS
from tierstore.cli.kit.params import write_parameters
from tierstore.cli.kit.words import TRIED
from tierstore.errors import UsageError


class Group(click.Group):
    """Commands that begin with the same word, in the order in which they were added."""

    path: tuple[str, ...]
    """The words that lead to it, behind the program's name."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, no_args_is_help=False, **settings)
        self.path = (name,)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in order."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and then the commands."""
        write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; say what to do instead where there is none of this name."""
        word = args[0]
        if word not in self.commands and not word.startswith("-"):
            tried = " ".join((*self.path, word))
            if tried in TRIED:
                raise UsageError(f"there is no command '{tried}': {TRIED[tried]}")
            from difflib import get_close_matches

            found = ", ".join(map(repr, get_close_matches(word, list(self.commands))))
            hint = f" Did you mean {found}?" if found else ""
            ctx.fail(f"No such command {word!r}.{hint}")
        return super().resolve_command(ctx, args)


class Root(Group):
    """All commands, in the sections of the table."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.path = ()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section."""
        longest = max(map(len, self.commands))
        sections: dict[str, dict[str, None]] = {}
        for each in COMMANDS:
            sections.setdefault(each.section, {})[each.first] = None
        for title, names in sections.items():
            with formatter.section(title):
                rows = []
                for name in names:
                    text = self.commands[name].get_short_help_str(formatter.width - longest - 4)
                    rows.append((name.ljust(longest), text))
                formatter.write_dl(rows)
