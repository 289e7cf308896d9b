"""The selection language on a vocabulary of plain text, without any model."""

import re
import warnings
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_freeze.errors import SelectionError
from hf_freeze.selection.language import Specificity, evaluate, parse, quoted
from hf_freeze.selection.vocabulary import ROLES, paths_below


@dataclass(frozen=True)
class Stack:
    path: str
    layers: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Words:
    spellings: dict[str, frozenset[str]]
    roles: dict[str, frozenset[str]]
    stacks: tuple[Stack, ...]
    minor_stacks: tuple[Stack, ...] = ()
    unclear: dict[str, str] = field(default_factory=dict)
    short_spellings: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def below(self):
        return paths_below(self.spellings), paths_below(self.short_spellings)


def words_of(*names, stacks=(), minor_stacks=(), short="", **roles):
    exact = {name: frozenset([name]) for name in names}
    shortened = {name: frozenset([name.removeprefix(short)] if name.startswith(short) else []) for name in names}
    return Words(
        spellings=exact,
        roles={role: frozenset(roles.get(role, ())) for role in ROLES},
        stacks=tuple(stacks),
        minor_stacks=tuple(minor_stacks),
        short_spellings=shortened if short else {},
    )


def stack_of(path, count, *, parameters=("weight", "bias")):
    return Stack(path, tuple(frozenset(f"{path}.{i}.{name}" for name in parameters) for i in range(count)))


ENCODER = stack_of("bert.layer", 12)
LAYERED = sorted(frozenset().union(*ENCODER.layers))
ALL = ["bert.embed.weight", *LAYERED, "bert.pool.weight", "classifier.weight", "classifier.bias"]
BERT = words_of(
    *ALL,
    stacks=[ENCODER],
    short="bert.",
    head=["classifier.weight", "classifier.bias"],
    backbone=[name for name in ALL if name.startswith("bert")],
    embeddings=["bert.embed.weight"],
    layers=LAYERED,
    biases=[name for name in ALL if name.endswith("bias")],
)


def pick(selection, words=BERT):
    return set(evaluate(selection, words).names)


def layers(*indices):
    return {f"bert.layer.{index}.{name}" for index in indices for name in ("weight", "bias")}


# --- terms ------------------------------------------------------------------------------------------------------------


def test_all_is_everything():
    assert pick("all") == set(ALL)


@pytest.mark.parametrize("role", [role for role in ROLES if BERT.roles[role]])
def test_a_role_is_what_the_vocabulary_says(role):
    assert pick(role) == BERT.roles[role]


def test_a_role_that_the_model_lacks_is_an_error_that_names_those_it_has():
    with pytest.raises(SelectionError, match=r"'norms' matches none of the 28 parameters.*head, backbone, embeddings"):
        pick("norms")


def test_a_path_owns_everything_below_it_and_nothing_beside_it():
    assert pick("bert.layer.1") == layers(1)  # not layer.10 and layer.11
    assert pick("classifier") == {"classifier.weight", "classifier.bias"}
    assert pick("classifier.bias") == {"classifier.bias"}


@pytest.mark.parametrize("text", ["bert.lay", "layer.1.weigh", "classifier.", ".classifier", "ert.layer"])
def test_half_a_segment_is_no_path(text):
    with pytest.raises(SelectionError, match=re.escape(repr(text))):
        pick(text)


def test_a_star_stays_inside_one_segment():
    assert pick("bert.layer.*.weight") == {name for name in LAYERED if name.endswith("weight")}
    assert pick("bert.layer.1*") == layers(1, 10, 11)
    assert pick("*.bias") == {"classifier.bias"}
    with pytest.raises(SelectionError, match="matches none"):
        pick("*.weight.*")


def test_a_regular_expression_matches_the_full_name():
    assert pick(r"re:.*\.bias") == BERT.roles["biases"]
    assert pick(r"re:bert\.layer\.(0|11)\..*") == layers(0, 11)
    with pytest.raises(SelectionError, match="matches none"):
        pick(r"re:layer\.1\b.*weigh")
    with pytest.raises(SelectionError, match="matches none"):
        pick("re:classifier")


def test_the_base_models_prefix_may_be_left_out_unless_the_exact_name_exists():
    assert pick("layer.1") == layers(1)
    assert pick(r"re:layer\.1\..*") == layers(1)
    both = words_of("bert.head.weight", "head2.weight", "bert.head2.weight", short="bert.")
    assert pick("head2", both) == {"head2.weight"}


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("0", [0]),
        ("-1", [11]),
        ("-12", [0]),
        (":2", [0, 1]),
        ("-2:", [10, 11]),
        ("::4", [0, 4, 8]),
        (":", range(12)),
        ("0,5,-1", [0, 5, 11]),
        (" 0 , 2:4 ,-1 ", [0, 2, 3, 11]),
        ("10:99", [10, 11]),
        ("::-6", [11, 5]),
        ("3,3", [3]),
    ],
)
def test_layers_take_indices_slices_and_lists_of_them(index, expected):
    assert pick(f"layers[{index}]") == layers(*expected)


