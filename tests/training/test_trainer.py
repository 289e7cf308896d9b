"""FreezeTrainer and FreezeTrainerMixin: what moves, what is logged, what is refused."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_freeze import (
    FreezeArguments,
    FreezeCallback,
    FreezeError,
    FreezePlan,
    FreezeTrainer,
    FreezeTrainerMixin,
    FreezeTrainingArguments,
    PlanError,
    SelectionError,
    UnsupportedSetupError,
    freeze,
)
from tests.models import (
    image_rows,
    text_batch,
    text_rows,
    tiny_bart,
    tiny_bert,
    tiny_custom,
    tiny_resnet,
    tiny_t5,
    tiny_vit,
)
from tests.nearness import assert_near
from tests.training.runs import (
    Recorder,
    arguments,
    forward_calls,
    freeze_trainer,
    moved,
    names,
    training_logs,
    weights,
)

HEAD = {"classifier.weight", "classifier.bias"}


# What moves and what does not


@pytest.mark.parametrize(
    "declared",
    [
        {"freeze": ["backbone"]},
        {"trainable": ["head"]},
        {"freeze": ["all", "!head"]},
        {"freeze_plan": FreezePlan(trainable="classifier")},
        {"freeze_plan": FreezePlan(freeze="bert")},
    ],
    ids=str,
)
def test_exactly_what_the_plan_leaves_trainable_moves(tmp_path, declared):
    model = tiny_bert()
    before = weights(model)
    freeze_trainer(model, tmp_path, **declared).train()
    assert moved(before, model) == HEAD


def test_without_a_plan_everything_trains(tmp_path):
    model = tiny_bert()
    before = weights(model)
    freeze_trainer(model, tmp_path).train()
    assert names(model, "") <= moved(before, model)


def test_frozen_weights_have_no_optimizer_state_and_no_gradient(tmp_path):
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, trainable=["head", "layers[-1]"])
    seen = []

    class LookAtGradients(hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            seen.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})

    trainer.add_callback(LookAtGradients())
    trainer.train()
    trained = names(model, "classifier", "bert.encoder.layer.1.")
    assert seen == [trained] * 3
    by_name = dict(model.named_parameters())
    optimizer = trainer.optimizer.optimizer
    assert {id(parameter) for parameter in optimizer.state} == {id(by_name[name]) for name in trained}
    assert {name for name, parameter in by_name.items() if parameter.requires_grad} == trained


def test_weight_decay_does_not_move_frozen_weights(tmp_path):
    model = tiny_bert()
    before = weights(model)
    freeze_trainer(model, tmp_path, trainable=["head"], weight_decay=0.5).train()
    assert moved(before, model) == HEAD


def test_the_bare_module_of_a_user_is_frozen_by_path(tmp_path):
    model = tiny_custom()
    before = weights(model)
    freeze_trainer(model, tmp_path, freeze=["backbone"]).train()
    assert moved(before, model) == {"out.weight", "out.bias"}


def test_training_twice_goes_on_from_where_it_stopped(tmp_path):
    model = tiny_bert()
    before = weights(model)
    trainer = freeze_trainer(model, tmp_path, trainable=["head"])
    trainer.train()
    between = weights(model)
    trainer.train()
    assert moved(before, model) == HEAD
    assert moved(between, model) == HEAD


def test_model_init_builds_a_model_that_is_frozen_again(tmp_path):
    built = []

    def model_init():
        built.append(tiny_bert(seed=1))
        return built[-1]

    trainer = freeze_trainer(None, tmp_path, model_init=model_init, trainable=["head"])
    trainer.train()
    trainer.train()
    assert len(built) == 3
    before = weights(tiny_bert(seed=1))
    assert [moved(before, model) for model in built] == [set(), HEAD, HEAD]
    assert trainer.model is built[-1]


def test_evaluate_and_predict_work_and_leave_the_model_alone(tmp_path):
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, trainable=["head"], eval_dataset=text_rows(6), eval_strategy="epoch")
    before = weights(model)
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(text_rows(6)).predictions.shape == (6, 2)
    assert moved(before, model) == set()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(text_rows(6)).predictions.shape == (6, 2)


def test_args_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = FreezeTrainer(tiny_bert(), freeze_plan=FreezePlan(trainable="head"), train_dataset=text_rows())
    assert trainer.args.output_dir.endswith("tmp_trainer")
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trainable == HEAD


def test_plain_training_arguments_take_the_plan_from_freeze_plan(tmp_path):
    model = tiny_bert()
    before = weights(model)
    args = arguments(tmp_path, TrainingArguments)
    FreezeTrainer(model, args, train_dataset=text_rows(), freeze_plan=FreezePlan(trainable="head")).train()
    assert moved(before, model) == HEAD


def test_the_trainers_own_arguments_pass_through_by_position_too(tmp_path):
    rows = text_rows(8)
    collator = hf.default_data_collator
    trainer = FreezeTrainer(tiny_bert(), arguments(tmp_path, trainable=["head"]), collator, rows, rows)
    assert (trainer.data_collator, trainer.train_dataset, trainer.eval_dataset) == (collator, rows, rows)


def test_auto_find_batch_size_starts_over_with_the_same_frozen_part(tmp_path):
    model = tiny_bert()
    before = weights(model)
    sizes = []

    class OutOfMemoryAtFirst(FreezeTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            sizes.append(len(inputs["labels"]))
            if len(sizes) == 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    freeze_trainer(
        model, tmp_path, trainer=OutOfMemoryAtFirst, trainable=["head"], auto_find_batch_size=True, verify_freeze=True
    ).train()
    assert max(sizes[2:]) < 4
    assert moved(before, model) == HEAD


def test_hyperparameter_search_freezes_every_trial(tmp_path, monkeypatch):
    """What the search backends do: `train(trial=...)`, which sets arguments and calls `model_init` anew."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer = freeze_trainer(None, tmp_path, model_init=lambda trial: tiny_bert(), trainable=["head"])
    trainer.hp_search_backend = hf.trainer_utils.HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: trial.params
    before = weights(tiny_bert())
    for number, rate in enumerate((0.01, 0.02)):
        trainer.train(trial=SimpleNamespace(number=number, params={"learning_rate": rate}))
        assert moved(before, trainer.model) == HEAD
        assert training_logs(trainer)[0]["lr/trainable"] == rate


