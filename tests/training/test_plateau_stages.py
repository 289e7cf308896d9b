"""A stage that begins when a metric has stopped improving, in real runs."""

import itertools
import math

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, default_data_collator

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, PlanError, Plateau, Stage
from tests.models import image_rows, text_rows, tiny_bert, tiny_resnet
from tests.training.runs import weights
from tests.training.staged import trainer

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}
EVERY_SECOND_STEP = {"eval_strategy": "steps", "eval_steps": 2}
THAW = Stage(plateau=Plateau("eval_loss"), unfreeze="layers[-1]")


def thaw_at(metric: str = "eval_quality", **options) -> FreezePlan:
    return FreezePlan(trainable="head", stages=[Stage(plateau=Plateau(metric, **options), unfreeze="layers[-1]")])


class Measured:
    """`compute_metrics` that returns these figures one after the other, and the last of them from then on."""

    def __init__(self, *figures: float, name: str = "quality") -> None:
        self._figures = itertools.chain(figures, itertools.repeat(figures[-1]))
        self._name = name

    def __call__(self, prediction) -> dict[str, float]:
        return {self._name: next(self._figures)}


class Weights(TrainerCallback):
    """Every parameter and buffer after each step, and as the next one goes through the model."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.after: dict[int, dict[str, torch.Tensor]] = {}
        self.before: dict[int, dict[str, torch.Tensor]] = {}

        def note(module, inputs):
            if module.training:
                self.before[state.global_step] = weights(module)

        self._hook = model.register_forward_pre_hook(note)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = weights(model)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def rewound(self, step: int, to: int) -> bool:
        """Whether the step after `step` steps began with every tensor as it was after `to` steps."""
        return all(torch.equal(tensor, self.after[to][name]) for name, tensor in self.before[step].items())


def staged(folder, how: str, plan: FreezePlan, *, measured=None, callbacks=(), **values) -> Trainer:
    """A run of twelve steps under FreezeTrainer, or under a plain Trainer with the callback."""
    watch = Weights()
    callback = [FreezeCallback(plan)] if how == "callback" else []
    made = trainer(
        folder,
        plan=plan,
        cls=Trainer if how == "callback" else FreezeTrainer,
        trainer={"callbacks": [*callback, watch, *callbacks], "compute_metrics": measured},
        **{**EVERY_STEP, **values},
    )
    made.weights = watch
    return made


def stages(made: Trainer) -> list[int]:
    """The stage of every optimizer step."""
    return [entry["stage"] for entry in made.state.log_history if "loss" in entry]


every_way_in = pytest.mark.parametrize("how", ["trainer", "callback"])


# When a plateau stage begins


@every_way_in
@pytest.mark.parametrize(
    ("figures", "options", "stage_0"),
    [
        ([1, 2, 2], {}, 3),
        ([1, 2, 2, 3, 3, 3], {"patience": 2}, 6),
        ([1, math.nan, 2, 2, math.nan], {"patience": 2}, 5),
        ([1, 1.05, 1.09], {"min_delta": 0.1, "patience": 2}, 3),
        ([3, 2, 1, 1], {"greater_is_better": False}, 4),
        ([1, 2, 3, 4, 5, 6, 7], {"max_epochs": 1}, 5),
        ([1, 1], {"max_epochs": 1}, 2),
        (list(range(20)), {}, 12),
    ],
    ids=str,
)
def test_the_stage_begins_with_the_step_after_the_plateau(tmp_path, how, figures, options, stage_0) -> None:
    made = staged(tmp_path, how, thaw_at(**options), measured=Measured(*figures))
    made.train()

    assert stages(made) == [0] * stage_0 + [1] * (12 - stage_0)
    thawed = "bert.encoder.layer.2.output.dense.weight"
    assert [thawed in made.watch.moved(step) for step in range(1, 13)] == [step > stage_0 for step in range(1, 13)]


def test_each_plateau_is_counted_from_the_start_of_its_own_stage(tmp_path) -> None:
    """The second watch neither inherits the best value of the first nor counts the evaluation that ended it."""
    plan = FreezePlan(
        trainable="head",
        stages=[
            Stage(plateau=Plateau("quality"), unfreeze="layers[-1]"),
            Stage(plateau=Plateau("quality", patience=2), unfreeze="all"),
        ],
    )
    made = staged(tmp_path, "trainer", plan, measured=Measured(5, 5, 1, 2, 2, 2))
    made.train()
    assert stages(made) == [0] * 2 + [1] * 4 + [2] * 6


def test_an_evaluation_where_a_timed_stage_begins_belongs_to_the_stage_before(tmp_path) -> None:
    """It saw no step of the new stage: neither its figure nor its weights may become that stage's best."""
    plan = FreezePlan(
        trainable="head",
        stages=[
            Stage(step=2, unfreeze="layers[-1]"),
            Stage(plateau=Plateau("quality", patience=2, restore_best=True), unfreeze="all"),
        ],
    )
    made = staged(tmp_path, "trainer", plan, measured=Measured(1, 9, 2, 3, 1, 1))
    made.train()
    assert stages(made) == [0] * 2 + [1] * 4 + [2] * 6
    assert made.weights.rewound(6, to=4)


