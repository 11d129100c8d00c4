"""The fused head of TRL 1.15 and later on a CPU: small tiles of learned tokens, and the same numbers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.methods import FUSED, TILE
from rlhf.methods.head import small_tiles


@pytest.mark.skipif(not FUSED, reason="TRL before 1.15 has no fused head")
def test_tiles_are_small_and_the_numbers_the_same(monkeypatch):
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", 4096)  # and put back what this process had
    monkeypatch.setattr(utils, "_use_triton", chunked_logprob._use_triton)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.randint(0, 50, (2, 400))
    labels = ids.masked_fill(torch.arange(400) < 150, -100)
    tiles, fold = [], chunked_logprob._forward_tile
    monkeypatch.setattr(
        chunked_logprob, "_forward_tile", lambda tile, *args, **kw: (tiles.append(len(tile)), fold(tile, *args, **kw))
    )

    def run():
        model.zero_grad()
        tiles.clear()
        out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        out.loss.backward()
        return list(tiles), [out.loss, out.log_probs, out.entropy, *(p.grad.clone() for p in model.parameters())]

    whole, before = run()
    small_tiles()
    small, after = run()
    assert whole == [2 * 399] and small == [TILE, 2 * 250 - TILE]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
