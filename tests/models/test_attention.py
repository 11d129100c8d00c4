"""Attention on the CPU runs in fp32 whatever the model's dtype, in fp32 it is torch's own to the bit, and it reads what can be seen."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf.generation.batches import seen
from rlhf.models.attention import ATTENTION, _attend, attend_in_fp32, blocks_of

IDS = torch.randint(4, 96, (2, 16), generator=torch.Generator().manual_seed(0))


def spy(monkeypatch):
    """The dtypes with which torch's attention is called."""
    dtypes, attention = set(), torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **kw: dtypes.add(q.dtype) or attention(q, k, v, **kw),
    )
    return dtypes


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype, autocast", [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
def test_attention_is_fp32_and_the_rest_stays(workshop, monkeypatch, dtype, autocast, padded):
    model = workshop.load(quantized=False, dtype=dtype).eval()
    mask = torch.ones_like(IDS)
    if padded:
        mask[0, :5] = 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = model(input_ids=IDS, attention_mask=mask).logits
        attend_in_fp32(model)
        assert model.config._attn_implementation == ATTENTION
        dtypes = spy(monkeypatch)
        after = model(input_ids=IDS, attention_mask=mask).logits
    assert dtypes == {torch.float32} and after.dtype == before.dtype
    real = mask.bool()
    exact = dtype == torch.float32 and not autocast
    assert torch.allclose(after[real].float(), before[real].float(), atol=0.0 if exact else 0.05, rtol=0.0)


def test_trainers_use_it(workshop, make_trainer, monkeypatch):
    trainer = make_trainer(workshop.roles(quantized=True, dtype=torch.bfloat16))
    dtypes = spy(monkeypatch)
    trainer.train()
    assert dtypes == {torch.float32}


def test_another_choice_of_attention_stays(workshop):
    model = workshop.load(quantized=False)
    model.set_attn_implementation("eager")
    attend_in_fp32(model)
    assert model.config._attn_implementation == "eager"


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
