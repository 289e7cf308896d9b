"""freeze and unfreeze on models in hand: names returned, gradients dropped, eval mode held."""

import copy
import io
import json
import logging
import pickle
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn

from hf_freeze import FreezePlan, SelectionError, UnsupportedSetupError, freeze, trainable_summary, unfreeze
from hf_freeze.selection.model_map import map_model
from hf_freeze.training.freezing import frozen_modules, hold_eval, plan_as_it_is, release_eval, set_trainable
from tests.models import image_rows, text_batch, tiny_bert, tiny_gpt2_lm, tiny_resnet

HEAD = ["classifier.weight", "classifier.bias"]


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def named(model, prefix):
    return [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{prefix}.")]


# --- freeze and unfreeze ----------------------------------------------------------------------------------------------


def test_freeze_returns_the_names_that_changed_and_unfreeze_brings_them_back():
    model = tiny_bert()
    frozen = freeze(model, ["backbone", "!pooler"])
    assert frozen == [name for name in named(model, "bert") if not name.startswith("bert.pooler")]
    assert trainable(model) == [*named(model, "bert.pooler"), *HEAD]
    assert unfreeze(model, "backbone") == frozen
    assert trainable(model) == [name for name, _ in model.named_parameters()]


def test_freezing_twice_changes_nothing_the_second_time():
    model = tiny_bert()
    assert freeze(model, "head") == HEAD
    assert freeze(model, "head") == []
    assert unfreeze(model) == HEAD
    assert unfreeze(model) == []


def test_all_is_the_default():
    model = tiny_bert()
    assert len(freeze(model)) == 41
    assert trainable(model) == []
    assert len(unfreeze(model)) == 41


def test_frozen_weights_stand_still_and_the_others_move():
    model = tiny_bert()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    freeze(model, "backbone")
    model(**text_batch()).loss.backward()
    optimizer.step()
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == HEAD


def test_a_stale_gradient_is_dropped_so_that_it_cannot_move_a_frozen_weight():
    model = tiny_bert()
    model(**text_batch()).loss.backward()
    before = model.bert.pooler.dense.weight.detach().clone()
    freeze(model, "pooler")
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert model.bert.pooler.dense.weight.grad is None
    assert torch.equal(model.bert.pooler.dense.weight, before)
    assert model.classifier.weight.grad is not None


def test_a_gradient_is_dropped_even_where_somebody_else_had_frozen_the_weight():
    model = tiny_bert()
    model(**text_batch()).loss.backward()
    model.classifier.requires_grad_(False)
    assert freeze(model, "head") == []
    assert model.classifier.weight.grad is None


@pytest.mark.parametrize("alias", ["transformer.wte", "lm_head"])
def test_a_tied_weight_is_frozen_under_either_name_and_both_are_returned(alias):
    model = tiny_gpt2_lm()
    both = ["transformer.wte.weight", "lm_head.weight"]
    assert freeze(model, alias) == both
    assert not model.lm_head.weight.requires_grad
    assert unfreeze(model, "transformer.wte") == both


def test_what_changed_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="hf_freeze"):
        model = tiny_bert()
        freeze(model, "head")
        unfreeze(model, ["head"])
    assert caplog.messages == [
        "freeze('head') froze 2 parameters: classifier.weight, classifier.bias",
        "unfreeze(['head']) unfroze 2 parameters: classifier.weight, classifier.bias",
    ]


@pytest.mark.parametrize("verb", [freeze, unfreeze])
def test_what_matches_nothing_is_an_error_and_changes_nothing(verb):
    model = tiny_bert()
    with pytest.raises(SelectionError, match="Nearest: 'classifier'"):
        verb(model, ["all", "clasifier"])
    assert len(trainable(model)) == 41


def test_what_was_frozen_before_stays_frozen_unless_it_is_named():
    model = tiny_bert()
    model.bert.pooler.requires_grad_(False)
    freeze(model)
    assert len(unfreeze(model, "all")) == 39
    assert unfreeze(model, "backbone") == []
    assert unfreeze(model, "bert.pooler") == named(model, "bert.pooler")


