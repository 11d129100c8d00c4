"""What a run saves: complete checkpoints that a run continues from, weights that others load, and when it stops instead."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from rlhf import files
from rlhf.errors import NonFinite
from tests.ppo.helpers import StopAt, same, timeless, weights
from tests.workshop import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_resume_continues_bit_for_bit(workshop, make_trainer, tmp_path, kind):
    def build(folder, **options):
        roles = workshop.kind(kind)
        common = {"kl_target": 1.0, "kl_horizon": 100, "reward_normalization": "running", "warmup_steps": 2}
        return make_trainer(
            roles, output_dir=str(tmp_path / folder), save_steps=2, save_strategy="steps", **common, **options
        )

    whole = build("whole")
    whole.train()
    broken = build("broken", callbacks=[StopAt(2)])
    broken.train()
    torch.manual_seed(99)
    again = build("broken")
    result = again.train(resume_from_checkpoint=True)
    assert result.global_step == 4
    assert timeless(again) == timeless(whole)
    assert same(weights(again), weights(whole))
    assert again.loop.kl_controller == whole.loop.kl_controller and again.loop.moments == whole.loop.moments


def test_checkpoints_are_complete_or_absent(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    run = tmp_path / "run"
    assert [p.name for p in files.checkpoints(run)] == ["checkpoint-3", "checkpoint-4"]
    assert not list(run.glob(".*")) and not list(run.rglob("*.bin")) and not list(run.rglob("*.pt"))
    weights_file = run / "checkpoint-4" / "adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    assert [p.name for p in files.checkpoints(run)] == ["checkpoint-3"]
    with pytest.raises(
        ValueError,
        match=r"resume_from_checkpoint=\S+: is not a complete checkpoint: .* were written\n  fix: one that holds the file",
    ):
        make_trainer().train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_checkpoint_cut_short_leaves_the_last_one(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(save_strategy="steps", save_steps=1)

    def fail(*_):
        if trainer.state.global_step == 2:
            raise OSError("disk full")

    monkeypatch.setattr("rlhf.ppo.checkpoint.save_random_states", fail)
    with pytest.raises(OSError, match="disk full"):
        trainer.train()
    assert [p.name for p in files.checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_resume_refuses_other_prompts(workshop, make_trainer, prompts):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(
        ValueError, match=r"resume_from_checkpoint=\S+: belongs to another run: prompts was 12, is 9\n  fix: "
    ):
        make_trainer(dataset=prompts.select(range(9))).train(resume_from_checkpoint=True)


def test_saved_policy_loads_with_peft(workshop, make_trainer, tmp_path):
    roles = workshop.roles()
    trainer = make_trainer(roles, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    ids = torch.tensor([[5, 6, 7, 8]])
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32)
    with torch.no_grad(), roles.policy.active():
        assert torch.allclose(loaded(ids).logits, roles.policy.model(ids).logits, atol=1e-6)
    value = PeftModel.from_pretrained(workshop.load_reward(), tmp_path / "final" / "value")
    with torch.no_grad(), roles.value.active():
        ours = roles.value.head(roles.value.hidden(ids))[0, -1]
        assert torch.allclose(value(ids).logits[0, 0], ours, atol=1e-6)


def test_saved_full_models_load_with_transformers(workshop, make_trainer, tmp_path):
    trainer = make_trainer(workshop.kind("full"), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    ids = torch.tensor([[5, 6, 7, 8]])
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final" / "value", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(policy(ids).logits, trainer.policy.model(ids).logits)
        ours = trainer.value.head(trainer.value.hidden(ids))[0, -1]
        assert torch.allclose(value(ids).logits[0, 0], ours, atol=1e-6)


def spoil_reward(trainer, bad):
    trainer.loop.scorer = lambda prompts, replies, rows: torch.full((len(prompts),), bad)


def spoil_loss(name):
    def spoil(trainer, bad, monkeypatch):
        from rlhf.ppo import objective

        terms = getattr(objective, name)
        spoiled = lambda *a: replace(made := terms(*a), loss=made.loss * bad)  # noqa: E731
        monkeypatch.setattr(objective, name, spoiled)

    return spoil


def spoil_gradient(role):
    def spoil(trainer, bad):
        getattr(trainer, role).trainable()[0][1].register_hook(lambda gradient: gradient * bad)

    return spoil


SPOILS = {
    "reward/mean": spoil_reward,
    "loss/policy_avg": spoil_loss("policy_terms"),
    "loss/value_avg": spoil_loss("value_terms"),
    "policy/grad_norm": spoil_gradient("policy"),
    "value/grad_norm": spoil_gradient("value"),
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", SPOILS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stops_the_run_before_the_step(workshop, make_trainer, monkeypatch, kind, metric, bad):
    """In update 2, with checkpoint-1 behind it: that stays as it was, byte for byte, and so do the weights."""
    more = {"monkeypatch": monkeypatch} if "loss" in metric else {}

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.files = read(run)
                self.weights = weights(trainer)
                SPOILS[metric](trainer, bad, **more)

    def read(folder):
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    spoil = Spoil()
    few = {"num_ppo_epochs": 1, "num_mini_batches": 1, "response_length": 4, "max_steps": 2}
    trainer = make_trainer(workshop.kind(kind), callbacks=[spoil], save_strategy="steps", save_steps=1, **few)
    run = Path(trainer.args.output_dir)
    with pytest.raises(NonFinite, match=rf"{metric} is (nan|-?inf) in update 2; .* resume from it") as caught:
        trainer.train()
    assert (caught.value.metric, caught.value.update) == (metric, 2)
    assert same(spoil.weights, weights(trainer))
    assert read(run) == spoil.files and [p.name for p in files.checkpoints(run)] == ["checkpoint-1"]