# Logs


def test_every_group_rate_the_stage_and_the_trainable_count_are_logged(tmp_path):
    recorder = Recorder()
    trainer = freeze_trainer(
        tiny_bert(),
        tmp_path,
        trainable=["head", "layers[-1]"],
        group_lrs={"head": 0.02},
        layer_lr_decay=0.5,
        lr_scheduler_type="linear",
        callbacks=[recorder],
    )
    trainer.train()
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert set(groups) == {"head", "head.no_decay", "layers.1", "layers.1.no_decay"}
    logs = training_logs(trainer)
    assert [entry["lr/head"] for entry in logs] == pytest.approx([0.02, 0.02 * 2 / 3, 0.02 / 3])
    assert [entry["lr/layers.1"] for entry in logs] == pytest.approx([0.005, 0.005 * 2 / 3, 0.005 / 3])
    count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    expected = {"lr/head", "lr/layers.1", "stage", "trainable_params"}
    for entry in [*logs, *recorder.seen[:-1]]:
        assert expected <= entry.keys()
        assert not any("no_decay" in name for name in entry)
        assert (entry["stage"], entry["trainable_params"]) == (0, count)


def test_evaluation_logs_stay_as_the_trainer_writes_them(tmp_path):
    trainer = freeze_trainer(
        tiny_bert(), tmp_path, trainable=["head"], eval_dataset=text_rows(4), eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(entries) == 3
    assert not any(key.startswith("lr/") for entry in entries for key in entry)


# Mixed into other trainers


@dataclass
class Seq2SeqFreezeArguments(FreezeArguments, Seq2SeqTrainingArguments):
    """What the docstring of FreezeArguments promises."""


class FreezeSeq2SeqTrainer(FreezeTrainerMixin, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize(
    ("build", "encoder", "decoder"),
    [(tiny_t5, "encoder.block", "decoder.block"), (tiny_bart, "model.encoder.layers", "model.decoder.layers")],
    ids=["t5", "bart"],
)
def test_mixed_into_seq2seq_trainer_it_freezes_the_encoder_and_evaluates_by_generating(
    tmp_path, build, encoder, decoder
):
    model = build(layers=2, decoder_layers=2)
    before = weights(model)
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:5]} for row in text_rows(8)]
    args = arguments(tmp_path, Seq2SeqFreezeArguments, freeze=[encoder], predict_with_generate=True)
    generated = []
    trainer = FreezeSeq2SeqTrainer(
        model,
        args,
        train_dataset=rows,
        eval_dataset=rows[:4],
        compute_metrics=lambda prediction: generated.append(prediction.predictions) or {},
    )
    trainer.train()
    changed = moved(before, model)
    assert not changed & names(model, encoder)
    assert names(model, decoder) <= changed
    assert trainer.evaluate(max_new_tokens=4)["eval_loss"] > 0
    assert generated[0].ndim == 2  # tokens, not logits


