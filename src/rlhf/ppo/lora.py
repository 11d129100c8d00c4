"""LoRA layers that keep their input once, in the dtype it came in.

PEFT casts the input of every layer to the adapter's fp32, keeps that copy for backward (for q, k and v three copies of
the same input) and multiplies in fp32; on a CPU it does so even under autocast. Here the low-rank product runs in the
dtype of the activations, as under autocast on a GPU, while adapters and gradients stay fp32. The sum is PEFT's,
W x + scaling * B A x (Hu et al. 2021, arXiv:2106.09685); in fp32 the two differ by rounding alone.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf.ppo.dense import dense_weight


def keep_inputs_once(peft: Any) -> int:
    """Gives `peft`'s plain LoRA layers on frozen linear bases the forward above; returns how many they are.

    Everything else (DoRA, LoRA with a bias, 8-bit bases, embeddings, a base that trains) stays PEFT's.
    """
    from peft.tuners.lora.layer import LoraLayer

    layers: list[Any] = [layer for layer in peft.modules() if isinstance(layer, LoraLayer) and _is_plain(layer)]
    for layer in layers:
        if "peft_forward" not in vars(layer):
            layer.peft_forward, layer.forward = layer.forward, MethodType(_forward, layer)
    return len(layers)


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    plain = not layer.lora_variant and not any(layer.lora_bias.values()) and not getattr(layer, "fan_in_fan_out", False)
    return frozen and plain and type(base).__name__ in ("Linear", "Linear4bit") and isinstance(base, nn.Linear)


def _forward(layer: Any, x: Tensor, **kwargs: Any) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if kwargs or layer.disable_adapters or layer.merged or len(names) != 1:
        return layer.peft_forward(x, **kwargs)
    (name,) = names
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    x = layer.lora_dropout[name](x)
    if torch.is_grad_enabled():
        return _LowRankSum.apply(x, down, up, scaling, layer.base_layer)  # pyright: ignore[reportReturnType]
    return _low_rank_sum(x, down, up, scaling, layer.base_layer)[0]


def _low_rank_sum(x: Tensor, down: Tensor, up: Tensor, scaling: float, base: nn.Linear) -> tuple[Tensor, Tensor]:
    """The layer's output and A x, `[N, rank]`."""
    y = base(x)
    low = x.flatten(0, -2).mm(down.to(x.dtype).t())
    y.flatten(0, -2).addmm_(low, up.to(x.dtype).t(), alpha=scaling)  # y is new and contiguous: this writes into it
    return y, low


class _LowRankSum(torch.autograd.Function):
    """`_low_rank_sum` with gradients for x, A and B; the frozen weight is dequantized again in backward, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scaling: float, base: nn.Linear) -> Tensor:
        y, low = _low_rank_sum(x, down, up, scaling, base)
        ctx.save_for_backward(x, low, down, up)
        ctx.scaling, ctx.base = scaling, base
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, low, down, up = ctx.saved_tensors
        a, b, flat = down.to(x.dtype), up.to(x.dtype), x.flatten(0, -2)
        slope = gradients[0].to(x.dtype).flatten(0, -2)
        low_slope = slope.mm(b).mul_(ctx.scaling)
        for_x = for_down = for_up = None
        if ctx.needs_input_grad[0]:
            for_x = slope.mm(dense_weight(ctx.base, x.dtype)).addmm_(low_slope, a).view_as(x)
        if ctx.needs_input_grad[1]:
            for_down = low_slope.t().mm(flat).to(down.dtype)
        if ctx.needs_input_grad[2]:
            for_up = slope.t().mm(low).mul_(ctx.scaling).to(up.dtype)
        return for_x, for_down, for_up, None, None
