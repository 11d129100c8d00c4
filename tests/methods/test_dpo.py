"""DPO that reads each reply once is TRL's DPO on the same pairs: losses, metrics, gradients."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from trl.trainer.dpo_config import DPOConfig

from rlhf.benchmark.fake_gpu import Card
from rlhf.errors import Refusal
from rlhf.generation.rankings import Ranking, can_share, grouped, lay_out
from rlhf.methods.dpo_once import SharedDPOTrainer, SidesCollator, TokenizedDPOTrainer, trainer
from rlhf.models.layers import keep_inputs_once
from rlhf.models.roles import Role
from tests.methods.shapes import LLAMA, SHAPES, model_of
from tests.workshop import words


def rows(seed: int = 0) -> Dataset:
    """Three rankings of three, a pair alone, and a pair whose replies start alike."""
    draw = torch.Generator().manual_seed(seed)

    def text(low: int, high: int) -> list[int]:
        return torch.randint(3, 100, (int(torch.randint(low, high, (1,), generator=draw)),), generator=draw).tolist()

    found = []
    for ranking in range(4):
        prompt, replies = text(3, 12), [text(1, 9) for _ in range(3 if ranking < 3 else 2)]
        for better in range(len(replies)):
            for worse in range(better + 1, len(replies)):
                one = {"prompt_ids": prompt, "chosen_ids": replies[better], "rejected_ids": replies[worse]}
                found.append(one | {"ranking": ranking, "k": len(replies), "length": 20})
    same = text(4, 5)
    found.append(
        {"prompt_ids": text(2, 4), "chosen_ids": same, "rejected_ids": [*same, 9], "ranking": 4, "k": 2, "length": 12}
    )
    return Dataset.from_list(found)


def outcome(
    kind: str, shared: bool, tmp_path: Any, adapter: bool = True, share: bool = True, **settings: Any
) -> tuple[float, dict, dict]:
    """Loss, metrics and gradients of all pairs at once."""
    model, reference = model_of(kind), None
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=kind == "gpt2"))
    else:
        reference = model_of(kind)
    args = DPOConfig(
        str(tmp_path),
        per_device_train_batch_size=16,
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=None,
        **settings,
    )
    tokenizer, data = words("[PAD]", "[EOS]", pad_token="[PAD]", eos_token="[EOS]"), rows()
    trainer: Any = (SharedDPOTrainer if shared else TokenizedDPOTrainer)(
        model, reference, args, SidesCollator(0, share) if shared else None, data, processing_class=tokenizer
    )
    if shared and adapter:
        keep_inputs_once(model)
    torch.manual_seed(1)
    with torch.no_grad():  # the policy has moved
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.train()
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), {name: values[-1] for name, values in trainer._metrics["train"].items()}, slopes


def same(ours: tuple, theirs: tuple, tolerance: float = 1e-5) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys() and ours[2].keys() == theirs[2].keys() and len(ours[2]) > 3
    for name, value in theirs[1].items():
        assert ours[1][name] == pytest.approx(value, rel=tolerance, abs=1e-5), name
    largest = max(float(slope.abs().max()) for slope in theirs[2].values())
    for name, slope in theirs[2].items():
        assert torch.allclose(ours[2][name], slope, rtol=1e-4, atol=tolerance * largest), name


@pytest.mark.parametrize("kind", SHAPES)
def test_losses_metrics_and_gradients_are_those_of_trl(kind: str, tmp_path):
    same(outcome(kind, True, tmp_path), outcome(kind, False, tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]},
        {"loss_type": "ipo"},
        {"loss_type": "hinge", "ld_alpha": 0.5},
        {"loss_type": "aot_unpaired", "label_smoothing": 0.1},
        {"loss_type": "sigmoid_norm", "f_divergence_type": "js_divergence"},
        {"loss_type": "discopop", "gradient_checkpointing": True},
        {"precompute_ref_log_probs": True},
    ],
)
def test_every_loss_is_trls_own(settings: dict, tmp_path):
    same(outcome("llama", True, tmp_path, **settings), outcome("llama", False, tmp_path, **settings))


def test_all_weights_may_be_trained_and_replies_be_apart(tmp_path):
    same(outcome("llama", True, tmp_path, adapter=False), outcome("llama", False, tmp_path, adapter=False))
    same(outcome("gpt2", True, tmp_path, share=False), outcome("gpt2", False, tmp_path))


def test_each_token_is_read_once():
    found = grouped(rows())
    batch = lay_out([Ranking(one["prompt_ids"], one["replies"]) for one in found], 0, share=True)
    tokens = sum(len(one["prompt_ids"]) + sum(map(len, one["replies"])) for one in found)
    assert batch.segments is not None and int((batch.segments >= 0).sum()) == tokens == sum(
        one["length"] for one in found
    )
    assert [len(one["replies"]) for one in found] == [3, 3, 3, 2, 2] and batch.tokens == tokens - sum(
        len(one["prompt_ids"]) for one in found
    )


class Counted(TorchDispatchMode):
    """The bytes of what operators make beside a model's weights, at the moment when most of them are held."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.card, self.weights = Card(), {one.untyped_storage().data_ptr() for one in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in self.weights:
                self.card.put(one)
        return made