def test_what_hf_freeze_froze_thaws_by_role():
    model = tiny_bert()
    freeze(model, "backbone")
    assert unfreeze(model, "norms") == [name for name in named(model, "bert") if "LayerNorm" in name]
    assert unfreeze(model, "layers") == [name for name in named(model, "bert.encoder") if "LayerNorm" not in name]


def test_integers_are_frozen_already_and_cannot_be_thawed_by_name():
    model = tiny_bert()
    model.classifier.packed = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert freeze(model, "head") == unfreeze(model, "all") == HEAD
    with pytest.raises(UnsupportedSetupError, match="integers"):
        unfreeze(model, "classifier")


# --- who froze it -----------------------------------------------------------------------------------------------------


def round_trip(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, round_trip, lambda model: model.double()])
def test_what_hf_freeze_froze_is_known_in_a_copy(copied):
    model = tiny_bert()
    model.bert.pooler.requires_grad_(False)
    freeze(model, "backbone")
    twin = copied(model)
    assert len(unfreeze(twin, "backbone")) == 37
    assert not twin.bert.pooler.dense.weight.requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_stay_frozen_and_thaw_by_role(tied):
    model = tiny_gpt2_lm(tie_word_embeddings=tied)
    frozen = freeze(model, ["embeddings", "lm_head"])
    model.resize_token_embeddings(80)
    assert not set(frozen) & set(trainable(model))
    assert model.lm_head.weight.shape[0] == 80
    assert unfreeze(model, ["embeddings", "all"]) == frozen


def test_what_thawed_and_was_frozen_by_another_is_not_taken_for_ours():
    model = tiny_bert()
    freeze(model, "head")
    unfreeze(model, "head")
    model.classifier.requires_grad_(False)
    assert unfreeze(model) == []


def test_a_parametrization_may_take_a_frozen_name_away():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    freeze(model, "0")
    nn.utils.parametrizations.weight_norm(model[0])
    assert "0.bias" in unfreeze(model)
    assert map_model(model).frozen_at_hand_in <= {name for name, _ in model.named_parameters()}


def test_the_marks_are_no_part_of_the_weights():
    model = tiny_bert()
    keys = list(model.state_dict())
    freeze(model)
    assert list(model.state_dict()) == keys


# --- exactly these ----------------------------------------------------------------------------------------------------


def test_set_trainable_makes_exactly_these_trainable_and_says_what_thawed_and_what_froze():
    model = tiny_bert()
    everything = trainable(model)
    assert set_trainable(model, HEAD) == ([], everything[:-2])
    assert trainable(model) == HEAD
    assert set_trainable(model, HEAD) == ([], [])
    pooler = named(model, "bert.pooler")
    assert set_trainable(model, pooler) == (pooler, HEAD)
    assert trainable(model) == pooler
    assert unfreeze(model, "head") == HEAD  # frozen by us


@pytest.mark.parametrize("alias", ["transformer.wte.weight", "lm_head.weight"])
def test_set_trainable_takes_a_tied_weight_by_either_name(alias):
    model = tiny_gpt2_lm()
    both = ["transformer.wte.weight", "lm_head.weight"]
    set_trainable(model, [])
    assert set_trainable(model, [alias]) == (both, [])
    assert model.lm_head.weight.requires_grad
    assert set_trainable(model, [alias]) == ([], [])
    assert set_trainable(model, both[:1]) == set_trainable(model, both) == ([], [])


# --- eval mode --------------------------------------------------------------------------------------------------------


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def images():
    return torch.stack([row["pixel_values"] for row in image_rows(4)])


