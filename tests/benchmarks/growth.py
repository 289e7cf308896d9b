"""How the time of selecting, grouping and freezing grows with the number of tensors: BERTs of many tiny layers.

Run (about a minute on 2 cores):  python tests/benchmarks/growth.py
Options: --layers 60 190 674

Prints seconds of processor time per operation and model. The last row is one step of a FreezeTrainer without a plan on
a model of which every other tensor is frozen, construction included, less the same with the plain Trainer (which takes
2.5 to 3 s itself at 10,793 tensors).

Goal: no operation takes more than 2 s at 10,000 tensors, and three times the tensors take about three times as long.
Measured on one core of a busy machine, torch 2.13, transformers 5.24:

seconds at                       969     3,049    10,793
resolve, two entries            0.04      0.14      0.48
resolve, entry per layer        0.05      0.16      1.01
resolve, gradual                0.04      0.16      0.79
groups, gradual                 0.07      0.28      1.87
freeze                          0.05      0.19      0.69
unfreeze                        0.04      0.15      0.58
summary                         0.04      0.14      0.96
step without a plan             0.14      0.37      1.58
"""

import argparse
import tempfile
import time

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import (
    FreezePlan,
    FreezeTrainer,
    FreezeTrainingArguments,
    freeze,
    param_groups,
    recipes,
    trainable_summary,
    unfreeze,
)

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": index % 2} for index in range(8)]
TINY = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4, "vocab_size": 64}


def seconds(call) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def one_step(model, trainer, arguments) -> float:
    def run() -> None:
        args = arguments(tempfile.mkdtemp(), max_steps=1, use_cpu=True, report_to=[], save_strategy="no")
        trainer(model, args, train_dataset=ROWS).train()

    return seconds(run)


def measured(layers: int) -> tuple[int, dict[str, float]]:
    """Return the number of tensors and the seconds of each operation."""
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **TINY))
    every_other = FreezePlan(trainable=[f"bert.encoder.layer.{index}" for index in range(0, layers, 2)])
    found = {
        "resolve, two entries": seconds(lambda: FreezePlan(trainable=["head", "layers[-1]"]).resolve(model)),
        "resolve, entry per layer": seconds(lambda: every_other.resolve(model)),
        "resolve, gradual": seconds(lambda: recipes.gradual().resolve(model)),
        "groups, gradual": seconds(lambda: param_groups(model, lr=1e-3, plan=recipes.gradual(), layer_lr_decay=0.99)),
        "freeze": seconds(lambda: freeze(model, "backbone")),
        "unfreeze": seconds(lambda: unfreeze(model)),
        "summary": seconds(lambda: trainable_summary(model)),
    }
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    plain = one_step(model, Trainer, TrainingArguments)
    found["step without a plan"] = one_step(model, FreezeTrainer, FreezeTrainingArguments) - plain
    return len(parameters), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[60, 190, 674])
    options = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()
    measured(2)  # what is imported and compiled once
    columns = [measured(layers) for layers in options.layers]
    print(f"{'seconds at':26}" + "".join(f"{tensors:>10,}" for tensors, _ in columns))
    for name in columns[0][1]:
        print(f"{name:26}" + "".join(f"{found[name]:10.2f}" for _, found in columns))


if __name__ == "__main__":
    main()
