"""Attention that reads what can be seen finds what torch's own finds."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf.generation.batches import seen
from rlhf.models.attention import _attend, blocks_of


def rankings(*rows: list[int]) -> torch.Tensor:
    """The mask of rows of a prompt and replies of these lengths, padded to the longest."""
    width = max(map(sum, rows))
    segments = torch.full((len(rows), width), -1)
    for row, lengths in zip(segments, rows, strict=True):
        row[: sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return seen(segments)


@pytest.mark.parametrize("heads", [4, 2])
def test_blocks_find_what_all_keys_find(heads):
    torch.manual_seed(0)
    mask = rankings([100, 90, 30, 80], [20, 100, 1, 60, 70, 5], [300])
    outcomes = []
    for attend in (_attend, sdpa_attention_forward):
        torch.manual_seed(1)
        given = [torch.randn(3, count, 300, 8, requires_grad=True) for count in (4, heads, heads)]
        module = SimpleNamespace(num_key_value_groups=4 // heads, is_causal=True, training=True)
        found = attend(module, *given, mask, scaling=0.3, dropout=0.0)[0]
        slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
        outcomes.append([found, *torch.autograd.grad(found, given, slope)])
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert type(outcomes[0][0].grad_fn).__name__ == "_SeenBackward"


def test_what_is_seen_is_read_once_where_it_pays():
    mask = rankings([128, 128, 128, 128, 128])
    blocks = blocks_of(mask)
    assert blocks is not None and blocks_of(mask) is blocks and len(blocks) == 10
    pairs = sum((queries.stop - queries.start) * len(torch.arange(640)[keys]) for _, queries, keys, _ in blocks)
    assert int(mask.sum()) < pairs < 0.35 * mask.numel()
    assert blocks_of(torch.ones(1, 1, 300, 300, dtype=torch.bool)) is None