def test_batch_norm_statistics_of_the_frozen_part_stand_still_and_the_others_follow_the_data():
    model = tiny_resnet()
    freeze(model, ["all", "!head", "!layers[-1]"])
    hold_eval(model)
    model.train()
    before = statistics(model)
    model(pixel_values=images())
    moved = {name for name, value in statistics(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("resnet.encoder.stages.1.layers.1.")}

    release_eval(model)
    model.train()
    model(pixel_values=images())
    assert all(not torch.equal(value, before[name]) for name, value in statistics(model).items())


def test_dropout_of_the_frozen_part_is_off_and_that_of_the_rest_is_on():
    model = tiny_bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    freeze(model, "backbone")
    hold_eval(model)
    model.train()
    batch = text_batch()
    batch.pop("labels")
    features = [model.bert(**batch).pooler_output for _ in range(2)]
    assert torch.equal(*features)
    assert not torch.equal(*(model(**batch).logits for _ in range(2)))


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def test_whatever_calls_train_and_eval_the_frozen_part_stays_in_eval():
    model = tiny_bert()
    freeze(model, "bert.encoder")
    model.train()
    hold_eval(model)
    assert modes(model)["bert.encoder.layer.1.output.dropout"] is False  # at once, not from the next call on
    for _ in range(2):
        assert model.train() is model
        inside = {name: mode for name, mode in modes(model).items() if name.startswith("bert.encoder")}
        assert not any(inside.values())
        assert all(mode for name, mode in modes(model).items() if name not in inside)
        assert model.eval() is model
        assert not any(modes(model).values())
    model.train(mode=True)
    assert model.training
    assert not model.bert.encoder.training


def test_a_wrapper_that_calls_train_on_its_child_does_not_wake_the_frozen_part():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = tiny_bert()
    freeze(model, "backbone")
    hold_eval(model)
    Wrapper(Wrapper(model)).train()
    torch.compile(model, backend="eager").train()
    assert model.training
    assert not model.bert.training


def test_release_gives_the_models_own_train_back():
    model = tiny_bert()
    freeze(model, "backbone")
    hold_eval(model)
    release_eval(model)
    release_eval(model)
    model.train()
    assert all(modes(model).values())
    assert "train" not in vars(model)


def test_holding_again_follows_what_is_frozen_now():
    model = tiny_bert()
    freeze(model, "backbone")
    hold_eval(model)
    unfreeze(model, "layers[-1]")
    hold_eval(model)
    model.train()
    assert model.bert.encoder.layer[1].training
    assert not model.bert.encoder.layer[0].training
    release_eval(model)
    assert "train" not in vars(model)


def test_a_models_own_train_is_called():
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    model = Counting()
    freeze(model, "body")
    hold_eval(model)
    model.train()
    assert model.calls == 1
    assert model.head.training
    assert not model.body.training


@pytest.mark.parametrize("copied", [copy.deepcopy, round_trip, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_held_model_is_a_plain_model(copied):
    model = tiny_bert()
    freeze(model, "backbone")
    hold_eval(model)
    twin = copied(copied(model))

    twin.eval()
    twin.train()
    assert all(module.training for module in twin.modules())
    assert not any(module.training for module in model.bert.modules())  # the original is left alone


def own_train(model, mode=True):
    type(model).train(model, mode)
    model.classifier.eval()
    return model


@pytest.mark.parametrize("copied", [None, copy.deepcopy, round_trip, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_train_method_of_the_instance_is_called_while_held_and_is_there_afterwards_and_in_copies(copied):
    model = tiny_bert()
    freeze(model, "backbone")
    model.train = partial(own_train, model)
    hold_eval(model)
    hold_eval(model)  # as at every new stage
    assert model.train() is model
    assert not model.bert.training
    assert not model.classifier.training
    if copied:
        model = copied(model)
    else:
        release_eval(model)
    model.train()
    assert model.bert.encoder.layer[0].training
    assert not model.classifier.training


def test_a_train_method_put_on_a_module_inside_is_called_while_held():
    model = tiny_bert()
    freeze(model, "embeddings")
    model.bert.encoder.layer[1].train = lambda mode=True: nn.Module.train(model.bert.encoder.layer[1], False)
    hold_eval(model)
    model.train()
    model.bert.encoder.layer[1].training = True
    model.train()
    assert not model.bert.encoder.layer[1].training


@pytest.mark.parametrize("asked", ["train", "eval"])
def test_a_module_whose_class_does_more_than_set_the_mode_is_asked(asked):
    calls = []

    class Noting(nn.Linear):
        pass

    setattr(Noting, asked, lambda module, *mode: calls.append(mode) or getattr(nn.Linear, asked)(module, *mode))
    model = nn.Sequential(OrderedDict(body=Noting(2, 2), out=nn.Linear(2, 2)))
    freeze(model, "body")
    hold_eval(model)
    calls.clear()
    model.train()
    assert calls
    assert modes(model) == {"": True, "body": False, "out": True}


def test_a_model_that_swaps_kernels_when_its_mode_changes_does_so_while_held(monkeypatch):
    swapped = []
    model = tiny_bert()
    monkeypatch.setattr(type(model), "set_use_kernels", lambda *_: swapped.append(True))
    monkeypatch.setattr(type(model), "use_kernels", True)
    freeze(model, "backbone")
    model.eval()
    swapped.clear()
    hold_eval(model)
    model.train()
    assert swapped
    assert not model.bert.training


def test_release_leaves_a_train_method_that_somebody_put_there_since():
    model = tiny_bert()
    freeze(model, "backbone")
    hold_eval(model)
    theirs = partial(own_train, model)
    model.train = theirs
    release_eval(model)
    assert vars(model)["train"] is theirs


def test_an_embedding_that_adds_noise_while_training_keeps_doing_so():
    model = tiny_bert()
    freeze(model, "backbone")
    model.get_input_embeddings().neftune_noise_alpha = 5.0  # as the Trainer sets it; the hook asks for train mode
    hold_eval(model)
    model.train()
    assert model.get_input_embeddings().training
    assert not model.bert.embeddings.dropout.training
    model.eval()
    assert not model.get_input_embeddings().training


def test_frozen_modules_are_the_largest_that_hold_no_trainable_parameter():
    model = tiny_bert()
    freeze(model, ["embeddings", "layers[0]", "classifier.weight"])
    assert frozen_modules(model) == [model.bert.embeddings, model.bert.encoder.layer[0]]


def test_names_say_what_is_frozen_where_the_flags_do_not():
    model = tiny_gpt2_lm()  # every flag is up, as under DeepSpeed
    hold_eval(model, {"lm_head.weight", *named(model, "transformer.h.1")})
    model.train()
    assert model.transformer.wte.training  # the alias trains
    assert model.transformer.h[1].training
    assert not model.transformer.h[0].training


def test_a_model_with_nothing_frozen_is_left_alone():
    model = tiny_bert()
    hold_eval(model)
    model.train()
    assert all(modes(model).values())


# --- the two mistakes -------------------------------------------------------------------------------------------------


def test_setting_requires_grad_on_a_module_freezes_nothing_and_the_summary_says_so():
    model = tiny_bert()
    model.bert.requires_grad = False
    summary = trainable_summary(model)
    assert summary.trainable == summary.parameters
    assert "bert.requires_grad = ... was set on a module" in str(summary)


def test_setting_a_gradient_to_false_is_refused_by_torch_itself():
    with pytest.raises(TypeError, match="assigned grad"):
        tiny_bert().classifier.weight.grad = False


def test_the_plan_of_a_partly_frozen_model_says_what_trains_whatever_its_modules_are_called():
    model = tiny_bert()
    model.extra = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("q&a", "a b", "!x", "l[0]", "s*r", 'q"t', "re:x")})
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    plan = FreezePlan.from_dict(json.loads(json.dumps(plan_as_it_is(model).to_dict())))
    assert plan.resolve(model).stages == (frozenset(trainable(model)),)
