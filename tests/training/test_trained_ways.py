"""`save_trained_only` in the other ways to run a Trainer: resumed, loaded and merged, all bit-equal."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_freeze import FreezePlan, FreezeTrainer, Stage, load_trained, merge_trained
from tests.training.staged import trainer
from tests.training.trained_runs import TWO, base_folder, classifier, same, trained

COMPILED = {"remove_unused_columns": False, "label_names": ["labels"]}
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
WAYS = {
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "a compiled model": COMPILED,
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "save_on_each_node": {"save_on_each_node": True},
    "one checkpoint and the best": {"save_total_limit": 1, **BEST},
    "the best alone": {**BEST, "save_strategy": "best"},
}


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path)


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_goes_on_and_its_model_is_merged_bit_equal(tmp_path, base, way) -> None:
    def run(folder, seed, **more):
        model = classifier(base, seed)
        if way == "a compiled model":
            model = torch.compile(model, backend="eager")
        return trained(tmp_path / folder, base, seed=seed, model=model, plan=TWO, max_steps=6, **WAYS[way], **more)

    whole = run("whole", 0)
    with pytest.raises(KeyboardInterrupt):
        run("part", 0, trainer={"callbacks": [Interrupt()]})
    resumed = run("part", 5, resume=get_last_checkpoint(tmp_path / "part"))
    assert same(whole.model, resumed.model) == []
    resumed.save_model(tmp_path / "end")
    plain = getattr(resumed.model, "_orig_mod", resumed.model)
    assert (
        same(AutoModelForSequenceClassification.from_pretrained(merge_trained(tmp_path / "end", tmp_path / "m")), plain)
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_run_goes_on_from_a_checkpoint_of_the_other_kind(tmp_path, base, only, step) -> None:
    whole = trained(tmp_path / "run", base, only=not only, plan=TWO, max_steps=6)
    made = trained(
        tmp_path / "on", base, only=only, plan=TWO, max_steps=6, seed=4, resume=tmp_path / "run" / f"checkpoint-{step}"
    )
    assert same(whole.model, made.model) == []
    if only:
        model = classifier(base, seed=7)
        load_trained(model, tmp_path / "on" / "checkpoint-6")
        assert same(model, whole.model) == []


@pytest.mark.slow
def test_each_trial_of_a_search_has_checkpoints_of_its_own(tmp_path, base) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ended: list[dict[str, torch.Tensor]] = []

    class Ended(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            ended.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    settings = {"save_trained_only": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    like = trainer(tmp_path / "run", model=classifier(base), plan=TWO, eval_strategy="steps", eval_steps=2, **settings)
    made = FreezeTrainer(
        args=like.args,
        model_init=lambda: classifier(base, seed=1),
        train_dataset=like.train_dataset,
        eval_dataset=like.eval_dataset,
        freeze_plan=FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]")]),
        callbacks=[Ended()],
    )
    made.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)},
        n_trials=2,
        backend="optuna",
        direction="minimize",
    )
    for number, weights in enumerate(ended):
        merged = merge_trained(tmp_path / "run" / f"run-{number}" / "checkpoint-4", tmp_path / str(number))
        found = AutoModelForSequenceClassification.from_pretrained(merged).state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
    assert len(ended) == 2