@pytest.mark.parametrize("index", ["12", "-13", "0,12"])
def test_an_index_out_of_range_says_how_many_layers_there_are(index):
    with pytest.raises(SelectionError, match=r"out of range: 'bert.layer' has 12 layers, so .* from -12 to 11"):
        pick(f"layers[{index}]")


@pytest.mark.parametrize("index", ["5:5", "12:", "3:1"])
def test_an_empty_slice_is_an_error(index):
    with pytest.raises(SelectionError, match=r"is an empty slice: 'bert.layer' has 12 layers"):
        pick(f"layers[{index}]")


@pytest.mark.parametrize("index", ["", "a", "1.5", "0,", "1:2:3:4", "::0", "[0]", "0;1"])
def test_what_is_no_index_is_an_error_that_shows_the_forms(index):
    with pytest.raises(SelectionError, match=r"is not an index or a slice. Write layers\[0\], layers\[-2:\]"):
        parse(f"layers[{index}]")


# --- stacks -----------------------------------------------------------------------------------------------------------

TWO = [stack_of("model.encoder.blocks", 2), stack_of("model.decoder.blocks", 3)]
CONVOLUTIONS = stack_of("front.convs", 4)
SEQ2SEQ = words_of(
    *sorted(frozenset().union(*(layer for stack in [*TWO, CONVOLUTIONS] for layer in stack.layers))),
    "model.shared.weight",
    stacks=TWO,
    minor_stacks=[CONVOLUTIONS],
    short="model.",
)


def test_layers_of_several_stacks_are_an_error_that_lists_them_and_shows_how_to_say_which():
    with pytest.raises(SelectionError, match=r"'model.encoder.blocks' has 2 layers, 'model.decoder.blocks' has 3") as e:
        pick("layers[-1]", SEQ2SEQ)
    for choice in re.findall(r"Say which: '(\S+)', '(\S+)'", str(e.value))[0]:
        assert pick(choice, SEQ2SEQ)


@pytest.mark.parametrize("path", ["encoder", "model.encoder", "model.encoder.blocks", "enc*", "*.encoder"])
def test_a_path_in_front_chooses_the_stack_inside_it(path):
    assert pick(f"{path}.layers[-1]", SEQ2SEQ) == {"model.encoder.blocks.1.weight", "model.encoder.blocks.1.bias"}


def test_minor_stacks_are_reached_by_their_path_alone():
    assert pick("front.layers[3]", SEQ2SEQ) == {"front.convs.3.weight", "front.convs.3.bias"}
    only_minor = words_of(*CONVOLUTIONS.layers[0], minor_stacks=[CONVOLUTIONS])
    with pytest.raises(SelectionError, match=r"The stacks are: 'front.convs' has 4 layers"):
        pick("layers[0]", only_minor)


def test_a_path_around_several_stacks_is_ambiguous_and_one_without_a_stack_is_told():
    with pytest.raises(SelectionError, match="could mean several stacks"):
        pick("model.layers[0]", SEQ2SEQ)
    with pytest.raises(SelectionError, match=r"no stack of layers inside 'shared'. The stacks are: 'model.encoder"):
        pick("shared.layers[0]", SEQ2SEQ)
    with pytest.raises(SelectionError, match=r"'encodr' matches none of the 19 parameters. Nearest: 'encoder'"):
        pick("encodr.layers[0]", SEQ2SEQ)


def test_layers_of_a_model_without_a_stack_are_an_error():
    with pytest.raises(SelectionError, match=r"'layers\[0\]': this model has no repeated stack of layers"):
        pick("layers[0]", words_of("weight", "bias"))


# --- entries and selections -------------------------------------------------------------------------------------------


def test_a_later_entry_overrides_an_earlier_one():
    assert pick(["all", "!layers", "layers[0]"]) == (set(ALL) - set(LAYERED)) | layers(0)
    assert pick(["all", "layers[0]", "!layers"]) == set(ALL) - set(LAYERED)
    assert pick(["head", "!head", "classifier.bias"]) == {"classifier.bias"}


def test_an_ampersand_intersects():
    assert pick("layers[-1] & biases") == {"bert.layer.11.bias"}
    assert pick("layers & *.*.*.bias & re:.*1.*") == {f"bert.layer.{i}.bias" for i in (1, 10, 11)}
    assert pick(["layers", "!layers[1:]&biases"]) == set(LAYERED) - {f"bert.layer.{i}.bias" for i in range(1, 12)}


