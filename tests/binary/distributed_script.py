"""Evaluate 101 rows on as many processes as there are, and write down what every rank saw. Run by accelerate launch."""

import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_freeze import BinaryClassificationMetrics, FreezeTrainer, LabelThresholds, MultiLabelMetrics, ThresholdResult
from hf_freeze.binary.saved_threshold import threshold_saved_with_weights
from tests.binary.conftest import WORDS
from tests.binary.test_multi_label import dataset as labelled_three_times
from tests.binary.test_trainer import dataset


def record_writers(kind: type, path: Path, rank: int) -> None:
    """Make every writing of a threshold leave its rank in a file."""
    write = kind.save

    def save(self, target: Path) -> None:
        with path.open("a") as file:
            file.write(f"{rank}\n")
        write(self, target)

    kind.save = save


def margins_of(result: ThresholdResult | LabelThresholds) -> dict[str, float]:
    return result.margins if isinstance(result, LabelThresholds) else {"": result.threshold}


def main(folder: Path, mode: str) -> None:
    several = mode == "labels"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    head = {"num_labels": 3, "problem_type": "multi_label_classification"} if several else {}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes, **head))
    weighted = mode == "weighted"
    column = {"sample_weight": "weight"} if weighted else {}
    metrics = MultiLabelMetrics() if several else BinaryClassificationMetrics(**column)
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_eval_batch_size=8,
        batch_eval_metrics=mode == "batched",
    )
    rows = labelled_three_times(101, 1) if several else dataset(101, 1)
    if weighted:
        rows = [{**row, "weight": 0.5 + index % 7} for index, row in enumerate(rows)]
    trainer_class = FreezeTrainer if weighted else Trainer
    trainer = trainer_class(model, args, eval_dataset=rows, compute_metrics=metrics)
    with metrics.tuning():
        figures = trainer.evaluate()
    # transformers 5.23 multiplies eval_loss by the number of processes when the head ignores num_items_in_batch.
    others = ("runtime", "per_second", "preparation_time", "eval_loss")
    seen = {"world_size": args.world_size, "margins": margins_of(metrics.result)}
    seen["figures"] = {name: value for name, value in figures.items() if not name.endswith(others)}
    (folder / f"rank{args.process_index}.json").write_text(json.dumps(seen))
    record_writers(type(metrics.result), folder / "writers", args.process_index)
    with threshold_saved_with_weights(metrics.result, folder / "saved", model=model, should_save=args.should_save):
        trainer.save_model(str(folder / "saved"))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
