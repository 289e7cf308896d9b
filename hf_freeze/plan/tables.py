"""Text for logs and tables: parts of a model in few words, rows in columns."""

from collections.abc import Collection, Iterable, Sequence

from hf_freeze.selection.model_map import ModelMap
from hf_freeze.selection.rows import joined
from hf_freeze.selection.vocabulary import paths_in_front


def part_labels(model_map: ModelMap) -> dict[str, str]:
    """Return canonical name -> head, embeddings, rest, layers[i], or path.layers[i] where there are several stacks."""
    labels = dict(model_map.parts)
    paths = paths_in_front(model_map.stacks) if len(model_map.stacks) > 1 else [""]
    for stack, path in zip(model_map.stacks, paths, strict=False):
        for index, names in enumerate(stack.layers):
            labels.update(dict.fromkeys(names, f"{path}.layers[{index}]" if path else f"layers[{index}]"))
    return labels


def stack_prefixes(model_map: ModelMap) -> list[str]:
    """What stands before `layers[i]` for each stack: nothing where there is one, else its path and a dot."""
    if len(model_map.stacks) == 1:
        return [""]
    return [f"{path}." for path in paths_in_front(model_map.stacks)]


def describe_parts(names: Collection[str], model_map: ModelMap) -> str:
    """Name the parts that these canonical names make up; of a part that is not whole, say how much of it."""
    labels = part_labels(model_map)
    members: dict[str, list[str]] = {}
    for name, label in labels.items():
        members.setdefault(label, []).append(name)
    chosen = {label: [name for name in found if name in names] for label, found in members.items()}
    whole = [label for label, found in members.items() if chosen[label] == found]
    partly: dict[str, list[str]] = {}
    for label, found in chosen.items():
        if found and label not in whole:
            partly.setdefault(_some_of(found, of=members[label], model_map=model_map), []).append(label)
    parts = [
        f"{part} ({share}{' each' if part.count(':') else ''})"
        for share, found in partly.items()
        for part in join_neighbours(found)
    ]
    return ", ".join([*join_neighbours(whole), *parts])


def _some_of(chosen: Sequence[str], *, of: Sequence[str], model_map: ModelMap) -> str:
    """Count the whole tensors among these members of a part, and name the rows."""
    rows = model_map.rows
    runs = [run.name for run in joined(rows[name] for name in chosen if name in rows)]
    tensors = len({rows[name].matrix if name in rows else name for name in of})
    whole = sum(name not in rows for name in chosen)
    return " and ".join([*([f"{whole} of {tensors} tensors"] if whole else []), *runs])


def join_neighbours(labels: Iterable[str]) -> list[str]:
    """Join runs of whole layers: layers[4], layers[5] -> layers[4:6]."""
    runs: list[tuple[str, int, int]] = []
    for label in labels:
        stem, bracket, index = label.rpartition("[")
        if not bracket:
            runs.append((label, 0, 0))
        elif runs and runs[-1][0] == stem and runs[-1][2] == int(index[:-1]):
            runs[-1] = (stem, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((stem, int(index[:-1]), int(index[:-1]) + 1))
    return [_run_text(stem, first, end) for stem, first, end in runs]


def _run_text(stem: str, first: int, end: int) -> str:
    if end == 0:
        return stem
    return f"{stem}[{first}]" if end == first + 1 else f"{stem}[{first}:{end}]"


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns, the first row a header; columns of numbers, and of nothing else, stand to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(cell[:1].isdigit() for cell in filter(None, column[1:])) for column in columns]
    lines = (
        "  ".join(
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
