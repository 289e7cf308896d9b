"""Train with and without stored features on each process; write what came of it.

Usage: distributed_script.py FOLDER BATCH_SIZE
"""

import json
import logging
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from hf_freeze.features import store
from hf_freeze.features.store import FeatureStore
from tests import models
from tests.features.runs import CASES, logged, run, texts


def main(folder: Path, batch_size: int) -> None:
    """Every process writes which parts it stored; the main one weights and logs."""
    state = PartialState(cpu=True)
    logging.getLogger("hf_freeze").setLevel(logging.INFO)
    store.PART_ROWS = 4
    written: list[str] = []
    write = FeatureStore.write

    def noting(self, part, keys, columns):
        written.extend(f"{self.folder.name}/{key}" for key in keys[:, 0].tolist())
        write(self, part, keys, columns)

    FeatureStore.write = noting
    case = CASES["bert"]
    given = {"rows": texts(24), "held_out": texts(12, seed=1), "per_device_train_batch_size": batch_size}
    for name, cache in (("plain", False), ("cached", str(folder / "kept"))):
        # Two processes draw other dropout than one.
        model = models.tiny_bert(layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer = run(
            case, folder / name, trainable=case.last, cache=cache, model=model, per_device_eval_batch_size=3, **given
        )
        weights = {key: weight.detach().clone() for key, weight in trainer.model.named_parameters()}
        if state.is_main_process:
            save_file(weights, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(logged(trainer)))
        flat = torch.cat([weight.flatten() for weight in weights.values()])
        gathered = trainer.accelerator.gather(flat[None])
        assert torch.equal(gathered.min(0).values, gathered.max(0).values), "replicas differ"
    (folder / f"written-{state.process_index}.json").write_text(json.dumps(written))
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
