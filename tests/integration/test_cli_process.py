"""The program as a process: pipes, signals, full disks, start-up."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.waiting import wait_until

PROGRAM = [sys.executable, "-m", "tierstore"]


def run(*argv: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *argv], text=True, stdin=subprocess.DEVNULL, timeout=120,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings},
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(0)
    save_file(
        {f"w{i}": random.standard_normal((700, 700), np.float32) for i in range(3)},
        tmp_path / "model.safetensors",
    )
    with tierstore.init(tmp_path / "store") as made:
        made.save("ranker", tmp_path / "model.safetensors", alias="prod")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERSTORE_STORE", "store")
    return tmp_path


def sparse_model(path: Path, size: int, begin: bytes = b"") -> None:
    """A valid file of ``size`` bytes, those after ``begin`` zeros that take no space."""
    header = f'{{"w":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'.encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + begin)
    os.truncate(path, 8 + len(header) + size)


def test_both_ways_to_start(store: Path) -> None:
    script = Path(sys.executable).with_name("tierstore")
    for program in (PROGRAM, [str(script)]):
        done = subprocess.run([*program, "ls"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("MODEL")
        assert "ranker" in done.stdout


def test_no_arguments_show_help(store: Path) -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Models:" in done.stdout
    assert run("--version").stdout == run("version", "-q").stdout


def test_ls_loads_neither_rich_nor_a_network_client(store: Path) -> None:
    code = (
        "import sys; from tierstore.cli.kit.app import run; assert run(['ls']) == 0\n"
        "heavy = {'rich.console', 'obstore', 'fsspec', 'torch', 'safetensors', 'asyncio'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout


def test_nothing_is_cut_in_a_pipe(store: Path) -> None:
    name = "a.very.long.name." * 12
    with tierstore.open("store") as opened:
        opened.save("long", {name: np.zeros(3, np.float32)})
    done = run("tensors", "long", env={**os.environ, "COLUMNS": "40"})
    assert name in done.stdout
    assert "\x1b" not in done.stdout


def test_a_closed_pipe_is_silent(store: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "tensors", "ranker", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_output_is_an_error(store: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run("ls", stdout=full)
    assert done.returncode == 7
    assert done.stderr == (
        "tierstore: error: the output cannot be written: No space left on device; free some space\n"
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(store: Path, closed: str) -> None:
    program = " ".join(PROGRAM)
    for command, code in (("ls", 0), ("load ranker --to out", 0), ("ls nothing", 5)):
        done = subprocess.run(
            f"{program} {command} {closed}", shell=True, text=True, capture_output=True
        )
        assert done.returncode == code
        if "2>&-" in closed or code == 0:
            assert done.stderr == ""
        else:
            assert done.stderr == (
                "tierstore: error: there is no model 'nothing'; 'tierstore ls' lists them\n"
            )
        assert bool(done.stdout) == (code == 0 and ">&-" not in closed.replace("2>&-", ""))
    assert (store / "out/model.safetensors").read_bytes() == (
        store / "model.safetensors"
    ).read_bytes()
    save = f"{program} save second model.safetensors {closed}"
    assert subprocess.run(save, shell=True, capture_output=True).returncode == 0
    assert run("check", "--read-data").returncode == 0, "nothing was printed into a file"


def test_an_error_that_cannot_be_printed_keeps_its_code(store: Path) -> None:
    with open("/dev/full", "w") as full:
        assert run("ls", "nothing", stderr=full).returncode == 5
    with open(os.devnull) as unwritable:
        done = run("ls", stdout=unwritable)
    assert (done.returncode, done.stderr) == (
        1,
        "tierstore: error: the output cannot be written: Bad file descriptor\n",
    )


def test_a_current_directory_that_was_removed(store: Path, tmp_path: Path) -> None:
    program = " ".join(PROGRAM)
    for command, named in (
        (f"--store {store}/store ls -q", None),
        ("--store store ls", "store"),
        (f"--store {store}/store load ranker --to out", "out"),
    ):
        done = subprocess.run(
            f"mkdir gone && cd gone && rmdir ../gone && {program} {command}",
            shell=True, text=True, capture_output=True,
        )  # fmt: skip
        if named:
            assert (done.returncode, done.stderr) == (
                5,
                f"tierstore: error: '{named}' begins in the current directory, which does not "
                "exist any more: change to another one, or give an absolute path\n",
            )
        else:
            assert done.returncode == 0
            assert (done.stdout, done.stderr) == ("ranker\n", "")


WITHOUT_RIGHTS = (
    "setpriv", "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)  # fmt: skip
"""Runs a program as a user whom rights of files bind, root as well."""


def bound(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WITHOUT_RIGHTS, *PROGRAM, *argv], text=True, capture_output=True, timeout=120
    )


def test_folders_that_may_not_be_entered_are_named(store: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "m").mkdir(parents=True)
    closed.chmod(0)
    try:
        for command in (
            f"--store {closed}/home ls", f"--store {closed}/home init",
            f"load ranker --to {closed}/out", f"save x {closed}/m", f"store validate {closed}/t",
            f"tier add warm {closed}/t", f"patch ranker {closed}/p.safetensors",
        ):  # fmt: skip
            done = bound(*command.split())
            assert done.returncode == 1, command
            assert str(closed) in done.stderr
            assert "unexpected" not in done.stderr
            assert "ermission denied" in done.stderr
    finally:
        closed.chmod(0o700)


def test_a_warm_up_that_may_not_write_ends_at_once(store: Path, tmp_path: Path) -> None:
    hot = tmp_path / "hot"
    assert run("tier", "add", "hot", str(hot), "--size", "100MB").returncode == 0
    assert run("warmup", "ranker", "-q").returncode == 0
    assert run("evict", "--all").returncode == 0
    folders = [hot, *(path for path in hot.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        done = bound("warmup", "ranker", "--wait")
        assert done.returncode == 1
        assert "tierstore: error: tier hot cannot be written to: Permission denied" in done.stderr
        assert bound("load", "ranker", "--to", "out").returncode == 0
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_variables_of_a_kubernetes_service_are_not_ours(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TIERSTORE", "TIERSTORE_HUB", "TIERSTORE_SERVE_HUB"):
        at = "10.0.0.7"
        service = {
            "SERVICE_HOST": at, "SERVICE_PORT": "8000", "SERVICE_PORT_HTTP": "8000",
            "PORT": f"tcp://{at}:8000", "PORT_8000_TCP": f"tcp://{at}:8000",
            "PORT_8000_TCP_PROTO": "tcp", "PORT_8000_TCP_PORT": "8000", "PORT_8000_TCP_ADDR": at,
        }  # fmt: skip
        for key, value in service.items():
            monkeypatch.setenv(f"{name}_{key}", value)
    for command in (["ls", "-q"], ["doctor", "--strict", "-q"]):
        done = run(*command)
        assert (done.returncode, done.stderr) == (0, "")
    with subprocess.Popen(
        [*PROGRAM, "serve", "hub", "--json", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        assert "127.0.0.1" in gateway.stdout.readline()
        gateway.terminate()
    monkeypatch.setenv("TIERSTORE_SERVE_HUB_PORT", "much")
    done = run("serve", "hub")
    assert (done.returncode, "TIERSTORE_SERVE_HUB_PORT" in done.stderr) == (2, True)


def test_an_output_that_cannot_hold_a_name(store: Path) -> None:
    with tierstore.open("store") as opened:
        opened.save("重み", {"w": np.zeros(3, np.float32)})
    done = run("ls", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u91cd\\u307f" in done.stdout


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_while_saving(store: Path) -> None:
    assert run("init", "other").returncode == 0
    done = run("--store", "other", "save", "m", "model.safetensors", preexec_fn=limit_files)
    assert (done.returncode, done.stderr.count("\n")) == (7, 1), done.stderr
    assert re.search(r"free some space, then try again; none of its [\d.]+ MiB are", done.stderr)
    assert run("--store", "other", "ls", "-q").stdout == ""
    assert run("--store", "other", "check").returncode == 0


def test_a_full_disk_while_loading(store: Path) -> None:
    for extra in ([], ["--tensors", "w*"]):
        done = run("load", "ranker", "--to", "out", *extra, preexec_fn=limit_files)
        assert (done.returncode, done.stderr.count("\n")) == (7, 1), done.stderr
        out = store / "out"
        assert not out.exists() or list(out.iterdir()) == []


INTERRUPTED = "tierstore: error: interrupted"


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(7).bytes(count)


def packs_of(store: Path) -> int:
    return sum(1 for path in (store / "store" / "packs").rglob("*") if len(path.name) == 64)


@contextlib.contextmanager
def interrupted_save(
    store: Path, *options: str, begin: bytes = b"", **settings: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a save that takes a minute; a test that fails leaves nothing of it."""
    sparse_model(store / "large.safetensors", 256 << 30, begin)
    with subprocess.Popen(
        [*PROGRAM, "save", "ranker", "large.safetensors", *options],
        stdout=subprocess.PIPE, text=True, **{"stderr": subprocess.PIPE, **settings},
    ) as process:  # fmt: skip
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def saves(process: subprocess.Popen[str]) -> bool:
    """Whether it has begun to read what it saves."""
    with contextlib.suppress(FileNotFoundError):  # a file that it has closed since
        files = [str(one.readlink()) for one in Path(f"/proc/{process.pid}/fd").iterdir()]
        return any(name.endswith("large.safetensors") for name in files)
    return False


