"""Weights that two paths of arithmetic must agree on."""

from collections.abc import Mapping

import torch


def assert_near(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    *,
    rtol: float = 1e-5,
    floor: float = 1e-2,
    where: str = "",
) -> None:
    """Each tensor of `expected` is in `found`, off by at most `rtol` of its own largest value, or of `floor`.

    Sums in another order round by a share of their largest terms, so a small value beside large ones has no precision of
    its own. `floor` is for tensors that hold rounding alone, such as key biases: softmax is blind to a shift.
    """
    for name, weight in expected.items():
        if weight.dtype == torch.bool:  # a mask among the buffers, which has no distance
            assert torch.equal(found[name], weight), name
            continue
        scale = max(weight.abs().max().item(), floor) if weight.numel() else floor
        torch.testing.assert_close(
            found[name], weight, rtol=rtol, atol=rtol * scale, msg=lambda text, name=name: f"{where}{name}: {text}"
        )
