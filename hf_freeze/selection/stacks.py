"""Find the repeated block stacks of any model by structure, without a table of architectures.

A stack is the outermost `ModuleList` (or `Sequential`) whose elements are composite modules of one kind. Where every
element only wraps such a list itself (the stages of Swin, ConvNeXt and ResNet; ALBERT's groups), the blocks of all
stages form one stack, and what a stage holds besides joins its nearest block. Parallel lists of sub-blocks (XLM's
attentions, ffns, ...) form one stack as well, and so do numbered siblings (torchvision's layer1, layer2, ...) and the
blocks between stem and head of one `Sequential`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import nn
from transformers import PreTrainedModel

from hf_freeze.module_types import CONVOLUTIONS
from hf_freeze.selection.norms import is_norm

Block = tuple[str, ...]  # module paths that make up one layer


@dataclass(frozen=True)
class Stack:
    """Where the stack is, the containers it is made of, and the parameter names of each layer."""

    path: str
    members: tuple[str, ...]
    layers: tuple[frozenset[str], ...]


def renamed(stacks: Iterable[Stack], names: Callable[[Iterable[str]], frozenset[str]]) -> tuple[Stack, ...]:
    """Return the stacks with other parameter names in their layers: those that `names` makes of the old ones."""
    return tuple(replace(stack, layers=tuple(map(names, stack.layers))) for stack in stacks)


@dataclass(frozen=True)
class _Found:
    path: str
    members: tuple[str, ...]
    blocks: tuple[Block, ...]
    single_convolutions: bool


def find_stacks(model: nn.Module, *, outside: frozenset[str]) -> tuple[tuple[Stack, ...], tuple[Stack, ...]]:
    """Return the main stacks, and the minor ones: lists of single convolutions beside a main stack. In module order.

    Nothing below the paths in `outside` is looked at.
    """
    found = list(_search("", model, outside)) or list(_search("", model, outside, leaves=True))
    mixed = any(not stack.single_convolutions for stack in found)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    main = [stack for stack in found if not (mixed and stack.single_convolutions)]
    minor = [stack for stack in found if mixed and stack.single_convolutions]
    return tuple(_with_names(stack, names) for stack in main), tuple(_with_names(stack, names) for stack in minor)


def _with_names(found: _Found, names: Sequence[str]) -> Stack:
    layer_of = {path: index for index, block in enumerate(found.blocks) for path in block}
    layers: list[set[str]] = [set() for _ in found.blocks]
    for name in names:
        path = name
        while path not in layer_of and path:
            path = path.rpartition(".")[0]
        if path:
            layers[layer_of[path]].add(name)
    return Stack(found.path, found.members, tuple(map(frozenset, layers)))


def _search(path: str, module: nn.Module, outside: frozenset[str], leaves: bool = False) -> Iterator[_Found]:
    if path in outside:
        return
    if is_stack(module, leaves):
        yield _read(path, module)
        return
    children = {_join(path, name): child for name, child in module.named_children()}
    taken: set[str] = set()
    siblings = list(_numbered_siblings(children))
    # The stages of torchvision's Swin stand beside a stem of their class, nn.Sequential, which is no block.
    runs = _run_of_blocks(path, module) if isinstance(module, nn.Sequential) and not siblings else ()
    for found in (*runs, *siblings, *_parallel_lists(children)):
        if not any(member in outside for member in found.members):
            taken.update(found.members)
            yield found
    for child_path, child in children.items():
        if child_path not in taken and not _is_embedding(child_path, child):
            yield from _search(child_path, child, outside, leaves)


def _read(path: str, container: nn.Module) -> _Found:
    blocks: list[Block] = []
    elements = _elements(path, container)
    inner = {element_path: _inner_stack(element_path, element) for element_path, element in elements.items()}
    for element_path, element in elements.items():
        stage = inner[element_path] if all(inner.values()) else None
        blocks.extend(_stage_blocks(element_path, element, stage) if stage else [(element_path,)])
    return _Found(path, (path,), tuple(blocks), all(map(_is_single_convolution, elements.values())))


def _stage_blocks(path: str, stage: nn.Module, inner_path: str) -> list[Block]:
    """Return the blocks of one stage; what else it holds joins the first block or, when registered later, the last."""
    inner = stage if inner_path == path else stage.get_submodule(inner_path.removeprefix(f"{path}."))
    blocks: list[list[str]] = [[block_path] for block_path in _elements(inner_path, inner)]
    if inner is stage:
        return [tuple(block) for block in blocks]
    names = [_join(path, name) for name, _ in stage.named_children()]
    here = names.index(inner_path)
    blocks[0].extend([*names[:here], *(_join(path, name) for name, _ in stage.named_parameters(recurse=False))])
    blocks[-1].extend(names[here + 1 :])
    return [tuple(block) for block in blocks]


_BESIDE_BLOCKS = re.compile(
    r".*(down|merg|reduc|patch|embed|pool|norm|pos|drop|token|transition|up|act).*", re.IGNORECASE
)


def _inner_stack(path: str, element: nn.Module) -> str | None:
    """Return the path of the one list of blocks in an element that is a stage: that list and resampling, no more."""
    if is_stack(element):
        return path
    lists = [name for name, child in element.named_children() if is_stack(child) and not _BESIDE_BLOCKS.fullmatch(name)]
    beside = [name for name, child in element.named_children() if name not in lists and _has_parameters(child)]
    if len(lists) == 1 and all(map(_BESIDE_BLOCKS.fullmatch, beside)):
        return _join(path, lists[0])
    return None


def _parallel_lists(children: dict[str, nn.Module]) -> Iterator[_Found]:
    """XLM-like: several lists of equal length, each holding one sub-block of every layer."""
    lists = {path: child for path, child in children.items() if isinstance(child, nn.ModuleList) and len(child)}
    for path, container in lists.items():
        if not is_stack(container) or _is_whole_block(container[0]) or is_stack(container[0]):
            continue
        partners = [
            other
            for other, candidate in lists.items()
            if len(candidate) == len(container) and not _is_whole_block(candidate[0]) and _has_parameters(candidate)
        ]
        if len({type(lists[other][0]) for other in partners}) < 2:
            continue
        blocks = tuple(tuple(f"{other}.{index}" for other in partners) for index in range(len(container)))
        yield _Found(path, tuple(partners), blocks, False)
        return


def _run_of_blocks(path: str, module: nn.Sequential) -> Iterator[_Found]:
    """`Sequential(stem, block, block, ..., head)`: the longest run of composite elements of one class."""
    runs = [
        tuple(element_path for element_path, _ in run)
        for _, run in groupby(_elements(path, module).items(), key=lambda item: (type(item[1]), _is_composite(item[1])))
    ]
    longest = max(runs, key=len, default=())
    if len(longest) > 1 and _is_composite(module.get_submodule(longest[0].rpartition(".")[2])):
        yield _Found(path, longest, tuple((block,) for block in longest), single_convolutions=False)


def _numbered_siblings(children: dict[str, nn.Module]) -> Iterator[_Found]:
    """torchvision-like: layer1, layer2, ... are the stages of one stack."""
    stages: dict[str, list[str]] = {}
    for path, child in children.items():
        if re.search(r"\D\d+$", path) and is_stack(child):
            stages.setdefault(path.rstrip("0123456789"), []).append(path)
    for stem, paths in stages.items():
        if len(paths) > 1:
            found = [_read(path, children[path]) for path in paths]
            blocks = tuple(block for stage in found for block in stage.blocks)
            yield _Found(stem.rstrip("_"), tuple(paths), blocks, all(stage.single_convolutions for stage in found))


_WHOLE_BLOCK = re.compile(r".*(Layer|Block|Stage|Group|Unit|Cell|Bottleneck|Residual)(V?\d+)?")


def _is_whole_block(element: nn.Module) -> bool:
    return bool(_WHOLE_BLOCK.fullmatch(type(element).__name__))


def is_stack(module: nn.Module, leaves: bool = False) -> bool:
    """Tell whether this is a container of composite elements of one kind (or, with `leaves`, of single modules)."""
    if not isinstance(module, nn.ModuleList | nn.Sequential) or (leaves and isinstance(module, nn.Sequential)):
        return False
    elements = list(_elements("", module).values())
    if not elements or any("embed" in type(element).__name__.lower() for element in elements):
        return False
    if not leaves and not all(map(_is_composite, elements)):
        return False
    if len({_kind(element) for element in elements}) > 1:
        return False
    repeated = len(module) > 1 and all(child is elements[0] for child in module)
    # One element beside others without weights is no layer but what a SentenceTransformer is: looked through.
    return len(elements) > 1 or repeated or _is_layer(elements[0])


def _is_layer(element: nn.Module) -> bool:
    return _is_whole_block(element) or is_stack(element)


def _kind(element: nn.Module) -> str:
    """Return the last word of the class name: hybrid stacks mix `AttentionDecoderLayer` and `MambaDecoderLayer`."""
    return re.split(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", type(element).__name__)[-1]


def _is_composite(element: nn.Module) -> bool:
    # What holds a whole model is no layer, whatever it is called and however many of its kind there are.
    return any(map(_has_parameters, element.children())) and not any(
        isinstance(part, PreTrainedModel) for part in element.modules()
    )


def _is_single_convolution(element: nn.Module) -> bool:
    owners = [module for module in element.modules() if list(module.parameters(recurse=False)) and not is_norm(module)]
    return len(owners) == 1 and isinstance(owners[0], CONVOLUTIONS)


def _is_embedding(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and "embed" in path.rpartition(".")[2].lower()


def _elements(path: str, container: nn.Module) -> dict[str, nn.Module]:
    """Return the container's elements that hold parameters; a block that is repeated by sharing counts once."""
    return {_join(path, name): child for name, child in container.named_children() if _has_parameters(child)}


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
