"""The program: its commands, and how errors are reported."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from tierstore.cli.commands import COMMANDS, GROUPS
from tierstore.cli.kit import streams
from tierstore.cli.kit.command import (
    JsonOption,
    QuietOption,
    StoreOption,
    command,
    name_variables,
)
from tierstore.cli.kit.help import arrange
from tierstore.cli.kit.output import as_json, printable
from tierstore.cli.kit.signals import Terminated
from tierstore.cli.kit.warnings import WARNINGS, show_warnings
from tierstore.cli.schemas.core import ErrorDetail, ErrorJson
from tierstore.config import DEBUG, is_on, unknown_variables
from tierstore.errors import NotFound, OutOfSpace, TensorMissing, TierstoreError

INTERRUPTED, BROKEN_PIPE = 130, 141
_ABOUT = """A tiered, content-addressed store for model weights.

\b
A reference (REF) names a version: MODEL (its newest), MODEL@ALIAS, MODEL@12
or MODEL@b3:DIGEST. MODEL@12+NAME is a lossy variant of a version, and
MODEL@release:NAME the version that a release names. An argument may be two
words as well: MODEL ALIAS is MODEL@ALIAS.

\b
Exit codes: 0 ok, 1 error, 2 usage, 3 partial, 4 damage found, 5 not found,
6 conflict, 7 quota or disk full, 8 storage unreachable, 130 interrupted,
143 terminated.

\b
Every option can also be set by a variable TIERSTORE_<COMMAND>_<FLAG>, such as
TIERSTORE_SAVE_ALIAS, and by TIERSTORE_STORE, TIERSTORE_JSON, TIERSTORE_QUIET
for all commands. An option that may be repeated takes words there, separated
by spaces.

\b
Other environment variables, with their defaults:
  TIERSTORE_CONFIG=FILE            this node's file; 'tierstore tier example'
  TIERSTORE_CACHE_DIR=DIR          caches of this node (~/.cache/tierstore)
  TIERSTORE_THREADS=N              threads for encoding and decoding (CPUs)
  TIERSTORE_MEMORY_LIMIT=SIZE      staging memory of loads (2GiB or less)
  TIERSTORE_NODE=NAME              name of this node (its host name)
  TIERSTORE_LABELS=NAME=VALUE,...  labels of this node, for rollouts (none)
  TIERSTORE_PROFILE=NAMES          variants that this node prefers (none)
  TIERSTORE_VERIFY_PARTS=chunks    whole chunks, for parts without proofs
  TIERSTORE_NATIVE=0               do without the native kernels
  TIERSTORE_DEBUG=1                print tracebacks

\b
In programs that load through the library:
  TIERSTORE_METRICS=[HOST:]PORT    serve metrics for Prometheus
  TIERSTORE_LOG=text|json          write a log to stderr
"""
_HELP = ["-h", "--help"]
_WIDEST_HELP = 120
# click's own class; this name is public in every version of typer
_ClickUsageError: type[Any] = typer.BadParameter.__bases__[0]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("tierstore"))
        raise typer.Exit


def _common(
    store: StoreOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version of tierstore and exit.",
        ),
    ] = False,
) -> None:
    """Take the options that all commands share; each command reads them from the context."""


def command_tree(argv: Collection[str] = ()) -> tuple[Any, set[str]]:
    """Return the click command of the program, and the environment variables that it reads.

    Args:
        argv: A command line. Commands whose names it does not contain may be left out: making the
            whole tree takes longer than most commands do.
    """
    asked = {each.module for each in COMMANDS if each.first in argv}
    if not asked or not set(_HELP).isdisjoint(argv):
        asked = {each.module for each in COMMANDS}
    app = typer.Typer(
        name="tierstore",
        help=_ABOUT,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": _HELP, "max_content_width": _WIDEST_HELP},
    )
    app.callback()(_common)
    groups: dict[str, typer.Typer] = {}
    for each in COMMANDS:
        if each.module not in asked:
            continue
        above = app
        if each.name != each.first:
            above = groups.setdefault(each.first, typer.Typer(rich_markup_mode=None))
        function = getattr(import_module(each.module), each.code.partition(".")[2])
        command(above, each.name.rpartition(" ")[2])(function)
    for name, group in groups.items():
        app.add_typer(group, name=name, help=GROUPS[name], no_args_is_help=False)
    root: Any = typer.main.get_command(app)
    arrange(root)
    return root, name_variables(root)


def run(argv: Sequence[str]) -> int:
    """Run one command line, print any error, and return the exit code."""
    streams.prepare()
    show_warnings()
    try:
        root, known = command_tree(argv)
        if unknown_variables(known):  # as far as these commands know
            root, known = command_tree()
        with root.make_context("tierstore", list(argv) or ["--help"], obj=known) as context:
            _invoke(root, context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        streams.drop(streams.STDOUT)
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and not isinstance(error, TierstoreError):
            streams.drop(streams.STDOUT)
        return _report(error, _wants_json(argv))
    return 0


def _invoke(root: Any, context: typer.Context) -> None:
    try:
        root.invoke(context)
    finally:
        WARNINGS.tell_held()


def _wants_json(argv: Sequence[str]) -> bool:
    # the command line may be what is wrong, so it is not parsed for this
    return "--json" in argv or is_on("TIERSTORE_JSON")


def _report(error: BaseException, as_line_of_json: bool) -> int:
    """Print one line about ``error`` on stderr and return the exit code."""
    detail = _detail(error)
    if is_on(DEBUG):
        streams.print_error("".join(traceback.format_exception(error)).rstrip())
    if as_line_of_json:
        streams.print_error(as_json(ErrorJson(error=detail)))
    else:
        streams.print_error(f"tierstore: error: {printable(detail.message)}")
    return detail.exit_code


def _detail(error: BaseException) -> ErrorDetail:
    kind, message, code = type(error).__name__, str(error), 1
    if isinstance(error, TierstoreError):
        code = error.exit_code
        if isinstance(error, TensorMissing):
            kind = NotFound.__name__  # what programs that read this know
    elif isinstance(error, _ClickUsageError):
        context = error.ctx
        where = f"; see '{context.command_path} --help'" if context else ""
        kind, code = "UsageError", 2
        message = error.format_message().rstrip(".") + where
    elif isinstance(error, Terminated):
        kind, code = "Terminated", Terminated.code
        message = f"terminated: {error}" if error.args else "terminated"
    elif isinstance(error, KeyboardInterrupt | typer.Abort):
        kind, code = "Interrupted", INTERRUPTED
        message = f"interrupted: {error}" if error.args else "interrupted"
    elif isinstance(error, OSError) and error.errno in (errno.EBADF, errno.EIO):
        kind, message = "SourceError", f"the output cannot be written: {error.strerror}"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind, code = "OutOfSpace", OutOfSpace.exit_code
        message = f"the output cannot be written: {error.strerror}; free some space"
    elif isinstance(error, OSError) and error.filename is not None:
        kind, message = "BackendError", f"{error.filename} cannot be used: {error.strerror}"
    else:
        message = f"unexpected {kind}: {message}; {DEBUG}=1 shows the traceback"
        kind = "Bug"
    message = "; ".join([message, *getattr(error, "__notes__", ())])
    return ErrorDetail(type=kind, message=message, exit_code=code)