class WeightedTrainer(Trainer):
    """What a user wrote: its own loss over class weights."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs["logits"], labels, weight=torch.tensor([1.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class MixedInFront(FreezeTrainerMixin, WeightedTrainer):
    pass


class OverridesIt(FreezeTrainer):
    compute_loss = WeightedTrainer.compute_loss


@pytest.mark.parametrize("trainer", [MixedInFront, OverridesIt])
def test_a_users_own_loss_is_what_trains(tmp_path, trainer):
    model, reference = tiny_bert(), tiny_bert()
    before = weights(model)
    run = freeze_trainer(model, tmp_path, trainer=trainer, trainable=["head"], seed=1, eval_dataset=text_rows(4))
    run.train()
    assert moved(before, model) == HEAD
    reference.bert.requires_grad_(False)
    plain = WeightedTrainer(reference, arguments(tmp_path, TrainingArguments, seed=1), train_dataset=text_rows())
    plain_bert_eval = reference.bert.train
    reference.bert.train = lambda mode=True: plain_bert_eval(False)
    plain.train()
    assert torch.equal(model.classifier.weight, reference.classifier.weight)
    assert run.evaluate()["eval_loss"] > 0


# Frozen modules are in eval mode


def test_frozen_batchnorm_statistics_stand_still(tmp_path):
    model = tiny_resnet()
    before = weights(model)
    freeze_trainer(model, tmp_path, rows=image_rows(8), trainable=["head"]).train()
    assert moved(before, model) == {"classifier.1.weight", "classifier.1.bias"}


def test_batchnorm_statistics_move_without_frozen_eval(tmp_path):
    model = tiny_resnet()
    before = weights(model)
    freeze_trainer(model, tmp_path, rows=image_rows(8), trainable=["head"], frozen_eval=False).train()
    assert any(name.endswith("running_mean") for name in moved(before, model))


def test_trainable_batchnorm_next_to_a_frozen_stage_still_adapts(tmp_path):
    model = tiny_resnet()
    before = weights(model)
    freeze_trainer(model, tmp_path, rows=image_rows(8), freeze=["resnet.embedder", "resnet.encoder.stages.0"]).train()
    buffers = {name for name in moved(before, model) if "running" in name}
    assert buffers
    assert all(name.startswith("resnet.encoder.stages.1") for name in buffers)


@pytest.mark.parametrize("frozen_eval", [True, False])
def test_dropout_is_off_in_the_frozen_part_and_on_in_the_rest(tmp_path, frozen_eval):
    model = tiny_bert(hidden_dropout_prob=0.5)
    row = text_rows(1)
    trainer = freeze_trainer(
        model, tmp_path, rows=row * 4, per_device_train_batch_size=1, trainable=["head"], frozen_eval=frozen_eval
    )
    with forward_calls(model.bert.pooler) as pooled, forward_calls(model.dropout) as dropout:
        trainer.train()
    assert all(torch.equal(output, pooled[0][1]) for _, output in pooled) == frozen_eval
    assert any((output == 0).any() for _, output in dropout)


def test_after_training_the_models_train_mode_is_its_own_again(tmp_path):
    model = tiny_bert()
    freeze_trainer(model, tmp_path, trainable=["head"]).train()
    model.train()
    assert all(module.training for module in model.modules())


def test_after_a_crash_the_models_train_mode_is_its_own_again(tmp_path):
    model = tiny_bert()

    class Crash(hf.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        freeze_trainer(model, tmp_path, trainable=["head"], callbacks=[Crash()]).train()
    model.train()
    assert all(module.training for module in model.modules())


def test_neftune_noise_reaches_the_trainable_layers_over_frozen_embeddings(tmp_path):
    """The noise is a hook that looks at the train flag of the embedding, which frozen_eval would switch off."""
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = freeze_trainer(
        model,
        tmp_path,
        rows=text_rows(1) * 4,
        per_device_train_batch_size=1,
        freeze=["embeddings"],
        neftune_noise_alpha=5.0,
    )
    before = weights(model)
    with forward_calls(model.bert.embeddings) as calls:
        trainer.train()
    assert not torch.equal(calls[0][1], calls[1][1])
    assert not any(name.startswith("bert.embeddings") for name in moved(before, model))


# Gradient checkpointing


CHECKPOINTING = {
    "none": {},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "not reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}


def _trained_with(mode, tmp_path, build, rows, **declared):
    model = build()
    freeze_trainer(model, tmp_path, rows=rows, optim="sgd", **declared, **CHECKPOINTING[mode]).train()
    return weights(model)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("mode", ["reentrant", "not reentrant"])
@pytest.mark.parametrize(
    ("build", "rows"), [(tiny_bert, text_rows()), (tiny_vit, image_rows())], ids=["text", "images"]
)
@pytest.mark.parametrize("declared", [{"freeze": ["embeddings"]}, {"trainable": ["head", "layers[-1]"]}], ids=str)
def test_gradient_checkpointing_over_frozen_embeddings_trains_what_it_trains_without(
    tmp_path, mode, build, rows, declared
):
    build = {tiny_bert: _bert_without_dropout, tiny_vit: _vit_without_dropout}[build]
    plain = _trained_with("none", tmp_path, build, rows, **declared)
    checkpointed = _trained_with(mode, tmp_path, build, rows, **declared)
    assert_near(checkpointed, plain)


def _bert_without_dropout():
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def _vit_without_dropout():
    return tiny_vit(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


# A model that changes after the trainer was built


@pytest.mark.filterwarnings("ignore:The new embeddings will be initialized:UserWarning")
@pytest.mark.parametrize("declared", [{"freeze": ["embeddings"]}, {"freeze": ["layers"]}], ids=str)
def test_resizing_the_embeddings_after_the_trainer_was_built_keeps_the_plan(tmp_path, declared):
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, **declared)
    model.resize_token_embeddings(100)
    before = weights(model)
    trainer.train()
    embedding = "bert.embeddings.word_embeddings.weight"
    assert (embedding in moved(before, model)) == (declared == {"freeze": ["layers"]})
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert training_logs(trainer)[0]["trainable_params"] == trainable


# Bad input


def _integer_model():
    model = tiny_custom()
    model.codes = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    return model


def _half_bert():
    return tiny_bert().half()


FSDP1 = {"fsdp": "full_shard", "fsdp_config": {"use_orig_params": False, "version": 1}}

BAD_INPUT = {
    "misspelt": (tiny_bert, {"freeze": ["clasifier"]}, SelectionError, "'clasifier' matches none.*'classifier'"),
    "both": (tiny_bert, {"freeze": ["bert"], "trainable": ["head"]}, PlanError, "exactly one of freeze= and trainable"),
    "index": (tiny_bert, {"trainable": ["layers[7]"]}, SelectionError, r"layers\[7\]"),
    "two stacks": (tiny_t5, {"trainable": ["layers[-1]"]}, SelectionError, r"encoder\..*decoder\."),
    "nothing": (tiny_bert, {"freeze": ["all"]}, PlanError, "Nothing would train"),
    "integers": (_integer_model, {"trainable": ["codes", "out"]}, UnsupportedSetupError, "'codes'.*integers"),
    "fp16": (_half_bert, {"trainable": ["head"], "fp16": True}, UnsupportedSetupError, "float16.*fp16=True"),
    "flat": (tiny_bert, {"trainable": ["head"], **FSDP1}, UnsupportedSetupError, "use_orig_params=False"),
    "layerwise": (
        tiny_bert,
        {"trainable": ["head"], "optim": "galore_adamw_layerwise", "optim_target_modules": ["query"]},
        UnsupportedSetupError,
        "galore_adamw_layerwise.*steps each parameter inside backward",
    ),
    "misspelt group": (
        tiny_bert,
        {"trainable": ["head"], "group_lrs": {"hed": 0.1}},
        SelectionError,
        "'hed' matches none",
    ),
    "frozen group": (
        tiny_bert,
        {"trainable": ["head"], "group_lrs": {"layers": 0.1}},
        PlanError,
        "matches nothing that the plan ever trains",
    ),
    "group twice": (
        tiny_bert,
        {"group_lrs": {"head": 0.1, "classifier.bias": 0.2}},
        PlanError,
        "'classifier.bias' is matched twice",
    ),
    "decay": (tiny_bert, {"layer_lr_decay": 1.5}, PlanError, "layer_lr_decay=1.5"),
    "callback": (tiny_bert, {"callbacks": [FreezeCallback(FreezePlan(trainable="head"))]}, PlanError, "its own"),
    "two plans": (
        tiny_bert,
        {"trainable": ["head"], "freeze_plan": FreezePlan(freeze="backbone")},
        PlanError,
        "Two plans",
    ),
}


@pytest.mark.parametrize("by_model_init", [False, True], ids=["model", "model_init"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_the_output_folder_exists(tmp_path, case, by_model_init):
    build, overrides, error, message = BAD_INPUT[case]
    model = {"model": None, "model_init": lambda: build()} if by_model_init else {"model": build()}
    with pytest.raises(error, match=f"(?s){message}"):
        freeze_trainer(**model, folder=tmp_path, **overrides)
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_the_optimizer_has_not_is_refused_before_the_first_step(tmp_path):
    trainer = freeze_trainer(tiny_bert(), tmp_path, group_lrs={"head": {"lr": 0.1, "momentun": 0.9}}, optim="sgd")
    with pytest.raises(PlanError, match="'momentun' is not an option of SGD.*momentum"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not any((tmp_path / "run").iterdir())


def test_freeze_arguments_read_group_lrs_as_json_from_the_command_line(tmp_path):
    parser = hf.HfArgumentParser(FreezeTrainingArguments)
    flags = ["--trainable", "head", "layers[-1]", "--group_lrs", '{"head": 0.5}', "--use_cpu", "--output_dir"]
    (args,) = parser.parse_args_into_dataclasses([*flags, str(tmp_path)])
    assert args.trainable == ["head", "layers[-1]"]
    assert args.rates_by_selection == {"head": 0.5}


def test_one_sample_goes_through_the_trained_model(tmp_path):
    model = tiny_bert()
    freeze_trainer(model, tmp_path, trainable=["head"]).train()
    with torch.no_grad():
        assert model(**text_batch(1)).logits.shape == (1, 2)


def test_without_a_plan_what_is_frozen_after_construction_stays_frozen(tmp_path):
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path)
    before = weights(model)
    model.bert.requires_grad_(False)
    trainer.train()
    assert moved(before, model) == HEAD


def test_without_a_plan_each_model_of_model_init_trains_what_requires_gradients_in_it(tmp_path):
    layers = iter([3, 2, 4])

    def model_init():
        model = tiny_bert(layers=next(layers))
        model.bert.embeddings.requires_grad_(False)
        return model

    trainer = freeze_trainer(None, tmp_path, model_init=model_init)
    for _ in range(2):
        trainer.train()
        trains = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        assert trains == names(trainer.model, "bert.encoder", "bert.pooler", "classifier")


def test_without_a_plan_what_was_frozen_before_stays_frozen(tmp_path):
    model = tiny_bert()
    freeze(model, "backbone")
    before = weights(model)
    trainer = freeze_trainer(model, tmp_path)
    trainer.train()
    assert moved(before, model) == HEAD


def test_training_on_no_rows_is_refused_with_the_reason(tmp_path):
    with pytest.raises(FreezeError, match="train_dataset has no rows"):
        freeze_trainer(tiny_bert(), tmp_path, rows=[], trainable=["head"]).train()
