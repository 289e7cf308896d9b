"""Stages together with what the Trainer does around a run: searches, retries, compilation, trackers."""

import optuna
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.backends import registry
from transformers import Trainer, TrainerCallback

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, Plateau, Stage, param_groups
from tests.models import text_rows, tiny_bert
from tests.training.runs import training_logs, weights
from tests.training.staged import arguments

PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(epoch=1, unfreeze="all", freeze="head")]
)
EPOCHS_OF_FIVE = [0, 0, 1, 1, 1, 2, 2, 2]  # optimizer step -> stage, with batches of 4 out of 20 rows
EPOCHS_OF_SEVEN = [0, 0, 1, 1, 1, 1, 1, 2]  # with batches of 3
every_way_in = pytest.mark.parametrize("how", ["trainer", "callback"])


class Nothing:
    """What a trainer is mixed with where it shall be as it is."""


def staged(folder, how: str, *, plan=PLAN, model=None, mixin=Nothing, callbacks=(), trainer=None, **values) -> Trainer:
    """Eight steps under FreezeTrainer, or under a plain Trainer with the callback."""
    if how == "callback":
        base, extra = Trainer, {"callbacks": [FreezeCallback(plan), *callbacks], **(trainer or {})}
    else:
        base, extra = FreezeTrainer, {"callbacks": list(callbacks), "freeze_plan": plan, **(trainer or {})}
    return type("Made", (mixin, base), {})(
        tiny_bert(layers=3) if model is None and "model_init" not in extra else model,
        arguments(folder, **{"max_steps": 8, "lr_scheduler_type": "constant", **values}),
        train_dataset=text_rows(20),
        eval_dataset=text_rows(8, seed=1),
        **extra,
    )


def stages(made: Trainer) -> list[int]:
    """The stage of every optimizer step."""
    return [entry["stage"] for entry in training_logs(made)]


def rates(made: Trainer, part: str) -> list[float]:
    """The rate, in every optimizer step, of the group that holds most of `part`."""
    name = f"lr/{part}"
    return [entry.get(name, 0) for entry in training_logs(made)]


# Hyperparameter search