def test_interrupting_a_save_in_a_pipe(store: Path) -> None:
    with interrupted_save(store) as process:
        wait_until(lambda: saves(process), "it reads what it saves")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)  # a terminal would show progress by now
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", INTERRUPTED + "\n")
    assert run("ls", "ranker", "-q").stdout == "ranker@1\n"
    assert run("check").returncode == 0


def test_sigterm_ends_a_save_as_ctrl_c_does(store: Path) -> None:
    with interrupted_save(store) as process:
        wait_until(lambda: saves(process), "it reads what it saves")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "tierstore: error: terminated\n")
    assert run("ls", "ranker", "-q").stdout == "ranker@1\n"
    assert list((store / "store" / "leases").iterdir()) == [], "its lease is removed"
    assert run("check").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_save_that_is_ended_says_what_is_kept(store: Path, number: signal.Signals) -> None:
    before = packs_of(store)
    with interrupted_save(store, begin=random_bytes(72 << 20)) as process:
        wait_until(lambda: packs_of(store) > before, "a pack is put")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    word = "interrupted" if number == signal.SIGINT else "terminated"
    kept = "64.0 MiB of 256.0 GiB are stored, and saving it again goes on from there"
    assert err == f"tierstore: error: {word}; {kept}\n"
    assert len(list((store / "store" / "index").iterdir())) == 2
    (large := store / "large.safetensors").unlink()
    sparse_model(large, 80 << 20, random_bytes(72 << 20))
    saved = json.loads(run("save", "ranker", "large.safetensors", "--json").stdout)
    assert saved["new_bytes"] < 16 << 20, "what was kept is not stored again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_ended_leaves_nothing(store: Path, number: signal.Signals) -> None:
    one = np.random.default_rng(1).standard_normal((1 << 20,), np.float32)
    large = {f"w{n}": one for n in range(96)}  # large as files alone
    with tierstore.open("store") as opened:
        opened.save("large", large)
    out = store / "out"
    with subprocess.Popen(
        [*PROGRAM, "load", "large", "--to", "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        wait_until(lambda: any(file.stat().st_size for file in out.glob("*/*")), "it writes")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_ends_by_either_signal(store: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*PROGRAM, "serve", "hub", "--port", "0", "-q"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_live_view_ends_by_sigterm(store: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, "top"], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(theirs)
        assert os.read(ours, 1 << 16), "it shows something"
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):  # the program has ended
            while os.read(ours, 1 << 16):
                pass
        assert process.stderr is not None
        assert process.stderr.read() == ""
    os.close(ours)
    assert process.returncode == 0


def test_sigterm_while_the_program_starts(store: Path) -> None:
    code = (
        "import os, signal, sys, tierstore.cli\n"
        "sys.argv = ['tierstore', 'ls']\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tierstore.cli.kit.app': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Late())\n"
        "tierstore.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "tierstore: error: terminated\n")


def test_sigterm_that_is_ignored_stays_ignored(store: Path) -> None:
    code = (
        "import os, signal, sys, tierstore.cli\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sys.argv = ['tierstore', 'ls', '-q']\n"
        "from tierstore.cli.kit import command\n"
        "opened = command.Cli.open\n"
        "def late(cli): os.kill(os.getpid(), signal.SIGTERM); return opened(cli)\n"
        "command.Cli.open = late\n"
        "tierstore.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ranker\n", "")


def test_tracebacks_only_when_asked_for(store: Path) -> None:
    assert "Traceback" not in run("stat", "nope").stderr
    done = run("stat", "nope", env={**os.environ, "TIERSTORE_DEBUG": "1"})
    assert done.returncode == 5
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tierstore: error: there is no model")


def test_a_bug_is_one_line_and_says_how_to_see_more(store: Path) -> None:
    code = (
        "import sys; from tierstore.cli.kit import app, command\n"
        "command.Cli.open = lambda cli: 1 / 0\n"
        "sys.exit(app.run(['ls']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "tierstore: error: unexpected ZeroDivisionError: division by zero; "
        "TIERSTORE_DEBUG=1 shows the traceback\n"
    )


def shown_on_terminal(store: Path, *options: str, until: str) -> str:
    """What a save shows on a terminal until it is interrupted: at ``until``, or after 3 s of it."""
    ours, theirs = pty.openpty()
    with interrupted_save(
        store, *options, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    ) as process:
        os.close(theirs)
        wait_until(lambda: saves(process), "it reads what it saves")
        shown, began, sent = b"", time.monotonic(), False
        while True:
            readable, _, _ = select.select([ours], [], [], 0.1)
            if readable:
                try:
                    shown += os.read(ours, 1 << 16)
                except OSError:  # the program has ended
                    break
            enough = until.encode() in shown if until else time.monotonic() - began > 3
            if enough and not sent:
                process.send_signal(signal.SIGINT)
                sent = True
        assert process.stdout is not None
        assert process.stdout.read() == ""
    os.close(ours)
    assert process.returncode == 130, shown
    return shown.decode()


def test_progress_on_a_terminal(store: Path) -> None:
    shown = shown_on_terminal(store, until="of 256.0 GiB")
    assert "saving ranker" in shown
    assert INTERRUPTED in shown


@pytest.mark.parametrize("option", ["-q", "--json"])
def test_no_progress_when_quiet(store: Path, option: str) -> None:
    shown = shown_on_terminal(store, option, until="")
    assert "saving" not in shown
    assert shown.count("\n") == 1, shown
