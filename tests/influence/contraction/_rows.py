"""Rows and queries with which all orders of a contraction are tried."""

import torch
from torch import nn

from hesse.curvature.capture import Captured
from hesse.curvature.layers import select_layers
from hesse.curvature.scratch import Scratch
from hesse.influence.contraction import empty_queries, put

F64 = torch.float64
CPU = torch.device("cpu")


def rows_of(batch, positions, *, bias=True, inputs=9, outputs=7, dtype=F64):
    (layer,) = select_layers(nn.Sequential(nn.Linear(inputs, outputs, bias=bias))).values()
    generator = torch.Generator().manual_seed(3)
    x, d = (torch.randn(batch, positions, n, generator=generator, dtype=F64) for n in (inputs, outputs))
    mask = torch.rand(batch, positions, generator=generator) < 0.7
    return Captured(layer, x.to(dtype), (d * mask[..., None]).to(dtype), mask, "0")


def stored(rows, matrices, rank, dtype=F64):
    queries = empty_queries(rows.layer, len(matrices), rank, dtype, CPU)
    put(queries, 0, matrices, bases=None, scratch=Scratch(), seed=0)
    return queries


def matrices_of(rows, count, rank=None, seed=5):
    generator = torch.Generator().manual_seed(seed)
    p, m = rows.layer.out_features, rows.layer.columns
    if rank is None:
        return torch.randn(count, p, m, generator=generator, dtype=F64)
    left = torch.randn(count, p, rank, generator=generator, dtype=F64)
    return left @ torch.randn(count, rank, m, generator=generator, dtype=F64)
