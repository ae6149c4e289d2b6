"""The parts of the command line that need no store: printing, variables, schemas, errors."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore import config, errors
from tierstore.cli import commands
from tierstore.cli.kit import app, command, output, warnings
from tierstore.cli.kit.output import Column, printable, shares, size, table
from tierstore.cli.schemas import core, markdown

ROOT, KNOWN = app.command_tree()
COMMANDS = [
    (" ".join(path), node) for path, node in command.walk(ROOT) if not hasattr(node, "commands")
]


def test_the_whole_program_has_every_command() -> None:
    assert [name for name, _ in COMMANDS] == [each.name for each in commands.COMMANDS]
    assert list(ROOT.commands) == list(dict.fromkeys(each.first for each in commands.COMMANDS))


@pytest.mark.parametrize("name", sorted(ROOT.commands))
def test_a_command_is_there_when_the_line_names_it(name: str) -> None:
    """And is the same as in the whole program, options and environment variables included."""
    root, known = app.command_tree(["--store", "s", name, "--json"])
    assert len(root.commands) < len(ROOT.commands)
    assert known < KNOWN
    part, whole = ([(path, [(o.opts, o.envvar) for o in command.options(node)])
                    for path, node in command.walk(r.commands[name], (name,))]
                   for r in (root, ROOT))  # fmt: skip
    assert part == whole


@pytest.mark.parametrize("argv", [[], ["--help"], ["ls", "-h"], ["--store", "s"], ["no-command"]])
def test_without_a_command_the_whole_program_is_there(argv: list[str]) -> None:
    assert set(app.command_tree(argv)[0].commands) == set(ROOT.commands)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(
    monkeypatch: pytest.MonkeyPatch,
    columns: list[Column],
    rows: Sequence[tuple[str, ...]],
    width: int,
) -> list[str]:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width))
    table(columns, rows)
    return out.getvalue().splitlines()


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=8).filter(any))
def test_shares_add_up_and_are_near(parts: list[int]) -> None:
    shown = [round(float(text.removesuffix(" %")) * 10) for text in shares(parts)]
    assert sum(shown) == 1000
    for part, tenths in zip(parts, shown, strict=True):
        assert abs(part * 1000 / sum(parts) - tenths) < 1.01


def test_shares_of_nothing() -> None:
    assert shares([0, 0]) == ["-", "-"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (91_000_000, "86.8 MiB"),
        (5 << 60, "5120.0 PiB"),
    ],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("encoder.ω.重み", "encoder.ω.重み"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\rc", "a\\nb\\rc"),
        ("user\u202etxt", "user\\u202etxt"),
    ],
)
def test_what_moves_a_cursor_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [Column("NAME"), Column("SIZE", right=True), Column("MESSAGE")]
    rows = [("ranker", "1.0 MiB", "why this was saved " * 10), ("重み", "2 B", "")]
    lines = show(monkeypatch, columns, rows, 60)
    assert max(map(len, lines)) <= 60, lines
    assert "".join(lines).count("saved") == 10


def test_long_names_stay_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "encoder.layer.0.attention.output.LayerNorm.weight"
    columns = [Column("TENSOR"), Column("DTYPE"), Column("SIZE", right=True), Column("CODEC")]
    rows = [(name, "F32", "576.0 KiB", "planes")]
    assert name in show(monkeypatch, columns, rows, 52)
    assert len(show(monkeypatch, columns, rows, 100)) == 2


def test_digests_are_short_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("a", "0123456789abcdef" * 4)]
    columns = [Column("FILE"), Column("SHA-256", digest=True)]
    table(columns, rows)
    assert rows[0][1] in capsys.readouterr().out
    assert show(monkeypatch, columns, rows, 80)[1].endswith("0123456789ab…")


@pytest.mark.parametrize(("name", "node"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_option_has_its_variable(name: str, node: Any) -> None:
    found = {option.name: option.envvar for option in command.options(node)}
    assert found["store"] == config.STORE
    assert (found["json"], found["quiet"]) == ("TIERSTORE_JSON", "TIERSTORE_QUIET")
    prefix = f"TIERSTORE_{name.replace(' ', '_').upper()}_"
    own = {option: variable for option, variable in found.items() if option not in command.COMMON}
    assert all(variable.startswith(prefix) for variable in own.values()), own
    assert set(found.values()) <= KNOWN


def test_the_variables() -> None:
    assert {
        "TIERSTORE_STORE", "TIERSTORE_JSON", "TIERSTORE_QUIET", "TIERSTORE_INIT_CHUNK_SIZE",
        "TIERSTORE_SAVE_ALIAS", "TIERSTORE_SAVE_MESSAGE", "TIERSTORE_SAVE_EXCLUDE",
        "TIERSTORE_LOAD_TO", "TIERSTORE_LOAD_TENSORS", "TIERSTORE_TENSORS_FILTER",
        "TIERSTORE_ALIAS_SET_MESSAGE", "TIERSTORE_ALIAS_RM_MESSAGE", "TIERSTORE_ROLLBACK_MESSAGE",
        "TIERSTORE_CHECK_READ_DATA", "TIERSTORE_DEMO_DIR", "TIERSTORE_DEMO_KEEP",
    } <= KNOWN  # fmt: skip
    named = [option.envvar for _, node in COMMANDS for option in command.options(node)]
    assert set(named) == KNOWN
    common = {"TIERSTORE_STORE", "TIERSTORE_JSON", "TIERSTORE_QUIET"}
    own = [name for name in named if name not in common]
    assert len(own) == len(set(own)), "two options share a variable"


def test_every_command_has_help_and_a_schema() -> None:
    assert {name for name, _ in COMMANDS} == set(markdown.outputs())
    for name, node in COMMANDS:
        assert node.help, f"{name} has no help"
        for parameter in node.params:
            about = parameter.text if parameter.param_type_name == "argument" else parameter.help
            assert about or parameter.name == "help", (name, parameter)


@pytest.mark.parametrize("name", ["", *commands.GROUPS])
def test_every_command_fits_the_list_of_commands(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 80 columns no line of a list of commands is cut short."""
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run([*name.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...") and "Usage" not in line]


def test_help_shows_arguments_by_their_names() -> None:
    usage = ROOT.commands["save"].get_usage(ROOT.make_context("tierstore", ["version"], obj=KNOWN))
    assert usage.endswith("[OPTIONS] MODEL SOURCE")


def test_the_documented_schemas_are_current() -> None:
    written = (Path(core.__file__).parents[1] / "SCHEMAS.md").read_text()
    assert written == markdown.as_markdown(), (
        "run: python -m tierstore.cli.schemas.markdown > SCHEMAS.md"
    )


ODD = "TIERSTORE_" + "9" * 60


def test_unknown_variables_are_named_with_the_nearest() -> None:
    environ = {"TIERSTORE_SAVE_ALAIS": "", ODD: "", "HOME": "/"}
    environ |= {**dict.fromkeys(config.KNOWN, "1"), "TIERSTORE_LOAD_TO": "x"}
    assert sorted(config.unknown_messages(KNOWN, environ), reverse=True) == [
        "the environment variable TIERSTORE_SAVE_ALAIS is not known: did you mean "
        "'TIERSTORE_SAVE_ALIAS'? see 'tierstore --help'",
        f"the environment variable {ODD} is not known: see 'tierstore --help'",
    ]


@pytest.mark.parametrize(
    ("name", "value", "of_service"),
    [
        ("TIERSTORE_PORT", "tcp://10.0.0.7:8000", True),
        ("TIERSTORE_PORT", "8000", False),
        ("TIERSTORE_SERVE_HUB_PORT", "udp://10.0.0.7:1", True),
        ("TIERSTORE_SERVE_HUB_PORT", "8000", False),
        ("TIERSTORE_SERVICE_HOST", "fd00::1", True),
        ("TIERSTORE_A_B_SERVICE_PORT_METRICS", "1", True),
        ("TIERSTORE_PORT_53_UDP_ADDR", "10.0.0.7", True),
        ("TIERSTORE_PORT_53_TCP_PORT", "53", True),
        ("TIERSTORE_SERVICE_PORT", "53", True),
        ("TIERSTORE_PORT_53_UDP_ADRR", "10.0.0.7", False),
        ("TIERSTORE_STORE", "tcp://10.0.0.7:8000", False),
    ],
)
def test_variables_of_services_are_told_by_their_form(
    name: str, value: str, of_service: bool
) -> None:
    assert config.is_service_variable(name, value) == of_service


def all_errors(base: type[errors.TierstoreError]) -> list[type[errors.TierstoreError]]:
    """Return the errors that users see: one of another module never leaves the package."""
    children = [kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__]
    return [base, *(found for child in children for found in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors(errors.TierstoreError))
def test_errors_keep_their_exit_code(kind: type[errors.TierstoreError]) -> None:
    detail = app._detail(kind("what happened"))
    name = "NotFound" if kind is errors.TensorMissing else kind.__name__
    assert detail == core.ErrorDetail(type=name, message="what happened", exit_code=kind.exit_code)


def test_exit_codes_are_fixed() -> None:
    codes = {kind.__name__: kind.exit_code for kind in all_errors(errors.TierstoreError)}
    assert codes["UsageError"] == codes["ConfigError"] == codes["InvalidName"] == 2
    assert (codes["Damaged"], codes["NotFound"], codes["Conflict"]) == (4, 5, 6)
    assert (codes["OutOfSpace"], codes["Unreachable"], codes["BackendError"]) == (7, 8, 1)
    assert app._detail(KeyboardInterrupt()).exit_code == 130
    assert app._detail(ZeroDivisionError("x")).exit_code == 1


def test_json_is_sorted_and_exact() -> None:
    text = output.as_json(core.File(path="ü", sha256="0", bytes=1 << 60))
    assert text == '{"bytes": 1152921504606846976, "path": "ü", "sha256": "0"}'


def test_one_warning_for_one_tier_until_it_works_again(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("tierstore.tiers")
    warnings.show_warnings()
    try:
        for _ in range(3):
            log.warning("tier warm failed", extra={"tier": "warm"})
        log.warning("tier cold failed", extra={"tier": "cold"})
        log.warning("reading tier warm works again", extra={"works": "warm"})
        warnings.WARNINGS.hold()
        log.warning("tier warm failed again", extra={"tier": "warm"})
        log.warning("tier hot failed", extra={"tier": "hot"})
        log.warning("something else")
        warnings.WARNINGS.tell_held(told={"hot"})
    finally:
        logging.getLogger("tierstore").removeHandler(warnings.WARNINGS)
    lines = capsys.readouterr().err.splitlines()
    told = [line.removeprefix("tierstore: warning: ") for line in lines]
    assert told == [
        "tier warm failed", "tier cold failed", "reading tier warm works again", "something else",
        "tier warm failed again",
    ]  # fmt: skip