def test_the_evaluation_at_the_deadline_still_counts_for_the_stage_that_ends(tmp_path) -> None:
    plan = thaw_at(max_epochs=0.8, patience=9, restore_best=True)
    made = staged(tmp_path, "trainer", plan, measured=Measured(1, 2, 3, 9, 0))
    made.train()
    assert stages(made) == [0] * 4 + [1] * 8
    assert made.weights.rewound(4, to=4)


def test_an_evaluation_before_the_first_step_is_the_first_of_the_first_stage(tmp_path) -> None:
    made = staged(tmp_path, "trainer", thaw_at(patience=2), measured=Measured(9, 1, 1), eval_on_start=True)
    made.train()
    assert stages(made) == [0] * 2 + [1] * 10


def test_a_timed_stage_waits_behind_the_plateau_before_it(tmp_path) -> None:
    plan = FreezePlan(
        trainable="head", stages=[thaw_at(patience=3).stages[0], Stage(step=2, unfreeze="all", freeze="head")]
    )
    made = staged(tmp_path, "trainer", plan, measured=Measured(1))
    made.train()
    assert stages(made) == [0] * 4 + [2] * 8


# Which metric


@every_way_in
@pytest.mark.parametrize("order", [["val", "other"], ["other", "val"]])
def test_of_several_eval_sets_the_metric_of_the_named_one_is_watched(tmp_path, how, order) -> None:
    made = staged(tmp_path, how, thaw_at("eval_val_loss", min_delta=1e9))
    made.eval_dataset = {name: text_rows(4, seed=seed) for seed, name in enumerate(order)}
    made.train()
    assert stages(made) == [0] * 2 + [1] * 10


@every_way_in
def test_a_metric_that_evaluation_does_not_log_is_an_error_after_the_first_one(tmp_path, how) -> None:
    """Of all plateaus in the plan, not of the next one alone: a typo must not show days later."""
    later = Stage(plateau=Plateau("eval_qualty"), unfreeze="all")
    plan = FreezePlan(trainable="head", stages=[*thaw_at().stages, later])
    made = staged(tmp_path, how, plan, measured=Measured(1), **EVERY_SECOND_STEP)
    with pytest.raises(PlanError, match=r"metric='eval_qualty'.*It logs .*eval_loss, eval_quality, "):
        made.train()
    assert made.state.global_step == 2