def test_an_empty_intersection_is_an_error():
    with pytest.raises(SelectionError, match=r"'head & layers\[0\]' matches nothing"):
        pick("head & layers[0]")


def test_an_entry_that_takes_out_must_match_something_too():
    with pytest.raises(SelectionError, match=r"'!clasifier': 'clasifier' matches none.*Nearest: 'classifier'"):
        pick(["all", "!clasifier"])


def test_a_selection_that_leaves_nothing_is_an_error():
    with pytest.raises(SelectionError, match=r"selects nothing.*Begin with what to pick"):
        pick("!head")
    with pytest.raises(SelectionError, match="selects nothing"):
        pick(["head", "!all"])


def test_spaces_around_entries_and_terms_do_not_matter():
    assert pick(" layers[ -1 ]  &  biases ") == pick("layers[-1]&biases")
    assert pick(["all", " ! head"]) == pick(["all", "!head"])


def test_a_string_and_a_list_of_it_are_the_same_and_so_is_a_tuple():
    assert pick("head") == pick(["head"]) == pick(("head",))


def test_how_directly_a_parameter_was_named_is_kept_with_it():
    picked = evaluate(["all", "biases", "classifier", "!layers", "!bert.pool"], BERT)
    assert picked.names["bert.embed.weight"] is Specificity.EVERYTHING
    assert picked.names["classifier.bias"] is Specificity.NAMED
    assert picked.taken_out["bert.layer.0.bias"] is Specificity.ROLE
    assert picked.taken_out["bert.pool.weight"] is Specificity.NAMED
    assert evaluate("layers & *.*.*.bias", BERT).names["bert.layer.3.bias"] is Specificity.NAMED


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([], "empty list selects nothing"),
        ("", "'' has an empty term. An entry is 'all', a role"),
        ("!", "has an empty term"),
        ("head & ", "has an empty term"),
        ("head, norms", r"cannot be read.*Several entries are several strings in a list"),
        ("layers[0", "cannot be read"),
        ("head | norms", "cannot be read"),
        ("all & !head", r"'!' stands only at the start of an entry. Write two entries: \['all', '!head'\]"),
        ("re:[", r"'re:\[' is not a valid regular expression"),
        ("re:a{99999999999999}", "is not a valid regular expression: the repetition number is too large"),
        (3, "A selection must be a string or a list of strings; 3 is a int"),
        (None, "None is a NoneType"),
        ([None], "None is a NoneType"),
        ([["head"]], r"\['head'\] is a list"),
        ({"head", "norms"}, "is a set"),
        ({"head": 1e-3}, "is a dict"),
        (b"head", "is a int"),
    ],
)
def test_what_is_no_selection_is_an_error_that_says_what_is(selection, message):
    with pytest.raises(SelectionError, match=message):
        parse(selection)


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("clasifier", "classifier"),
        ("Classifier", "classifier"),
        ("hed", "head"),
        ("bert.layers.1", "bert.layer.1"),
        ("embedings", "embeddings"),
        ("weight.classifier", "classifier.weight"),
        ("re:bert.pol.*", "bert.pool"),
        ("encoder.pool", "bert.pool"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_ones(misspelt, nearest):
    with pytest.raises(SelectionError, match=rf"matches none of the 28 parameters. Nearest: .*'{nearest}'"):
        pick(misspelt)


def test_layers_of_a_part_without_an_index_are_answered_with_how_to_write_all_of_them():
    message = r"All layers inside 'bert' are 'bert\.layers\[:\]'\. Nearest"
    with pytest.raises(SelectionError, match=message):
        pick("bert.layers")
    assert pick("bert.layers[:]") == set(LAYERED)
    with pytest.raises(SelectionError, match=r"matches none of the 28 parameters\. Nearest"):
        pick("classifier.layers")


# --- properties -------------------------------------------------------------------------------------------------------

TERMS = [
    "all",
    *(role for role in ROLES if BERT.roles[role]),
    *("layers[0]", "layers[-3:]", "layers[::2]", "layers[1,4,-1]", "layer.layers[:6]"),
    *("bert", "bert.layer.1", "layer.*.bias", "classifier", "*", "*.weight", "re:.*bias", r"re:.*\.1\d?\..*"),
]


def picked_or_nothing(selection):
    try:
        return pick(selection)
    except SelectionError:
        return set()


terms = st.sampled_from(TERMS)
conditions = st.lists(terms, min_size=1, max_size=3).map(" & ".join).filter(picked_or_nothing)
entries = st.tuples(st.sampled_from(["", "!"]), conditions).map("".join)
selections = st.builds(lambda first, rest: [first, *rest], conditions, st.lists(entries, max_size=4))
PIECES = ["all", "head", "layers[", "]", "re:", "!", "&", ".", "*", ",", ":", "-", "0", "1", " "]
grammatical = st.lists(st.sampled_from(PIECES)).map("".join)


def refusal_of(selection):
    try:
        parse(selection)
    except SelectionError as error:
        return str(error)
    return None


@given(st.one_of(st.text(), grammatical, st.text().map("re:".__add__), st.text().map(lambda text: f"layers[{text}]")))
def test_any_text_is_either_read_or_refused_with_a_selection_error(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of re, about sets in regular expressions to come
        message = refusal_of(text)
    assert message is None or repr(text) in message


@given(st.one_of(st.none(), st.integers(), st.lists(st.one_of(st.text(), st.none(), st.integers())), st.binary()))
def test_anything_is_either_read_or_refused_with_a_selection_error(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        message = refusal_of(value)
    assert message is not None or isinstance(value, list)


bounds = st.one_of(st.none(), st.integers(-15, 15))


@given(start=bounds, stop=bounds, step=bounds, count=st.integers(1, 14))
def test_a_slice_picks_what_python_would(start, stop, step, count):
    assume(step != 0)
    stack = stack_of("h", count, parameters=["weight"])
    words = words_of(*(f"h.{index}.weight" for index in range(count)), stacks=[stack])
    text = ":".join("" if bound is None else str(bound) for bound in (start, stop, step))
    expected = {f"h.{index}.weight" for index in range(count)[start:stop:step]}
    if expected:
        assert pick(f"layers[{text}]", words) == expected
    else:
        with pytest.raises(SelectionError, match="empty slice"):
            pick(f"layers[{text}]", words)


@given(index=st.integers(-20, 20), count=st.integers(1, 14))
def test_an_index_picks_what_python_would(index, count):
    words = words_of(*(f"h.{i}.weight" for i in range(count)), stacks=[stack_of("h", count, parameters=["weight"])])
    try:
        expected = range(count)[index]
    except IndexError:
        with pytest.raises(SelectionError, match="out of range"):
            pick(f"layers[{index}]", words)
    else:
        assert pick(f"layers[{index}]", words) == {f"h.{expected}.weight"}


@given(conditions)
def test_an_entry_and_its_complement_partition_the_parameters(entry):
    inside = pick(entry)
    outside = picked_or_nothing(["all", f"!{entry}"])
    assert inside | outside == set(ALL)
    assert not inside & outside


@given(selections)
def test_evaluating_twice_is_the_same_and_repeating_a_selection_changes_nothing(selection):
    once = picked_or_nothing(selection)
    assume(once)
    assert pick(selection) == once
    assert pick([*selection, *selection]) == once


@given(selections, conditions)
def test_the_last_entry_has_its_way(selection, entry):
    last = pick(entry)
    before = picked_or_nothing(selection)
    assert pick([*selection, entry]) == before | last
    assert picked_or_nothing([*selection, f"!{entry}"]) == before - last


@given(selections)
def test_what_is_picked_and_what_is_taken_out_never_overlap(selection):
    try:
        picked = evaluate(selection, BERT)
    except SelectionError:
        return
    assert not picked.names.keys() & picked.taken_out.keys()


# --- literal paths ----------------------------------------------------------------------------------------------------

STRANGE = ["q&a", "a b", "!x", "l[0]", "s*r", 'q"t', "b\\s", "re:x", "all", "é"]
ODD = words_of(*(f"extra.{name}.weight" for name in STRANGE), norms=["extra.q&a.weight"])


@pytest.mark.parametrize("name", STRANGE)
def test_a_path_in_quotes_is_taken_as_it_is(name):
    assert pick(quoted(f"extra.{name}"), ODD) == {f"extra.{name}.weight"}
    assert pick(["all", f"!{quoted(f'extra.{name}')}"], ODD) == set(ODD.spellings) - {f"extra.{name}.weight"}


def test_quoted_paths_intersect_like_any_other():
    assert pick('"extra.q&a" & norms', ODD) == pick('norms&"extra.q&a"', ODD) == {"extra.q&a.weight"}
    assert pick('re:.*q"t.* & "extra"', ODD) == {'extra.q"t.weight'}


def test_an_ampersand_in_a_name_needs_no_quotes():
    assert pick("extra.q&a", ODD) == {"extra.q&a.weight"}
    assert pick(["extra", "!extra.q&a"], ODD) == set(ODD.spellings) - {"extra.q&a.weight"}


@pytest.mark.parametrize("selection", ['"extra.q', '"bad \\x escape"'])
def test_what_is_not_properly_quoted_is_an_error(selection):
    with pytest.raises(SelectionError, match="double quotes"):
        pick(selection, ODD)


def test_a_quoted_path_that_is_not_there_is_an_error_with_the_nearest():
    with pytest.raises(SelectionError, match=r"extra\.q&b.*matches none.*Nearest: .*extra"):
        pick('"extra.q&b"', ODD)
