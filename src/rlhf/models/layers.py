"""Layers that compute the same for less: a dense copy of a 4-bit base, LoRA without copies, norms and gates that are computed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
    """Gives `peft`'s plain LoRA layers on frozen linear bases the forward below; returns how many they are.

    Everything else (DoRA, LoRA with a bias, dropout in training, 8-bit bases, embeddings, a base that trains) stays PEFT's. Feed-forward
    layers behind a gate keep what the gate and its partner make, and norms of bf16 what they are given: the rest is computed again.
    """
    from peft.tuners.lora.layer import LoraLayer

    layers: list[Any] = [layer for layer in peft.modules() if isinstance(layer, LoraLayer) and _is_plain(layer)]
    for layer in layers:
        _replace(layer, "peft_forward", _lean_forward)
    gated: dict[type, bool] = {}
    for part in peft.modules():
        if getattr(part, "down_proj", None) in layers and hasattr(part, "gate_proj") and hasattr(part, "act_fn"):
            if gated.setdefault(type(part), "whole_forward" in vars(part) or _is_gated(part)):
                _replace(part, "whole_forward", _gated_forward)
        elif type(part).__name__.endswith("RMSNorm") and not any(one.requires_grad for one in part.parameters()):
            _replace(part, "whole_forward", _norm_forward)
    return len(layers)


def _replace(part: Any, name: str, forward: Any) -> None:
    if name not in vars(part):
        vars(part)[name], part.forward = part.forward, MethodType(forward, part)


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    plain = not layer.lora_variant and not any(layer.lora_bias.values()) and not getattr(layer, "fan_in_fan_out", False)
    return frozen and plain and type(base).__name__ in ("Linear", "Linear4bit") and isinstance(base, nn.Linear)


@torch.no_grad()
def _is_gated(part: Any) -> bool:
    """Whether a feed-forward layer is down(act(gate(x)) * up(x)), tried out."""
    base = part.down_proj.get_base_layer()
    low = base.weight.dtype if base.weight.dtype.is_floating_point else base.compute_dtype or torch.float32
    x = torch.linspace(-2, 2, 2 * part.gate_proj.in_features, device=base.weight.device).view(1, 2, -1).to(low)
    return torch.equal(part(x), part.down_proj(part.act_fn(part.gate_proj(x)) * part.up_proj(x)))


def _adapter(layer: Any) -> str | None:
    """The one adapter of a plain LoRA layer that is active and drops nothing; otherwise PEFT's forward is needed."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1:
        return None
    drops = layer.training and getattr(layer.lora_dropout[names[0]], "p", 0) > 0  # A reads another input than the base
    return None if drops else names[0]


def _weights(layer: Any, name: str) -> tuple[Tensor, Tensor, float, Any]:
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], layer.base_layer


def _cast(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _lean_forward(layer: Any, x: Tensor, **kwargs: Any) -> Tensor:
    if kwargs or (name := _adapter(layer)) is None:
        return layer.peft_forward(x, **kwargs)
    x = _cast(x)
    if torch.is_grad_enabled():
        return _LowRankSum.apply(x, *_weights(layer, name))  # pyright: ignore[reportReturnType]
    return _low_rank_sum(x, *_weights(layer, name))[0]


def _gated_forward(part: Any, x: Tensor) -> Tensor:
    name = _adapter(part.down_proj) if torch.is_grad_enabled() else None
    if name is None:
        return part.whole_forward(x)
    gate, up = part.gate_proj(x), part.up_proj(x)
    return _GatedSum.apply(gate, up, part.act_fn, *_weights(part.down_proj, name))  # pyright: ignore[reportReturnType]


def _norm_forward(part: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or x.dtype == torch.float32:  # which it keeps as it is anyway
        return part.whole_forward(x)
    return _Again.apply(x, part.whole_forward)  # pyright: ignore[reportReturnType]


def _low_rank_sum(x: Tensor, down: Tensor, up: Tensor, scaling: float, base: nn.Linear) -> tuple[Tensor, Tensor]:
    """The layer's output and A x, `[N, rank]`."""
    y = base(x)
    low = x.flatten(0, -2).mm(down.to(x.dtype).t())
    y.view(-1, y.shape[-1]).addmm_(
        low, up.to(x.dtype).t(), alpha=scaling
    )  # y is new and contiguous: this writes into it
    return y, low


def _slopes(needed: Any, slope: Tensor, x: Tensor, kept: Any, scaling: float, base: Any) -> tuple[Any, Any, Any]:
    """Of a low-rank sum, with respect to x, A and B; the frozen weight is dequantized again, not kept."""
    low, down, up = kept
    a, b, flat = down.to(x.dtype), up.to(x.dtype), x.flatten(0, -2)
    slope = slope.to(x.dtype).flatten(0, -2)
    low_slope = slope.mm(b).mul_(scaling)
    for_x = slope.mm(dense_weight(base, x.dtype)).addmm_(low_slope, a).view_as(x) if needed[0] else None
    for_down = low_slope.t().mm(flat).to(down.dtype) if needed[1] else None
    return for_x, for_down, slope.t().mm(low).mul_(scaling).to(up.dtype) if needed[2] else None


class _LowRankSum(torch.autograd.Function):
    """`_low_rank_sum` with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scaling: float, base: nn.Linear) -> Tensor:
        y, low = _low_rank_sum(x, down, up, scaling, base)
        ctx.save_for_backward(x, low, down, up)
        ctx.scaling, ctx.base = scaling, base
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, *kept = ctx.saved_tensors
        return *_slopes(ctx.needs_input_grad, gradients[0], x, kept, ctx.scaling, ctx.base), None, None


class _GatedSum(torch.autograd.Function):
    """`_low_rank_sum` of act(gate) * up, of which neither the product nor act(gate) is kept."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, act: Any, a: Tensor, b: Tensor, scaling: float, base: Any
    ) -> Tensor:
        y, low = _low_rank_sum(_cast(act(gate) * up), a, b, scaling, base)
        ctx.save_for_backward(gate, up, low, a, b)
        ctx.act, ctx.scaling, ctx.base, ctx.low = act, scaling, base, low.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gate, up, *kept = ctx.saved_tensors
        with torch.enable_grad():
            leaves = gate.detach().requires_grad_(), up.detach().requires_grad_()
            product = (ctx.act(leaves[0]) * leaves[1]).to(ctx.low)
        needed = (any(ctx.needs_input_grad[:2]), *ctx.needs_input_grad[3:5])
        slope, *of_weights = _slopes(needed, gradients[0], product.detach(), kept, ctx.scaling, ctx.base)
        before = torch.autograd.grad(product, leaves, slope) if needed[0] else (None, None)
        return *before, None, *of_weights, None, None


class _Again(torch.autograd.Function):
    """A layer without weights to train, of which the input alone is kept: backward computes the rest again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with torch.enable_grad():
            leaf = ctx.saved_tensors[0].detach().requires_grad_()
            made = ctx.layer(leaf)
        return *torch.autograd.grad(made, leaf, gradients[0]), None


def plain_4bit_kernels(base: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place for its CPU kernel.

    In eval mode on CPUs with avx512_bf16, Linear4bit rewrites its weights into another layout with bf16 scales, and
    back when saved: the base then computes other numbers in scoring than in training, and the ratio is not 1.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