class EvaluatesTheTestSet(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.evaluate(text_rows(4), metric_key_prefix="test")


@every_way_in
def test_an_evaluation_of_another_set_by_a_callback_is_not_looked_at(tmp_path, how) -> None:
    extra = EvaluatesTheTestSet()
    made = staged(tmp_path, how, thaw_at("eval_loss", min_delta=1e9), callbacks=[extra], **EVERY_SECOND_STEP)
    extra.trainer = made
    made.train()
    assert stages(made) == [0] * 4 + [1] * 8


@every_way_in
def test_a_plateau_without_evaluation_is_refused_at_construction(tmp_path, how) -> None:
    with pytest.raises(PlanError, match="waits for a plateau of 'eval_quality', but eval_strategy is 'no'"):
        staged(tmp_path / "run", how, thaw_at(), eval_strategy="no")
    assert not list(tmp_path.rglob("*.*"))


# restore_best


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")  # of the Trainer, for the order of checkpoints
@every_way_in
@pytest.mark.parametrize("saving", [{}, {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}], ids=str)
def test_restore_best_begins_the_stage_with_the_weights_of_the_best_evaluation(tmp_path, how, saving) -> None:
    plan = thaw_at(patience=3, restore_best=True)
    made = staged(tmp_path, how, plan, measured=Measured(1, 5, 2, 3, 4), **saving)
    made.train()
    assert stages(made) == [0] * 5 + [1] * 7
    assert made.weights.rewound(5, to=2)
    assert not made.weights.rewound(5, to=5)


def test_a_metric_that_later_evaluations_lack_is_missed(tmp_path) -> None:
    figures = iter([{"quality": 1.0}])
    made = staged(tmp_path, "trainer", thaw_at(patience=9), measured=lambda _: next(figures, {"other": 1.0}))
    with pytest.raises(PlanError, match="eval_quality"):
        made.train()


def test_a_run_resumes_in_the_stage_after_the_one_that_went_back_to_its_best(tmp_path) -> None:
    plan, saving = thaw_at(restore_best=True), {"save_strategy": "steps", "save_steps": 6}
    whole = staged(tmp_path / "whole", "trainer", plan, measured=Measured(1, 2, 1), **saving)
    whole.train()
    assert stages(whole)[2:4] == [0, 1]
    resumed = staged(tmp_path / "again", "trainer", plan, measured=Measured(1), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)


@every_way_in
def test_without_restore_best_the_last_weights_stay(tmp_path, how) -> None:
    made = staged(tmp_path, how, thaw_at(patience=3), measured=Measured(1, 5, 2, 3, 4))
    made.train()
    assert made.weights.rewound(5, to=5)


@every_way_in
def test_restore_best_rewinds_the_statistics_of_trainable_batchnorm_too(tmp_path, how) -> None:
    plan = FreezePlan(
        freeze=["resnet.embedder", "resnet.encoder.stages.0"],
        stages=[Stage(plateau=Plateau("quality", patience=2, restore_best=True), unfreeze="all")],
    )
    made = staged(tmp_path, how, plan, model=tiny_resnet(), rows=image_rows(20), measured=Measured(1, 5, 2, 3))
    made.eval_dataset = image_rows(4)
    made.data_collator = default_data_collator
    made.train()
    assert stages(made) == [0] * 4 + [1] * 8
    statistics = "resnet.encoder.stages.1.layers.0.layer.0.normalization.running_mean"
    assert not torch.equal(made.weights.after[4][statistics], made.weights.after[2][statistics])
    assert made.weights.rewound(4, to=2)


def test_each_plateau_rewinds_to_the_best_of_its_own_stage(tmp_path) -> None:
    plan = FreezePlan(
        trainable="head",
        stages=[
            Stage(plateau=Plateau("quality", patience=2, restore_best=True), unfreeze="layers[-1]"),
            Stage(plateau=Plateau("quality", patience=2, restore_best=True), unfreeze="all"),
        ],
    )
    made = staged(tmp_path, "trainer", plan, measured=Measured(9, 1, 1, 2, 3, 1, 1))
    made.train()
    assert stages(made) == [0] * 3 + [1] * 4 + [2] * 5
    assert made.weights.rewound(3, to=1)
    assert made.weights.rewound(7, to=5)


def test_a_stage_without_an_evaluation_is_not_rewound_to_the_best_of_the_one_before(tmp_path) -> None:
    plan = FreezePlan(
        trainable="head",
        stages=[
            Stage(plateau=Plateau("quality", max_epochs=0.4, restore_best=True), unfreeze="layers[-1]"),
            Stage(plateau=Plateau("quality", max_epochs=0.2, restore_best=True), unfreeze="all"),
        ],
    )
    made = staged(tmp_path, "trainer", plan, measured=Measured(9, 1), **EVERY_SECOND_STEP)
    made.train()
    assert stages(made) == [0] * 2 + [1] + [2] * 9
    assert made.weights.rewound(3, to=3)


# Together with what else ends or rewinds a run


@every_way_in
def test_early_stopping_that_is_more_patient_than_the_plateau_lets_the_stage_begin(tmp_path, how, caplog) -> None:
    made = staged(
        tmp_path,
        how,
        thaw_at(patience=2),
        measured=Measured(1, 2, 2),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=4)],
        metric_for_best_model="quality",
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=1,
    )
    made.train()
    assert stages(made) == [0] * 4 + [1] * 2
    assert "never began" not in caplog.text


@every_way_in
def test_early_stopping_that_is_not_ends_the_run_and_says_which_stages_never_began(tmp_path, how, caplog) -> None:
    made = staged(
        tmp_path,
        how,
        thaw_at(patience=2),
        measured=Measured(1, 2, 2),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        metric_for_best_model="quality",
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=1,
    )
    made.train()
    assert stages(made) == [0] * 4
    assert "ended in stage 0 of 1; these stages never began: plateau of eval_quality" in caplog.text


@every_way_in
def test_the_best_model_of_an_earlier_stage_is_loaded_at_the_end(tmp_path, how) -> None:
    made = staged(
        tmp_path,
        how,
        thaw_at(),
        measured=Measured(1, 9, 2),
        metric_for_best_model="quality",
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=1,
    )
    made.train()
    assert stages(made) == [0] * 3 + [1] * 9
    assert made.state.best_global_step == 2
    assert all(torch.equal(tensor, made.weights.after[2][name]) for name, tensor in weights(made.model).items())
    made.model.train()
    assert all(module.training for module in made.model.modules())


@every_way_in
def test_training_twice_watches_the_metric_anew(tmp_path, how) -> None:
    made = staged(tmp_path, how, thaw_at(patience=2, restore_best=True), measured=Measured(1, 2, 1, 1, 7))
    made.train()
    assert stages(made) == [0] * 4 + [1] * 8
    made.compute_metrics = Measured(1, 2, 3, 2, 2, 2)
    made.train()
    assert stages(made) == [0] * 5 + [1] * 7
    assert made.weights.rewound(5, to=3)


def test_the_loss_of_the_trainer_itself_ends_a_stage(tmp_path) -> None:
    """Nothing is faked: at a rate of 0 the loss stands still, and the second evaluation says so."""
    made = trainer(
        tmp_path,
        model=tiny_bert(layers=3),
        plan=FreezePlan(trainable="head", stages=[THAW]),
        learning_rate=0.0,
        verify_freeze=False,
        **EVERY_SECOND_STEP,
    )
    made.train()
    assert stages(made) == [0] * 4 + [1] * 8
