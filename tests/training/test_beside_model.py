"""The gradients of what trains beside the model are averaged in the layout that their optimizer expects."""

import pytest
import torch
from torch import nn

from hf_freeze.training.beside_model import average_gradients


@pytest.mark.parametrize("sparse", [True, False])
def test_an_averaged_gradient_is_sparse_where_it_was(one_process, sparse):
    table, unused = nn.Embedding(4, 2, sparse=sparse), nn.Embedding(4, 2, sparse=sparse)
    table(torch.tensor([1, 3, 3])).sum().backward()
    expected = table.weight.grad.to_dense().clone()
    average_gradients([table.weight, unused.weight])
    assert table.weight.grad.is_sparse is sparse
    assert torch.equal(table.weight.grad.to_dense(), expected)
    assert unused.weight.grad is None
    optimizer = torch.optim.SparseAdam if sparse else torch.optim.Adam
    optimizer([table.weight], lr=0.1).step()
