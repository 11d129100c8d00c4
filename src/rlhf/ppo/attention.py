"""Attention in fp32 on a CPU, where torch's fused kernel is slower on bf16: five times when a single token asks."""

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_in_fp32"


def attend_in_fp32(model: Any) -> None:
    """Gives a model on the CPU the attention below, if it uses torch's own (`sdpa`); in fp32 nothing changes."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _forward)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa_attention_forward` on fp32 copies; `[B, T, heads, size]` in the dtype that came."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):  # autocast would cast back to bf16
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None
