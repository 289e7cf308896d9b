#!/usr/bin/env bash
# Lint, types and tests; sets up .venv on first use. With arguments: pytest with these arguments, nothing else.
# HF_FREEZE_COVERAGE=1 measures the coverage of the tests without the marker slow, which takes them a third longer.
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

tests=("$VENV/bin/python" -m pytest -n 2 --dist loadgroup --durations=15)
coverage=()
if [[ -n ${HF_FREEZE_COVERAGE:-} ]]; then
    coverage=(--cov --cov-report=term --cov-fail-under=95)
    # Two runs at a time must not write into one coverage file.
    COVERAGE_FILE=$(mktemp -d)/coverage
    export COVERAGE_FILE
    trap 'rm -rf "$(dirname "$COVERAGE_FILE")"' EXIT
fi
"${tests[@]}" -m "not slow" ${coverage[@]+"${coverage[@]}"}
"${tests[@]}" -m "slow"
