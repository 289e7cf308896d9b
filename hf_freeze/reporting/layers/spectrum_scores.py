"""The signal-to-noise ratio of weight matrices, ranked among those of one kind (Spectrum; Hartford et al., 2024)."""

import re
from collections.abc import Iterator, Mapping
from statistics import fmean

import torch
from torch import nn

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.module_types import CONVOLUTIONS
from hf_freeze.selection.model_map import map_model, unwrap

_IQR_OF_A_NORMAL = 1.349  # in standard deviations, by which the authors estimate the noise


def spectrum_scores(model: nn.Module, blocks: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Return layer -> the mean rank of its matrices among those of their kind: 1 has the most signal, 0 the least.

    Of one kind are matrices whose names differ in numbers alone. One matrix is looked at at a time. Raises
    `UnsupportedSetupError` for weights that are not at hand as floating point, and `FreezeError` for layers without
    matrices and for weights that are not finite.
    """
    inner, adapters = unwrap(model), map_model(model).roles["adapters"]
    layers = {block: names - adapters for block, names in blocks.items() if block.endswith("]")}
    owner = {name: block for block, names in layers.items() for name in names}
    convolutions = {f"{path}.weight" for path, module in inner.named_modules() if isinstance(module, CONVOLUTIONS)}
    ratios: dict[str, dict[str, float]] = {}
    for name, weights in inner.named_parameters():
        if name in owner and (found := list(_matrices(name, weights.detach(), name in convolutions))):
            kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
            ratios.setdefault(kind, {})[name] = fmean(_signal_to_noise(name, matrix) for matrix in found)
    ranks: dict[str, list[float]] = {block: [] for block in layers}
    for of_kind in ratios.values():
        for name, rank in _ranks(of_kind).items():
            ranks[owner[name]].append(rank)
    if bare := [block for block, found in ranks.items() if not found]:
        raise FreezeError(
            f"{bare[0]!r} has no weight matrix, and the spectrum is of matrices. Quantised weights do not count: load "
            "the model unquantised. Or take method='gradient'."
        )
    return {block: fmean(found) for block, found in ranks.items()}


def _matrices(name: str, weights: torch.Tensor, is_convolution: bool) -> Iterator[torch.Tensor]:
    """Yield the matrix of a weight: of a convolution all that makes one output a row; of stacked experts one each."""
    if weights.device.type == "meta":
        raise UnsupportedSetupError(f"{name!r} is on the meta device: there are no weights to look at. Load the model.")
    if is_convolution:
        weights = weights.flatten(1)
    if weights.dim() >= 2 and min(weights.shape[-2:]) > 1:
        yield from weights.reshape(-1, *weights.shape[-2:])


def _signal_to_noise(name: str, matrix: torch.Tensor) -> float:
    """Return the sum of the singular values above the bound of noise over that of the rest, over the largest.

    The bound is Marchenko and Pastur's for noise of the deviation that the middle half of the values has.
    """
    matrix = matrix.float()
    if not bool(torch.isfinite(matrix).all()):
        raise FreezeError(f"{name!r} holds NaN or infinity. Are the weights whole?")
    values = torch.linalg.svdvals(matrix)
    if not float(values[0]):
        return 0.0
    quarters = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device))
    noise = float(quarters[1] - quarters[0]) / _IQR_OF_A_NORMAL
    bound = noise * (1 + (min(matrix.shape) / max(matrix.shape)) ** 0.5)
    signal, rest = float(values[values > bound].sum()), float(values[values <= bound].sum())
    return signal / rest / float(values[0]) if rest else float("inf")


def _ranks(ratios: Mapping[str, float]) -> dict[str, float]:
    """Return name -> the share of the others that are below, those that are equal counting half.

    >>> _ranks({"a": 2.0, "b": 1.0, "c": 3.0, "d": 3.0})
    {'a': 0.3333333333333333, 'b': 0.0, 'c': 0.8333333333333334, 'd': 0.8333333333333334}
    """
    others = len(ratios) - 1
    if not others:
        return dict.fromkeys(ratios, 0.5)
    below = {one: sum((b < a) + (b == a) / 2 for b in ratios.values()) - 0.5 for one, a in ratios.items()}
    return {one: count / others for one, count in below.items()}
