"""torchao's weight-only quantisation of matrices, one scale a row: what its int4 and int8 weights stand for."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis


def measured(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each array "name" as "name:4" and "name:8"."""
    found: dict[str, np.ndarray] = {}
    for name, weight in arrays.items():
        for bits in (4, 8):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(torch.from_numpy(weight.copy()))
            config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0))
            quantize_(layer, config)
            carried: Any = layer.weight
            found[f"{name}:{bits}"] = carried.dequantize().numpy()
    return found