class Trials(TrainerCallback):
    """Keeps the training logs and the final weights of every run."""

    def __init__(self) -> None:
        self.logs: list[list[dict]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.logs.append([entry for entry in state.log_history if "loss" in entry])
        self.weights.append(weights(model))


def searching(folder, how: str, **values) -> tuple[Trainer, Trials]:
    trials = Trials()
    init = {"model_init": lambda: tiny_bert(layers=3)}
    return staged(folder, how, trainer=init, callbacks=[trials], **values), trials


def search(made: Trainer, name: str, values: list) -> None:
    """Run one trial for every value of one training argument."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, values)},
        backend="optuna",
        n_trials=len(values),
        sampler=optuna.samplers.GridSampler({name: values}, seed=0),
    )


@every_way_in
@pytest.mark.parametrize(
    "saving", [{}, pytest.param({"save_strategy": "steps", "save_steps": 4}, marks=pytest.mark.slow)], ids=str
)
def test_each_trial_of_a_search_is_the_run_that_it_would_be_alone(tmp_path, how, saving) -> None:
    made, trials = searching(tmp_path / "search", how, **saving)
    search(made, "learning_rate", [0.01, 0.02])
    assert sorted(logs[0]["learning_rate"] for logs in trials.logs) == [0.01, 0.02]

    for logs, final in zip(trials.logs, trials.weights, strict=True):
        assert [entry["stage"] for entry in logs] == EPOCHS_OF_FIVE
        alone, run = searching(tmp_path / "alone", how, learning_rate=logs[0]["learning_rate"])
        alone.train()
        assert logs == run.logs[0]
        assert all(torch.equal(tensor, run.weights[0][name]) for name, tensor in final.items())


def test_each_trial_of_a_search_trains_by_the_weights_of_its_loss(tmp_path) -> None:
    """The arguments are those of the trial, and there is a model again, only once its training has begun."""
    made, trials = searching(tmp_path / "search", "trainer", class_weights="balanced")
    search(made, "focal_gamma", [1.0, 3.0])
    for gamma in (1.0, 3.0):
        alone, run = searching(tmp_path / "alone", "trainer", class_weights="balanced", focal_gamma=gamma)
        alone.train()
        same = [all(torch.equal(found[name], run.weights[0][name]) for name in found) for found in trials.weights]
        assert same.count(True) == 1


@every_way_in
def test_the_best_weights_of_a_stage_are_saved_into_the_checkpoints_of_the_trial(tmp_path, how) -> None:
    waits = Stage(plateau=Plateau("eval_loss", patience=8, restore_best=True), unfreeze="layers[-1]")
    plan = FreezePlan(trainable="head", stages=[waits])
    values = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    made, _ = searching(tmp_path, how, plan=plan, **values)
    search(made, "learning_rate", [0.01, 0.02])
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("stage_best.safetensors"))
    assert written == [f"run-{trial}/checkpoint-{step}/stage_best.safetensors" for trial in (0, 1) for step in (4, 8)]


@every_way_in
def test_a_trial_that_is_cut_off_leaves_the_next_one_alone(tmp_path, how) -> None:
    """Pruned while the last layer trains, that is with the gate closed and the frozen part held in eval mode."""
    made, trials = searching(tmp_path / "search", how, eval_strategy="steps", eval_steps=4)
    made.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.01])},
        backend="optuna",
        n_trials=2,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=PruneFirst(),
    )
    cut_off, whole = trials.logs
    assert [entry["stage"] for entry in cut_off] == EPOCHS_OF_FIVE[:4]
    alone, run = searching(tmp_path / "alone", how, eval_strategy="steps", eval_steps=4)
    alone.train()
    assert whole == run.logs[0]


class PruneFirst(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number == 0


def test_a_search_may_be_over_what_trains(tmp_path) -> None:
    made, trials = searching(tmp_path, "trainer", plan=None, freeze_recipe="linear-probe")
    search(made, "freeze_recipe", ["last-layers:k=1", "lp-ft:probe=0.5", "full"])
    sizes = {tuple(entry["trainable_params"] for entry in logs) for logs in trials.logs}
    model = tiny_bert(layers=3)
    head = sum(p.numel() for p in model.classifier.parameters())
    top = sum(p.numel() for part in (model.bert.encoder.layer[2], model.bert.pooler) for p in part.parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert sizes == {(head + top,) * 8, (head,) * 4 + (whole,) * 4, (whole,) * 8}


def test_a_search_may_be_over_the_warmup_of_what_thaws(tmp_path) -> None:
    made, trials = searching(tmp_path, "trainer", learning_rate=0.01, unfreeze_warmup=0.0)
    search(made, "unfreeze_warmup", [2.0, 3.0])
    ramps = sorted([round(entry.get("lr/trainable from stage 1", 0) * 600) for entry in logs] for logs in trials.logs)
    assert ramps == [[0, 0, 2, 4, 6, 6, 6, 6], [0, 0, 3, 6, 6, 6, 6, 6]]


# auto_find_batch_size


class OutOfMemory:
    """Runs out of memory once, in the forward pass of a step where the last layer trains already."""

    def compute_loss(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.")
        return super().compute_loss(*args, **kwargs)


@every_way_in
@pytest.mark.parametrize(
    "schedule",
    ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("constant", "reduce_lr_on_plateau"))],
)
def test_after_an_attempt_without_memory_the_plan_starts_anew(tmp_path, how, schedule) -> None:
    """The optimizer of the first attempt is used again, with the rates that the gate had set at that moment."""
    values = {"lr_scheduler_type": schedule, "eval_strategy": "epoch", "unfreeze_warmup": 2}
    model = tiny_bert(layers=3)
    optimizers = None
    if how == "callback":
        groups = param_groups(model, arguments(tmp_path), plan=PLAN)
        optimizers = {"optimizers": (torch.optim.AdamW(groups), None)}
        values.pop("unfreeze_warmup")
    made = staged(
        tmp_path, how, model=model, mixin=OutOfMemory, trainer=optimizers, auto_find_batch_size=True, **values
    )
    made.train()

    assert stages(made) == EPOCHS_OF_SEVEN
    scheduled = [0.01 * (1 - step / 8) if schedule == "linear" else 0.01 for step in range(8)]
    if how == "callback":
        assert rates(made, "trainable") == pytest.approx(scheduled)
    else:
        ramp = [0, 0, 0.5, 1, 1, 1, 1, 1]
        assert rates(made, "trainable in stages 0-1") == pytest.approx([*scheduled[:7], 0])
        assert rates(made, "trainable from stage 1") == pytest.approx(
            [s * r for s, r in zip(scheduled, ramp, strict=True)]
        )
        assert rates(made, "trainable from stage 2") == pytest.approx([0] * 7 + [scheduled[7] * 0.5])
    made.model.train()
    assert all(module.training for module in made.model.modules())


# train() called twice


@every_way_in
@pytest.mark.parametrize("schedule", ["linear", "reduce_lr_on_plateau"])
def test_a_second_call_of_train_has_the_stages_and_rates_of_the_first(tmp_path, how, schedule) -> None:
    made = staged(tmp_path, how, lr_scheduler_type=schedule, eval_strategy="epoch")
    seen = []
    for _ in range(2):
        made.train()
        seen.append(
            [{k: v for k, v in entry.items() if k.startswith(("lr/", "stage"))} for entry in training_logs(made)]
        )
    assert seen[0] == seen[1]
    assert [entry["stage"] for entry in seen[0]] == EPOCHS_OF_FIVE


# torch.compile


class Tower(nn.Module):
    """Small, so that compiling it takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids, labels=None, **kwargs):
        hidden = self.embedding(input_ids).mean(dim=1)
        for block in self.blocks:
            hidden = hidden + block(hidden).tanh()
        logits = self.head(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class CountingBackend:
    """Compiles as backend `eager` does, and counts graphs compiled and graphs run."""

    def __init__(self) -> None:
        self.compiled = self.runs = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


class PerStep(TrainerCallback):
    """How many graphs were compiled and run in each step."""

    def __init__(self, backend: CountingBackend) -> None:
        self.backend = backend
        self.seen: list[tuple[int, int]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._before = self.backend.compiled, self.backend.runs

    def on_step_end(self, args, state, control, **kwargs):
        compiled, runs = self._before
        self.seen.append((self.backend.compiled - compiled, self.backend.runs - runs))


ROTATING = FreezePlan(
    trainable="head",
    stages=[
        Stage(step=2 * number, unfreeze=f"blocks.{number % 5}", freeze=f"blocks.{(number - 1) % 5}")
        for number in range(1, 11)
    ],
)


@every_way_in
def test_a_compiled_model_stays_compiled_through_ten_transitions(tmp_path, how, monkeypatch) -> None:
    """Every set of trainable parameters is a graph of its own, and after eight of them dynamo gives up, silently."""
    torch.compiler.reset()
    backend = CountingBackend()
    registry.lookup_backend("eager")
    monkeypatch.setitem(registry._COMPILER_FNS, "eager", backend)
    watch = PerStep(backend)
    made = staged(
        tmp_path,
        how,
        model=Tower(),
        plan=ROTATING,
        callbacks=[watch],
        max_steps=22,
        torch_compile=True,
        torch_compile_backend="eager",
    )
    made.train()
    assert stages(made) == [step // 2 for step in range(22)]
    assert watch.seen == [(1, 1), (0, 1)] * 11


# Trackers


@every_way_in
def test_tensorboard_gets_rates_stage_and_trainable_count(tmp_path, how) -> None:
    made = staged(tmp_path, how, report_to=["tensorboard"])
    made.train()

    (events,) = tmp_path.rglob("events.out.tfevents.*")
    written = EventAccumulator(str(events)).Reload()
    groups = {key for entry in training_logs(made) for key in entry if key.startswith("lr/")}
    assert groups
    for key in ("stage", "trainable_params", *groups):
        found = {event.step: event.value for event in written.Scalars(f"train/{key}")}
        expected = {entry["step"]: entry[key] for entry in training_logs(made) if key in entry}
        assert found == pytest.approx(expected), key
    assert [event.value for event in written.Scalars("train/stage")] == EPOCHS_OF_FIVE
