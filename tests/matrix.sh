#!/usr/bin/env bash
# The quick tests on every Python from 3.11 to 3.14 that this machine has, and on the oldest with the
# oldest versions that pyproject.toml allows: 'make matrix' runs this. Arguments are tests.
#
# Each has a copy of the checkout and an environment of its own below .matrix, made anew by uv, which
# is installed there. Pythons are looked for on the PATH, among those of pyenv and among those that
# uv installed; none is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
export UV_PYTHON_DOWNLOADS=never HYPOTHESIS_PROFILE=quick FUZZ_FACTOR=0.25

python3 -m venv .matrix/uv
.matrix/uv/bin/python -m pip install -q --disable-pip-version-check uv
uv=$PWD/.matrix/uv/bin/uv

found=()
for version in 3.11 3.12 3.13 3.14; do
    for python in "$HOME"/.pyenv/versions/"$version".*/bin/python "$(command -v "python$version")" \
        "$("$uv" python find --managed-python "$version" 2>/dev/null)"; do
        if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
            found+=("$python")
            break
        fi
    done
done
((${#found[@]})) || { echo "no Python from 3.11 to 3.14 was found"; exit 1; }
echo "Pythons: ${found[*]}"

check() { # NAME PYTHON RESOLUTION TESTS...
    local name=$1 python=$2 resolution=$3 here=$PWD/.matrix/$1
    shift 3
    echo "== $name"
    rm -rf "$here"
    mkdir -p "$here/source"  # a copy: each Python builds the native parts for itself
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$here/source"
    "$uv" venv -q --python "$python" "$here/env"
    (
        cd "$here/source"
        "$uv" pip install -q --python "$here/env/bin/python" --resolution "$resolution" -e '.[dev]'
        "$here/env/bin/python" -m pytest -n "$(nproc)" -m 'not server and not soak' "$@"
    )
}

for python in "${found[@]}"; do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    check "$version" "$python" highest "$@"
done
check lowest "${found[0]}" lowest-direct "$@"
echo "all passed: ${found[*]}, and the lowest versions"
