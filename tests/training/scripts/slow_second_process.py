"""Save with a second process that comes late: `slow_second_process.py OUT_DIR`, started in two processes."""

import sys
import time
from pathlib import Path

from accelerate import PartialState
from transformers import Trainer

from hf_freeze import FreezePlan
from tests.training.staged import trainer


def come_late() -> None:
    save = Trainer._save_rng_state

    def save_late(self: Trainer, output_dir: str) -> None:
        if not self.is_world_process_zero():
            time.sleep(1)
            assert not (Path(output_dir) / "trainer_state.json").exists(), "it passes for whole"
        save(self, output_dir)

    Trainer._save_rng_state = save_late


def main(folder: Path) -> None:
    PartialState(cpu=True)
    come_late()
    trainer(folder, plan=FreezePlan(trainable="head"), max_steps=2, save_strategy="steps", save_steps=1).train()
    assert (folder / "checkpoint-2" / "trainer_state.json").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
