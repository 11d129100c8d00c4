"""SFT that multiplies no padding is TRL's SFT on the same rows: losses, metrics, gradients, whatever the micro-batches are."""

import itertools
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig

from rlhf.generation.packing import arrange, lay_out
from rlhf.methods import METHODS
from rlhf.methods.sft import LeanSFTTrainer, TokenizedSFTTrainer, trainer
from rlhf.models.roles import disable_dropout
from tests.methods.shapes import LLAMA, SHAPES, model_of
from tests.workshop import words

LENGTHS = [3, 24, 7, 9, 40, 5, 12, 4, 21, 6, 8]  # two batches of micro-batches of 3, 3 and 2, and a shorter one


def rows() -> Dataset:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 100, (length,), generator=draw).tolist() for length in LENGTHS]
    labels = [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]
    labels[3] = [-100] * len(ids[3])  # a row of which nothing is learned
    labels[0] = ids[0]  # and one of which the first token is too, which nothing predicts
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def made(kind: str, ours: bool, tmp_path: Any, adapter: Any = None, **settings: Any) -> Any:
    model = model_of(kind)
    disable_dropout(model)  # of GPT-2, which is on in training
    if adapter is not False:
        lora = {"r": 4, "target_modules": "all-linear", "fan_in_fan_out": kind == "gpt2"} | (adapter or {})
        model = get_peft_model(model, LoraConfig(**lora))
    given = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_steps": 4}
    fixed = {
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_length": 40,
    }
    args = SFTConfig(
        str(tmp_path), **(given | fixed | {"gradient_checkpointing": False, "disable_tqdm": True} | settings)
    )
    tokenizer, data = words("[PAD]", "[EOS]", pad_token="[PAD]", eos_token="[EOS]"), rows()
    if ours:
        found: Any = trainer(model, args, tokenizer, data, data)
        assert isinstance(found, LeanSFTTrainer)
    else:
        found = TokenizedSFTTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (parameter for parameter in found.model.parameters() if parameter.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return found


def outcome(*given: Any, **settings: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What the steps and an evaluation log, and the gradients of a batch of two micro-batches."""
    found = made(*given, **settings)
    found.create_optimizer()
    found.model.train()
    batches, tokens = found.get_batch_samples(iter(found.get_train_dataloader()), 2, found.args.device)
    assert len(batches) == 2
    found.current_gradient_accumulation_steps = 2
    for batch in batches:
        found.training_step(found.model, batch, tokens)
    slopes = {name: p.grad.clone() for name, p in found.model.named_parameters() if p.grad is not None}
    found.model.zero_grad()
    for one in found._metrics.values():
        one.clear()
    found._total_train_tokens = 0
    found.train()
    found.evaluate()
    clock = ("runtime", "per_second", "epoch", "flos", "step")
    kept = [{k: v for k, v in line.items() if not any(word in k for word in clock)} for line in found.state.log_history]
    return kept, slopes


def same(ours: tuple, theirs: tuple, tolerance: float = 1e-5) -> None:
    for mine, other in itertools.zip_longest(ours[0], theirs[0]):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            assert mine[name] == pytest.approx(value, rel=tolerance * 10, abs=tolerance), name
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"} <= theirs[0][0].keys()
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} <= theirs[0][-1].keys()
    assert ours[1].keys() == theirs[1].keys() and len(ours[1]) > 3
    largest = max(float(slope.abs().max()) for slope in theirs[1].values())
    for name, slope in theirs[1].items():
        assert torch.allclose(ours[1][name], slope, rtol=1e-4, atol=tolerance * largest), name


@pytest.mark.parametrize("kind", SHAPES)
def test_losses_metrics_and_gradients_are_those_of_trl(kind: str, tmp_path):
    same(outcome(kind, True, tmp_path), outcome(kind, False, tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"adapter": False},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5},
        {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2},
    ],
)
def test_so_they_are_however_it_is_trained(settings: dict, tmp_path):
    same(outcome("llama", True, tmp_path, **settings), outcome("llama", False, tmp_path, **settings))


def test_rows_may_be_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.methods.sft.can_share", lambda *_: False)
    same(outcome("gemma3_text", True, tmp_path), outcome("gemma3_text", False, tmp_path))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("granite", {}),
        ("llama", {"loss_type": "dft"}),
        ("llama", {"packing": True}),
        ("llama", {"neftune_noise_alpha": 5.0}),
    ],
)
def test_what_needs_trls_pass_takes_it(kind: str, settings: dict, tmp_path):
    """Granite divides its logits, which the hidden states times the head are not."""
    torch.manual_seed(0)
    more = {"logits_scaling": 8.0} if kind == "granite" else {}
    config = CONFIG_MAPPING[kind](**LLAMA, **more, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._name_or_path = kind
    args = SFTConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=40, **settings)
    tokenizer = words("[PAD]", "[EOS]", pad_token="[PAD]", eos_token="[EOS]")
    found = trainer(AutoModelForCausalLM.from_config(config), args, tokenizer, rows())
    assert isinstance(found, TokenizedSFTTrainer) and not isinstance(found, LeanSFTTrainer)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 4, 9])
def test_each_row_is_in_one_line_and_no_micro_batch_is_larger_than_trls(share: bool, parts: int):
    lengths = [*LENGTHS, 1, 1, 30]
    found = arrange(lengths, parts, share)
    assert len(found) == parts and all(found)
    assert sorted(i for lines in found for line in lines for i in line) == list(range(len(lengths)))
    sizes = [len(lines) * max(sum(lengths[i] for i in line) for line in lines) for lines in found]
    assert max(sizes) <= -(-len(lengths) // parts) * max(lengths)
    assert sum(sizes) < 0.7 * len(lengths) * max(lengths) or parts == 1 and not share


def test_rows_side_by_side_keep_their_places_and_labels():
    def batch(*rows: list[int]) -> dict[str, torch.Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.where(ids > 5, ids, -100)}

    (made,) = lay_out([batch([3, 9, 8, 7, 6], [8, 9], [4, 4, 9])], 0, share=True)
    assert made["input_ids"].tolist() == [[3, 9, 8, 7, 6, 0, 0, 0], [4, 4, 9, 8, 9, 0, 0, 0]]
    assert made["labels"][:, :5].tolist() == [[-100, 9, 8, 7, 6], [-100, -100, 9, -100, 9]]
    assert made["positions"][:, :5].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    assert made["segments"].tolist() == [[1] * 5 + [-1] * 3, [1, 1, 1, 2, 2] + [-1] * 3]
    assert made["weight"][:, 0].tolist() == pytest.approx([1 / 6] * 2) and int(made["attention_mask"].sum()) == 10
    apart = lay_out([batch([3, 9, 8]), batch([4, 9])], 0, share=True)
    assert [one["input_ids"].tolist() for one in apart] == [[[3, 9, 8, 0, 0, 0, 0, 0]], [[4, 9, 0, 0, 0, 0, 0, 0]]]
    assert "segments" not in apart[0] and apart[0]["weight"][0, 0] == 0.5 and METHODS["sft"].lean
