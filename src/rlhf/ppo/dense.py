"""A dequantized copy of a 4-bit base while a rollout lasts: the same weights, dequantized once and not at every token."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def dense_base(model: nn.Module) -> Iterator[None]:
    """Within, 4-bit linear layers multiply by a copy of their weight in the dtype they compute in, 2 bytes a parameter
    in bf16; adapters are not touched. A model without 4-bit layers stays as it is.
    """
    layers: list[Any] = [m for m in model.modules() if getattr(m._parameters.get("weight"), "quant_state", None)]
    try:
        for layer in layers:
            layer.forward = partial(_linear, weight=dense_weight(layer, layer.compute_dtype), bias=layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def dense_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The `[out, in]` weight of a linear layer in `dtype`, dequantized if it is stored in 4 bits."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight, state).to(dtype)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
