"""Attention on a CPU: in fp32, and of what a mask lets be seen alone.

Of replies beside each other (rlhf.generation.rankings) most is hidden, and torch's own reads all keys for every query. Here a block of
queries reads the keys that one of them sees, by torch's kernel for a CPU; what is kept for backward stays in the dtype that came.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ATTENTION, SEEN = "sdpa_in_fp32", "sdpa_where_seen"
BLOCK = 64  # queries that are read at once
SHORT, WORTH = 256, 0.7  # rows, and a share of all pairs of tokens, below and above which it does not pay
Blocks = list[tuple[int, slice, Any, Tensor]]


def attend_in_fp32(model: Any) -> None:
    """Gives a model on the CPU attention in fp32, if it uses torch's own (`sdpa`); in fp32 nothing changes."""
    _replace(model, ATTENTION, _in_fp32)


def attend_where_seen(model: Any) -> None:
    """Gives a model on the CPU attention to what a mask of ours shows, if it uses torch's own (`sdpa`)."""
    _replace(model, SEEN, _attend)


def _replace(model: Any, name: str, attention: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, sdpa_mask)
        model.set_attn_implementation(name)


def _in_fp32(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa_attention_forward` on fp32 copies; `[B, T, heads, size]` in the dtype that came."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):  # autocast would cast back to bf16
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa_attention_forward`: `[B, heads, T, size]` to `[B, T, heads, size]`."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    mask, length = attention_mask, query.shape[2]
    ours = mask is not None and mask.dtype == torch.bool and mask.shape == (len(query), 1, length, length)
    plain = length >= SHORT and not kwargs.get("dropout") and kwargs.get("position_bias") is None
    blocks = blocks_of(mask) if mask is not None and ours and plain else None
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = (repeat_kv(one, groups) for one in (key, value))
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (one.to(torch.get_autocast_dtype("cpu")) for one in (query, key, value))
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return _Seen.apply(query, key, value, blocks, scale), None  # pyright: ignore[reportReturnType]


def blocks_of(mask: Tensor) -> Blocks | None:
    """Row, queries, the keys that one of them sees, and what is added to their scores, of a boolean `[B, 1, T, T]` mask; None where that
    saves little."""
    if (known := getattr(mask, "blocks", None)) is None:
        known, pairs = [], 0
        for row, one in enumerate(mask[:, 0]):
            for start in range(0, one.shape[0], BLOCK):
                queries = slice(start, min(start + BLOCK, one.shape[0]))
                keys: Any = one[queries].any(0).nonzero().squeeze(1)
                first, last = int(keys[0]), int(keys[-1]) + 1
                keys = slice(first, last) if last - first == len(keys) else keys
                hidden = torch.zeros(one[queries, keys].shape).masked_fill_(~one[queries, keys], -torch.inf)
                known.append((row, queries, keys, hidden[None, None]))
                pairs += hidden.numel()
        known = known if pairs < WORTH * mask.numel() else ()
        mask.blocks = known  # pyright: ignore[reportAttributeAccessIssue]  every layer is given the same mask
    return known or None


def _part(whole: Tensor, row: int, place: Any) -> Tensor:
    """`[1, heads, n, size]` of some tokens of a row."""
    own = whole[row : row + 1]
    return own[:, :, place] if isinstance(place, slice) else own.index_select(2, place)


class _Seen(torch.autograd.Function):
    """Attention block by block, in fp32, to `[B, T, heads, size]`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float) -> Tensor:
        whole = [one.float() for one in (query, key, value)]
        found, sums = torch.empty_like(query.transpose(1, 2)).contiguous(), []
        for row, queries, keys, hidden in blocks:
            given = [_part(one, row, place) for one, place in zip(whole, (queries, keys, keys), strict=True)]
            made, kept = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *given, attn_mask=hidden, scale=scale
            )
            found[row, queries] = made[0].transpose(0, 1).to(found.dtype)
            sums.append(kept)
        ctx.save_for_backward(query, key, value, found, *sums)
        ctx.blocks, ctx.scale = blocks, scale
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        *given, found, gradient = (one.float() for one in (*ctx.saved_tensors[:4], gradients[0]))
        slopes = [torch.zeros_like(one) for one in given]
        for (row, queries, keys, hidden), kept in zip(ctx.blocks, ctx.saved_tensors[4:], strict=True):
            places = (queries, keys, keys)
            parts = [_part(one, row, place) for one, place in zip(given, places, strict=True)]
            out, slope = (one[row : row + 1, queries].transpose(1, 2) for one in (found, gradient))
            own = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                slope, *parts, out, kept, 0.0, False, attn_mask=hidden, scale=ctx.scale
            )
            for whole, part, place in zip(slopes, own, places, strict=True):
                if isinstance(place, slice):
                    whole[row, :, place] += part[0]
                else:
                    whole[row].index_add_(1, place, part[0])
        return *(slope.to(gradients[0].dtype) for slope in slopes), None, None
