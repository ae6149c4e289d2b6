"""The gateway of a store, started as an operator starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import need_marker

_START_S = 60.0
_STOP_S = 60.0


@dataclass
class Gateway:
    """A gateway that answers."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def gateway(
    store: str, spool: Path, *options: str, program: Sequence[str] = ("-m", "tierstore")
) -> Iterator[Gateway]:
    """Run ``tierstore serve hub`` on a free port until the block ends; it must end cleanly.

    ``program`` are the arguments of Python that start the command line. One that was killed need
    not end.
    """
    need_marker()
    command = [
        sys.executable, *program, "--store", store, "serve", "hub", "--json",
        "--port", "0", "--spool", str(spool), *options,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait(_START_S)
                errors.seek(0)
                raise AssertionError(f"{command}:\n{errors.read().decode()[-3000:]}")
            yield Gateway(json.loads(line)["url"], process)
            if process.poll() is None:
                process.terminate()
                assert process.wait(_STOP_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            errors.seek(0)
            print(errors.read().decode()[-5000:])
