#!/usr/bin/env bash
# Installs what the benchmarks compare with: zipnn (it needs torch), hf_xet, the readers of S3, and
# libcachesim (GPL: never in one process with tierstore), each in an environment of its own, and
# restic, borg, zstd, nginx and curl from the distribution. Safe to run again; prints every version.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
env="$here/.envs/zipnn"
python=${PYTHON:-python3.11}

if ! "$env/bin/python" -c 'import torch, zipnn, safetensors, numpy' 2>/dev/null; then
    "$python" -m venv "$env"
    "$env/bin/pip" install --quiet torch==2.13.0 zipnn numpy safetensors
fi

xet="$here/.envs/xet"
if ! "$xet/bin/python" -c 'import hf_xet' 2>/dev/null; then
    "$python" -m venv "$xet"
    "$xet/bin/pip" install --quiet hf_xet
fi

s3="$here/.envs/s3"
if ! "$s3/bin/python" -c 'import boto3, obstore, runai_model_streamer, s3fs' 2>/dev/null; then
    "$python" -m venv "$s3"
    # without a lower bound pip goes back to an s3fs of years ago
    "$s3/bin/pip" install --quiet torch==2.13.0 numpy safetensors runai-model-streamer \
        runai-model-streamer-s3 'boto3>=1.40' obstore 's3fs>=2025.3' 'aiobotocore>=2.20'
fi

cachesim="$here/.envs/cachesim"
if ! "$cachesim/bin/python" -c 'import libcachesim' 2>/dev/null; then
    "$python" -m venv "$cachesim"
    "$cachesim/bin/pip" install --quiet libcachesim
fi

missing=()
PATH="$PATH:/usr/sbin"
for pair in restic:restic borg:borgbackup zstd:zstd nginx:nginx-light curl:curl; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]})); then
    sudo=$(command -v sudo || true)
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq -y --no-install-recommends "${missing[@]}"
fi

restic version
borg --version
zstd --version
"$env/bin/python" - <<'EOF'
from importlib.metadata import version
for name in ("zipnn", "torch", "numpy", "safetensors"):
    print(name, version(name))
EOF
"$xet/bin/python" -c 'from importlib.metadata import version; print("hf_xet", version("hf_xet"))'
"$s3/bin/python" - <<'EOF'
from importlib.metadata import version
for name in ("runai-model-streamer", "boto3", "obstore", "s3fs"):
    print(name, version(name))
EOF
"$cachesim/bin/python" -c 'from importlib.metadata import version; print("libcachesim", version("libcachesim"))'
