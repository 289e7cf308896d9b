#!/usr/bin/env bash
# Fine-tune all-MiniLM-L6-v2 on SMS spam: sets up .venv on first use, then runs examples/quickstart.py.
# Arguments go to the script:  bash examples/quickstart.sh --trainable head --num_train_epochs 2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .setup.sh
set_up examples

export TOKENIZERS_PARALLELISM=false
exec .venv/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    examples/quickstart.py "$@"
