"""Keep the whole run in a YAML file: what trains, when it is unfrozen, and how fast each part learns.

    python examples/arguments_from_yaml.py              # 8 seconds on 2 CPU cores; reads examples/arguments.yaml
    python examples/arguments_from_yaml.py my.yaml

A tiny BERT from a configuration, on generated rows. The same names are flags in examples/quickstart.py.
"""

import sys
from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, PrinterCallback, set_seed

from hf_freeze import FreezeTrainer, FreezeTrainingArguments


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("arguments.yaml")
    (args,) = HfArgumentParser(FreezeTrainingArguments).parse_yaml_file(path)
    set_seed(args.seed)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, pad_token_id=0
    )
    model = BertForSequenceClassification(config)
    rows = [{"input_ids": [1, 2 + i % 40, 2 + i % 7, 2 + i % 11], "labels": int(i % 40 < 20)} for i in range(400)]

    trainer = FreezeTrainer(model, args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)  # the table below says it shorter
    print(f"{args.freeze_plan().resolve(model)}\n")
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    rates = dict.fromkeys(name for entry in logged for name in entry if name.startswith("lr/"))
    print(f"\n{'step':<24}" + "".join(f"{entry['step']:>10}" for entry in logged))
    for name in ("stage", "trainable_params", "loss"):
        print(f"{name:<24}" + "".join(f"{entry[name]:>10,.6g}" for entry in logged))
    for name in rates:
        print(f"{name:<24}" + "".join(f"{entry.get(name, 0):>10.2g}" for entry in logged))


if __name__ == "__main__":
    main()
