"""The operations of a step are those that its layers have, counted by hand."""

import pytest
import torch
from torch import nn

from hf_freeze.reporting.preview.operations import operation_counter

ROWS, CHANNELS, OUT, SIDE = 2, 8, 16, 12


def counted(layer, inputs):
    forward, backward = operation_counter(), operation_counter()
    with forward:
        out = layer(inputs)
    with backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}])
def test_either_gradient_of_a_convolution_takes_what_its_forward_pass_takes(kind, groups, options):
    dims = 2 if "2d" in kind.__name__ else 1
    layer = kind(CHANNELS, OUT, 3, groups=groups, **options)
    inputs = torch.randn(ROWS, CHANNELS, *[SIDE] * dims, requires_grad=True)
    # Every place of the smaller side meets every tap: an output's taps, or for a transposed one, an input's.
    small = SIDE if "Transpose" in kind.__name__ else layer(inputs).shape[-1]
    once = 2 * ROWS * small**dims * 3**dims * CHANNELS * OUT // groups
    assert counted(layer, inputs) == (once, 2 * once)
    assert counted(layer, inputs.detach()) == (once, once)
    layer.weight.requires_grad_(False)
    assert counted(layer, inputs) == (once, once)
