"""Attention on the CPU runs in fp32 whatever the model's dtype, and in fp32 it is torch's own to the bit."""

import pytest
import torch

from rlhf.models.layers import ATTENTION, attend_in_fp32

IDS = torch.randint(4, 96, (2, 16), generator=torch.Generator().manual_seed(0))


def spy(monkeypatch):
    """The dtypes with which torch's attention is called."""
    seen, attention = set(), torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **kw: seen.add(q.dtype) or attention(q, k, v, **kw),
    )
    return seen


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
        seen = spy(monkeypatch)
        after = model(input_ids=IDS, attention_mask=mask).logits
    assert seen == {torch.float32} and after.dtype == before.dtype
    real = mask.bool()
    exact = dtype == torch.float32 and not autocast
    assert torch.allclose(after[real].float(), before[real].float(), atol=0.0 if exact else 0.05, rtol=0.0)


def test_trainers_use_it(workshop, make_trainer, monkeypatch):
    trainer = make_trainer(workshop.roles(quantized=True, dtype=torch.bfloat16))
    seen = spy(monkeypatch)
    trainer.train()
    assert seen == {torch.float32}


def test_another_choice_of_attention_stays(workshop):
    model = workshop.load(quantized=False)
    model.set_attn_implementation("eager")
    attend_in_fp32(model)
    assert model.config._attn_implementation == "eager"
