"""Lean LoRA layers compute what PEFT's do, keep less for backward, and leave alone what they do not know."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from rlhf.models.layers import keep_inputs_once

IDS = torch.randint(4, 96, (4, 64), generator=torch.Generator().manual_seed(0))


def run(model):
    """Logits, the gradients of a loss on them, and the bytes besides weights that forward kept for backward."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=IDS, use_cache=False).logits
    logits.float().square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), gradients, sum(kept.values())


def policy(workshop, **options):
    model = PeftModel.from_pretrained(workshop.load(**options), workshop.sft, is_trainable=True).eval()
    assert len([p for p in model.parameters() if p.requires_grad]) == 2 * 7 * 2
    return model


@pytest.mark.parametrize("quantized", [False, True])
def test_in_fp32_logits_and_gradients_are_those_of_peft(workshop, quantized):
    model = policy(workshop, quantized=quantized)
    logits, gradients, _ = run(model)
    assert keep_inputs_once(model) == 7 * 2
    ours, our_gradients, _ = run(model)
    assert torch.allclose(ours, logits, atol=1e-5)
    assert our_gradients.keys() == gradients.keys() and len(gradients) == 2 * 7 * 2
    for name, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0
        assert torch.allclose(our_gradients[name], gradient, rtol=1e-4, atol=1e-7), name
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, ours, atol=1e-6)
    with model.disable_adapter(), torch.no_grad():
        bare = model(input_ids=IDS).logits
    assert torch.allclose(bare, workshop.load(quantized=quantized).eval()(input_ids=IDS).logits, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bf16_gradients_stay_fp32_and_much_less_is_kept(workshop, autocast):
    exact = run(policy(workshop, quantized=True))[1]
    model = policy(workshop, quantized=True, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        _, gradients, kept = run(model)
        assert keep_inputs_once(model) == 7 * 2
        _, ours, less = run(model)
    assert less < 0.8 * kept
    error = theirs = 0.0
    for name, gradient in exact.items():
        assert ours[name].dtype == torch.float32
        error += float((ours[name] - gradient).norm() / gradient.norm())
        theirs += float((gradients[name] - gradient).norm() / gradient.norm())
    assert error < 1.2 * theirs < 0.25 * len(exact)  # both are off by the rounding of bf16, PEFT by as much


def test_dropout_in_training_stays_with_peft(workshop):
    found = []
    for lean in (False, True):
        model = policy(workshop).train()
        assert not lean or keep_inputs_once(model) == 7 * 2
        torch.manual_seed(3)
        found.append(run(model)[0])
    assert torch.equal(*found) and not torch.allclose(found[0], run(model.eval())[0], atol=1e-3)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_lora_stays_with_peft(workshop, kind):
    base = workshop.load()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **kind))
    assert keep_inputs_once(model) == 0
