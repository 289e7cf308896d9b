#!/usr/bin/env bash
# Lint, types and tests; sets up .venv on first use. With arguments: pytest with these arguments, nothing else.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.setup.sh"
set_up test

cd "$ROOT"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # each process that a test starts would compile the package again
if (($# > 0)); then
    exec "$VENV/bin/python" -m pytest "$@"
fi
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check .
"$VENV/bin/python" -m mypy

# Two runs at a time must not write into one coverage file.
COVERAGE_FILE=$(mktemp -d)/coverage
export COVERAGE_FILE
trap 'rm -rf "$(dirname "$COVERAGE_FILE")"' EXIT
"$VENV/bin/python" -m pytest -n 2 --dist loadgroup --durations=15 -m "not slow" --cov --cov-report=term --cov-fail-under=95
"$VENV/bin/python" -m pytest -n 2 --dist loadgroup --durations=15 -m "slow"
