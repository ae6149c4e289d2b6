#!/usr/bin/env bash
# What is long: the tests marked 'soak', some of which start Ceph, HDFS and SFTP servers, the fuzzers
# and state machines with many times the cases that the suite tries, and 100,000 bits that flip.
# 'make soak' runs this in the environment of 'make test'; its result is kept in
# tests/soak-last.txt, which is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
python=${PYTHON:-.venv/bin/python}
last=tests/soak-last.txt

run() { # NAME PYTEST_ARGUMENTS...
    echo "== $1"
    "$python" -m pytest -n "$(nproc)" --timeout=7200 --durations=10 "${@:2}"
}

{
    echo "commit $(git rev-parse --short HEAD), $(date -u +%Y-%m-%d), $(nproc) cores, $("$python" -V)"
    # the largest configurations of the model in tests/reclaim have many states, all kept in memory
    LARGEST_MIB=4096 run "marked soak" -m soak tests
    HYPOTHESIS_PROFILE=thorough FUZZ_FACTOR=10 run "fuzzers and state machines" \
        tests/stateful tests/unit/test_fuzz_format.py
    echo "== flipped bits, in build/flips-*.json"
    mkdir -p build
    # pieces of some minutes each, one process for each core; those of this commit that an
    # interrupted run has ended are not done again
    seq 20 | PYTHON=$python COMMIT=$(git rev-parse --short HEAD) xargs -P "$(nproc)" -I{} bash -c '
        json=build/flips-$COMMIT-{}.json
        [ -e "$json" ] ||
            "$PYTHON" -m tests.flips --servers --flips 5000 --seed {} --json "$json"' ||
        failed=1
    "$python" -m tests.flips --sum build/flips-"$(git rev-parse --short HEAD)"-*.json
    [ -z "${failed-}" ]
} 2>&1 | tee "$last"
