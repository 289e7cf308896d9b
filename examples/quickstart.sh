#!/usr/bin/env bash
# Fine-tune all-MiniLM-L6-v2 on SMS spam: sets up .venv on first use, then runs examples/quickstart.py.
# Arguments go to the script:  bash examples/quickstart.sh --trainable head --num_train_epochs 2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.setup.sh"
set_up examples

export TOKENIZERS_PARALLELISM=false
# On a busy machine, threads that spin while they wait for one another take the cores from those that have work.
export OMP_WAIT_POLICY=PASSIVE
exec "$VENV/bin/python" -m accelerate.commands.launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no \
    --dynamo_backend no --num_cpu_threads_per_process "$(getconf _NPROCESSORS_ONLN)" "$ROOT/examples/quickstart.py" "$@"
