"""Checks of images and sound: in the order, and on the scale, that the model was trained on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_freeze.debugging.sample_check import Check, failed, warning
from hf_freeze.model_inputs.inspected_model import InspectedModel

_LARGEST_PIXEL = 20.0
PIXELS, SAMPLES = "pixel_values", "input_values"
_SLACK = 0.05
"""Resampling may overshoot the range of pixels by a little."""


def check_media(inspected: InspectedModel, batch: Mapping[str, Any], error: Exception | None) -> Check | None:
    """Judge the shape and the scale of images and sound; None where nothing is wrong or nothing is there to judge."""
    return (
        _channels(inspected, batch, error)
        or _number_type(batch)
        or _pixel_scale(inspected, batch)
        or _sound(inspected, batch)
    )


def _channels(inspected: InspectedModel, batch: Mapping[str, Any], error: Exception | None) -> Check | None:
    wanted = _channels_of(inspected)
    for key, value in batch.items():
        certain = key == PIXELS and isinstance(value, torch.Tensor) and value.ndim >= 4
        if (
            wanted is None
            or not isinstance(value, torch.Tensor)
            or value.ndim < 3
            or not (certain or error is not None)
        ):
            continue
        if (key != PIXELS and not value.is_floating_point()) or (value.ndim >= 4 and value.shape[-3] == wanted):
            continue
        shape, expected = tuple(value.shape[1:]), f"({wanted}, height, width)"
        found = f"{key} has the shape {shape} and the model takes {expected}"
        if value.ndim >= 4 and value.shape[-1] == wanted:
            return failed(
                "inputs", f"{found}: channels come last. Put them first, by permute(2, 0, 1) or the processor."
            )
        count = value.shape[-3] if value.ndim >= 4 else 1
        remedy = {1: 'image.convert("L")', 3: 'image.convert("RGB")'}.get(wanted, f"{wanted} channels")
        missing = " (there is no axis of channels)" if value.ndim < 4 else ""
        return failed(
            "inputs",
            f"{found}: the image has {count} channel{'s' * (count != 1)}{missing}. Load it with {remedy}, or build the "
            f"model with num_channels={count}.",
        )
    return None


def _channels_of(inspected: InspectedModel) -> int | None:
    """Return the number of channels that the model takes: as its config says, else as its first convolution does."""
    config = inspected.config
    for owner in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        found = getattr(owner, "num_channels", None)
        if isinstance(found, int):
            return found
    first = next((module for module in inspected.model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def _number_type(batch: Mapping[str, Any]) -> Check | None:
    for key in (PIXELS, SAMPLES):
        value = batch.get(key)
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            dtype = str(value.dtype).removeprefix("torch.")
            return failed("inputs", f"{key} are {dtype}; the model takes floats. Run them through its processor.")
    return None


def _pixel_scale(inspected: InspectedModel, batch: Mapping[str, Any]) -> Check | None:
    """Compare the range of pixels with what the processor makes of 0 to 255."""
    pixels, processor = batch.get(PIXELS), inspected.image_processor
    if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point() or not pixels.numel():
        return None
    lowest, highest = float(pixels.min()), float(pixels.max())
    found = f"pixel_values go from {lowest:.4g} to {highest:.4g}"
    if processor is None:
        if max(-lowest, highest) <= _LARGEST_PIXEL:
            return None
        return warning(
            "inputs",
            f"{found}: they seem neither rescaled nor normalised. Run them through the model's image processor.",
        )
    low, high = _range_of(processor)
    slack = _SLACK * (high - low)
    name = type(processor).__name__
    said = f"{found}; the {name} at hand makes them {low:.4g} to {high:.4g}"
    if lowest < low - slack or highest > high + slack:
        return warning(
            "inputs", f"{said}: they did not go through it, or went through it twice. Let it make the pixel_values."
        )
    normalises = bool(getattr(processor, "do_normalize", False)) and low < -slack
    if normalises and lowest >= 0 and highest <= 1 and highest - lowest > 0.3:
        return warning(
            "inputs", f"{said}: they seem rescaled to 0 to 1 and not normalised. Let it make the pixel_values."
        )
    if lowest < highest <= low + (high - low) / 128 and lowest >= low - slack:
        return warning("inputs", f"{said}: the image is all but black. Was it rescaled twice?")
    return None


def _range_of(processor: Any) -> tuple[float, float]:
    """Return what an image processor makes of the darkest and of the lightest pixel."""
    low, high = 0.0, 255.0
    if getattr(processor, "do_rescale", False):
        high *= float(getattr(processor, "rescale_factor", None) or 1 / 255)
        if getattr(processor, "rescale_offset", False):
            low, high = low - 1, high - 1
    if getattr(processor, "do_normalize", False):
        means, stds = (_listed(getattr(processor, f"image_{kind}", None)) for kind in ("mean", "std"))
        if means and len(means) == len(stds) and all(stds):
            ends = [((low - m) / s, (high - m) / s) for m, s in zip(means, stds, strict=True)]
            low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    return low, high


def _listed(value: Any) -> list[float]:
    return [] if value is None else [float(x) for x in value] if isinstance(value, list | tuple) else [float(value)]


def _sound(inspected: InspectedModel, batch: Mapping[str, Any]) -> Check | None:
    samples, extractor = batch.get(SAMPLES), inspected.feature_extractor
    if not isinstance(samples, torch.Tensor) or not samples.numel() or extractor is None:
        return None
    if samples.ndim == 3 and getattr(extractor, "feature_size", None) == 1:
        shape = tuple(samples.shape[1:])
        return failed(
            "inputs", f"{SAMPLES} has the shape {shape}; the model takes one channel, (samples,). Average the channels."
        )
    if samples.ndim != 2 or not getattr(extractor, "do_normalize", False):
        return None
    mask = batch.get("attention_mask")
    own = samples[mask.bool()] if isinstance(mask, torch.Tensor) and mask.shape == samples.shape else samples
    mean, std = float(own.float().mean()), float(own.float().std(correction=0))
    if abs(mean) > 0.2 or not (0.5 < std < 2 or std == 0):
        return warning(
            "inputs",
            f"{SAMPLES} have the mean {mean:.3g} and the standard deviation {std:.3g}; the "
            f"{type(extractor).__name__} at hand makes them 0 and 1. Let it make the {SAMPLES}.",
        )
    return None