def test_a_large_vocabulary_takes_no_memory_but_for_its_weights(tmp_path):
    peaks = []
    for vocabulary in (32_000, 152_000):
        sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": vocabulary, "max_position_embeddings": 512}
        config = CONFIG_MAPPING["llama"](**LLAMA | sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear"))
        args = DPOConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None)
        tokenizer = words("[PAD]", "[EOS]", pad_token="[PAD]", eos_token="[EOS]")
        pairs = [{"prompt_ids": [5] * 64, "chosen_ids": [6 + n] * 64, "rejected_ids": [9 + n] * 64} for n in range(4)]
        data = Dataset.from_list([pair | {"ranking": n, "k": 2, "length": 128} for n, pair in enumerate(pairs)])
        made: Any = trainer(model, None, args, tokenizer, data, longest=256)
        (batch,) = made.get_train_dataloader()
        with Counted(made.model) as counted:
            made.compute_loss(made.model, batch).backward()
        peaks.append(counted.card.peak)
    assert peaks[0] > 10e6 and peaks[1] < 1.1 * peaks[0], peaks


def test_a_ranking_that_is_too_long_for_a_row_is_split(monkeypatch):
    monkeypatch.setattr("rlhf.generation.rankings.LONGEST", 7)
    asked = [Ranking([5, 6], [[7, 8], [9, 10, 11], [12, 13], [14] * 9])]
    whole, split = (lay_out(asked, 0, share) for share in (False, True))
    assert split.ids[:, :7].tolist() == [[5, 6, 7, 8, 9, 10, 11], [5, 6, 12, 13, 0, 0, 0], [5, 6, *[14] * 5]]
    assert [split.batch_row.tolist(), split.target.tolist()] == [whole.batch_row.tolist(), whole.target.tolist()]


@pytest.mark.parametrize("kind", SHAPES)
def test_what_cannot_share_is_found_out(kind: str):
    model = model_of(kind)
    assert can_share(Role("policy", model), 48)
    assert can_share(Role("policy", model), 49) == (kind not in ("gemma3_text", "mistral"))


def test_positions_that_follow_from_the_mask_cannot_be_shared():
    """ALiBi counts a token's place in the row; a reply beside another one would be further from its prompt."""
    config = CONFIG_MAPPING["bloom"](hidden_size=32, n_layer=2, n_head=4, vocab_size=100)
    assert not can_share(Role("policy", AutoModelForCausalLM.from_config(config)), 16)


@pytest.mark.parametrize(("kind", "own"), [("llama", True), ("granite", False)])
def test_scaled_logits_take_trls_path(kind: str, own: bool, tmp_path):
    """Granite divides its logits, which the hidden states times the head are not."""
    torch.manual_seed(0)
    more = {"logits_scaling": 8.0} if kind == "granite" else {}
    config = CONFIG_MAPPING[kind](**LLAMA, **more, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    args = DPOConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None)
    tokenizer = words("[PAD]", "[EOS]", pad_token="[PAD]", eos_token="[EOS]")

    def made(data):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear"))
        return trainer(model, None, args, tokenizer, data, longest=48)

    assert isinstance(made(rows()), SharedDPOTrainer) == own
    if not own:
        with pytest.raises(Refusal, match="(?s)method.kwise=true.*fix: method.kwise=false"):
            made(Dataset.from_list(grouped(rows())))
