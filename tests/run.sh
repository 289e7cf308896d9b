#!/usr/bin/env bash
# Lint, types and tests; sets up .venv on first use. With arguments: pytest with these arguments, nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .setup.sh
set_up test

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n 2 --dist loadgroup -m "not slow" --cov --cov-report=
.venv/bin/python -m pytest -n 2 --dist loadgroup -m "slow" --cov --cov-append --cov-report=term --cov-fail-under=95
