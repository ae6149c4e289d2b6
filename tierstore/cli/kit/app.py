"""The program: its commands, and how errors are reported."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib import import_module

import click
from click.exceptions import Exit

from tierstore.cli.commands import COMMANDS, GROUPS
from tierstore.cli.kit import streams
from tierstore.cli.kit.command import command, common_parameters, name_variables
from tierstore.cli.kit.help import Group, Root
from tierstore.cli.kit.output import as_json, printable
from tierstore.cli.kit.params import parameters_of
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


def _version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("tierstore"))
        raise Exit(0)


def command_tree(argv: Collection[str] = ()) -> tuple[Root, set[str]]:
    """Return the click command of the program, and the environment variables that it reads.

    Args:
        argv: A command line. Commands whose names it does not contain may be left out: making the
            whole tree takes longer than most commands do.
    """
    asked = {each.module for each in COMMANDS if each.first in argv}
    if list(argv) != ["--version"] and (not asked or not set(_HELP).isdisjoint(argv)):
        asked = {each.module for each in COMMANDS}
    root = Root(
        "tierstore",
        help=_ABOUT,
        params=[
            *parameters_of(common_parameters()),
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_version,
                help="Print the version of tierstore and exit.",
            ),
        ],
        context_settings={"help_option_names": _HELP, "max_content_width": _WIDEST_HELP},
    )
    groups: dict[str, Group] = {}
    for each in COMMANDS:
        if each.module not in asked:
            continue
        above: Group = root
        if each.name != each.first:
            above = groups.get(each.first) or Group(each.first, help=GROUPS[each.first])
            groups[each.first] = root.commands[each.first] = above
        function = getattr(import_module(each.module), each.code.partition(".")[2])
        above.add_command(command(each.name.rpartition(" ")[2], function))
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
    except Exit as done:
        return done.exit_code
    except BrokenPipeError:
        streams.drop(streams.STDOUT)
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and not isinstance(error, TierstoreError):
            streams.drop(streams.STDOUT)
        return _report(error, _wants_json(argv))
    return 0


def _invoke(root: Root, context: click.Context) -> None:
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


def _said(error: click.UsageError) -> str:
    if not isinstance(error, click.NoSuchOption):
        return error.format_message()
    near = ", ".join(sorted(error.possibilities or ()))
    return f"No such option: {error.option_name}" + (f" (Possible options: {near})" if near else "")


def _detail(error: BaseException) -> ErrorDetail:
    kind, message, code = type(error).__name__, str(error), 1
    if isinstance(error, TierstoreError):
        code = error.exit_code
        if isinstance(error, TensorMissing):
            kind = NotFound.__name__  # what programs that read this know
    elif isinstance(error, click.UsageError):
        context = error.ctx
        where = f"; see '{context.command_path} --help'" if context else ""
        kind, code = "UsageError", 2
        message = _said(error).rstrip(".") + where
    elif isinstance(error, Terminated):
        kind, code = "Terminated", Terminated.code
        message = f"terminated: {error}" if error.args else "terminated"
    elif isinstance(error, KeyboardInterrupt | click.Abort):
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
