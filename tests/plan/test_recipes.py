"""Plans that have a name: by function, and by the text that the command line has."""

import inspect
import re

import pytest
from transformers import BartConfig, BartForSequenceClassification, HfArgumentParser

from hf_freeze import FreezePlan, FreezeTrainingArguments, PlanError, recipes
from tests.models import SEQ2SEQ, seeded, tiny_bert, tiny_custom, tiny_resnet

HEAD = {"classifier.weight", "classifier.bias"}


def trains(plan: FreezePlan, model=None) -> list[set[str]]:
    return [set(names) for names in plan.resolve(model or tiny_bert(layers=3)).stages]


def parameters(*prefixes: str) -> set[str]:
    return {name for name, _ in tiny_bert(layers=3).named_parameters() if name.startswith(prefixes)}


EVERYTHING = parameters("")
NORMS = {name for name in EVERYTHING if "LayerNorm" in name}
BIASES = {name for name in EVERYTHING if name.endswith("bias")}
TOP = parameters("bert.encoder.layer.2.", "bert.pooler") | HEAD
# text on the command line -> the same by function, and what trains in its stages on a BERT with three layers
MEANINGS = {
    "linear-probe": (recipes.linear_probe(), [HEAD]),
    "last-layers": (recipes.last_layers(), [TOP]),
    "last-layers:k=2": (
        recipes.last_layers(2),
        [parameters("bert.encoder.layer.1.") | TOP],
    ),
    "last-layers:2": (recipes.last_layers(2), [parameters("bert.encoder.layer.1.") | TOP]),
    "gradual": (
        recipes.gradual(),
        [
            HEAD,
            TOP,
            TOP | parameters("bert.encoder.layer.1."),
            EVERYTHING - parameters("bert.embeddings"),
            EVERYTHING,
        ],
    ),
    "gradual:layers_per_stage=2,every_epochs=0.5": (
        recipes.gradual(every_epochs=0.5, layers_per_stage=2),
        [HEAD, TOP | parameters("bert.encoder.layer.1."), EVERYTHING - parameters("bert.embeddings"), EVERYTHING],
    ),
    "lp-ft": (recipes.lp_ft(), [HEAD, EVERYTHING]),
    "gradual:0.5,layers_per_stage=2": (
        recipes.gradual(every_epochs=0.5, layers_per_stage=2),
        [HEAD, TOP | parameters("bert.encoder.layer.1."), EVERYTHING - parameters("bert.embeddings"), EVERYTHING],
    ),
    "lp-ft:probe=0.2": (recipes.lp_ft(probe=0.2), [HEAD, EVERYTHING]),
    "fine-tune": (recipes.fine_tune(), [HEAD, EVERYTHING]),
    "fine-tune:freeze_epochs=2,spread=10": (recipes.fine_tune(freeze_epochs=2, spread=10), [HEAD, EVERYTHING]),
    "rotate": (recipes.rotate(), [HEAD | parameters("bert.encoder.layer.")]),
    "auto-freeze": (
        recipes.auto_freeze(),
        [EVERYTHING, EVERYTHING - parameters("bert.embeddings", "bert.encoder.layer.0."), TOP],
    ),
    "norms-only": (recipes.norms_only(), [NORMS | HEAD]),
    "biases-only": (recipes.biases_only(), [BIASES | HEAD]),
    "full": (recipes.full(), [EVERYTHING]),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_recipe_by_name_is_that_by_function_and_trains_what_it_says(text):
    by_function, stages = MEANINGS[text]
    assert recipes.recipe(text) == by_function
    assert trains(by_function) == stages


def test_every_recipe_is_held_to_its_meaning():
    assert {text.partition(":")[0] for text in MEANINGS} == recipes.RECIPES.keys()
    functions = {name.replace("-", "_") for name in recipes.RECIPES}
    public = {name for name, value in vars(recipes).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert functions == public - {"recipe", "names_a_recipe"}


def test_the_times_of_a_recipe_are_its_options():
    gradual = recipes.gradual(every_epochs=0.5).resolve(tiny_bert(layers=3)).timed
    assert [stage.when for stage in gradual] == ["epoch 0.5", "epoch 1", "epoch 1.5", "epoch 2"]
    (everything,) = recipes.lp_ft(probe=0.2).resolve(tiny_bert()).timed
    assert everything.when == "fraction 0.2"


@pytest.mark.parametrize("text", MEANINGS)
def test_a_recipe_survives_its_dict(text):
    plan = recipes.recipe(text)
    assert FreezePlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_a_flag_of_the_command_line_with_dashes_or_underscores(tmp_path, name):
    parser = HfArgumentParser(FreezeTrainingArguments)
    for spelling in (name, name.replace("-", "_")):
        (args,) = parser.parse_args_into_dataclasses(
            ["--output_dir", str(tmp_path), "--use_cpu", "--freeze_recipe", spelling]
        )
        assert args.freeze_plan() == recipes.RECIPES[name]()


def test_gradual_goes_down_both_stacks_of_an_encoder_and_decoder_at_once():
    config = BartConfig(**SEQ2SEQ, encoder_layers=2, decoder_layers=3, max_position_embeddings=32)
    stages = trains(recipes.gradual(), seeded(BartForSequenceClassification, config))
    thawed = [stages[index] - stages[index - 1] for index in (1, 2, 3)]
    layers = [{layer[0] for name in names if (layer := re.match(r"model\.\w+\.layers\.\d", name))} for names in thawed]
    assert layers == [
        {"model.encoder.layers.1", "model.decoder.layers.2"},
        {"model.encoder.layers.0", "model.decoder.layers.1"},
        {"model.decoder.layers.0"},
    ]


@pytest.mark.parametrize("model", [tiny_custom, tiny_resnet])
def test_recipes_mean_something_for_other_models_too(model):
    for make in recipes.RECIPES.values():
        resolved = make().resolve(model())
        assert resolved.ever_trainable


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gradul", r"'gradul' is not a recipe. Nearest: 'gradual'. The recipes are linear-probe, last-layers, gradual"),
        ("gradual:evry=1", r"'evry' is not an option; 'gradual' has the options every_epochs, layers_per_stage"),
        ("full:k=1", r"'k' is not an option; 'full' has no options"),
        ("full:2", r"'2' is not an option; 'full' has no options"),
        ("last-layers:2,3", r"'3' is not an option; 'last-layers' has the options k"),
        ("last-layers:2,k=3", r"'k' is given twice; 'last-layers' has the options k"),
        ("last-layers:two", r"'two' is not option=number.*has the options k"),
        ("last-layers:k=", r"'k=' is not option=number"),
        ("gradual:every_epochs=[1", r"'every_epochs=\[1' is not option=number.*has the options every_epochs"),
        ("last-layers:k=two", r"'k=two' is not option=number"),
        ("last-layers:k=true", r"'k=true' is not option=number"),
        ("last-layers:k=0", r"k=0.*at least 1.*linear_probe"),
        ("last-layers:k=1.5", r"k=1.5.*whole number"),
        ("gradual:every_epochs=0", "every_epochs must be above 0"),
        ("gradual:every_epochs=nan", "every_epochs must be above 0"),
        ("gradual:layers_per_stage=1.5", "layers_per_stage.*whole number"),
        ("lp-ft:probe=1", "a fraction must be between 0 and 1"),
        ("lp-ft:probe=nan", "a fraction must be between 0 and 1"),
        ("lp-ft:head=0", r"lr_factors\['head'\]=0.*above 0"),
        ("fine-tune:spread=0.5", "lr_spread=0.5.*at least 1"),
        ("fine-tune:spread=inf", "lr_spread=inf.*at least 1"),
        ("", "'' is not a recipe"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_an_error_that_says_what_can(text, message):
    with pytest.raises(PlanError, match=message):
        recipes.recipe(text)


def test_a_recipe_beside_another_declaration_is_refused(tmp_path):
    args = FreezeTrainingArguments(str(tmp_path), use_cpu=True, freeze_recipe="full", trainable=["head"])
    with pytest.raises(PlanError, match="whole plan; drop trainable"):
        args.freeze_plan()
