"""Layers that compute the same for less: fp32 attention on a CPU, a dense copy of a 4-bit base, LoRA without copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ATTENTION = "sdpa_in_fp32"


def attend_in_fp32(model: Any) -> None:
    """Gives a model on the CPU the attention below, if it uses torch's own (`sdpa`); in fp32 nothing changes."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, _attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa_attention_forward` on fp32 copies; `[B, T, heads, size]` in the dtype that came."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):  # autocast would cast back to bf16
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None


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


def keep_inputs_once(peft: Any) -> int:
    """Gives `peft`'s plain LoRA layers on frozen linear bases the forward above; returns how many they are.

    Everything else (DoRA, LoRA with a bias, dropout in training, 8-bit bases, embeddings, a base that trains) stays PEFT's.
    """
    from peft.tuners.lora.layer import LoraLayer

    layers: list[Any] = [layer for layer in peft.modules() if isinstance(layer, LoraLayer) and _is_plain(layer)]
    for layer in layers:
        if "peft_forward" not in vars(layer):
            layer.peft_forward, layer.forward = layer.forward, MethodType(_lean_forward, layer)
    return len(layers)


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    plain = not layer.lora_variant and not any(layer.lora_bias.values()) and not getattr(layer, "fan_in_fan_out", False)
    return frozen and plain and type(base).__name__ in ("Linear", "Linear4bit") and isinstance(base, nn.Linear)


def _lean_forward(layer: Any, x: Tensor, **kwargs: Any) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if kwargs or layer.disable_adapters or layer.merged or len(names) != 1:
        return layer.peft_forward(x, **kwargs)
    (name,) = names
    if layer.training and getattr(layer.lora_dropout[name], "p", 0) > 0:  # whose A reads another input than the base
        return layer.peft_forward(x)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    if torch.is_grad_enabled():
        return _LowRankSum.apply(x, down, up, scaling, layer.base_layer)  # pyright: ignore[reportReturnType]
    return _low_rank_sum(x, down, up, scaling, layer.base_layer)[0]


def _low_rank_sum(x: Tensor, down: Tensor, up: Tensor, scaling: float, base: nn.Linear) -> tuple[Tensor, Tensor]:
    """The layer's output and A x, `[N, rank]`."""
    y = base(x)
    low = x.flatten(0, -2).mm(down.to(x.dtype).t())
    y.view(-1, y.shape[-1]).addmm_(
        low, up.to(x.dtype).t(), alpha=scaling
    )  # y is new and contiguous: this writes into it
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


def plain_4bit_kernels(base: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place for its CPU kernel.

    In eval mode on CPUs with avx512_bf16, Linear4bit rewrites its weights into another layout with bf16 scales, and
    back when saved: the base then computes other numbers in scoring than in training, and the ratio is not 1.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
