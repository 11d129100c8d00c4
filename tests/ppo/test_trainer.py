"""The whole loop on a tiny model: invariants of the first step, steps counted, roles kept apart, runs that resume."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from rlhf.ppo import checkpoint
from rlhf.ppo.options import NonFinite

TIMES = ("time/", "memory/", "eps", "eval_runtime")


def history(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def timeless(trainer):
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in trainer.state.log_history]


def fingerprints(peft):
    """A hash of every parameter, by name."""
    return {
        n: hashlib.sha256(p.detach().view(torch.uint8).numpy().tobytes()).hexdigest()
        for n, p in peft.named_parameters()
    }


def weights(trainer):
    parts = [*trainer.policy.trainable(), *trainer.value.trainable()]
    return {f"{i}/{name}": p.detach().clone() for i, (name, p) in enumerate(parts)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def full_models(workshop):
    reward, value = workshop.load_reward(), workshop.load_reward()
    return SimpleNamespace(policy=workshop.load(), reference=None, reward=reward, value=value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_update_starts_at_ratio_one_and_kl_zero(workshop, make_trainer, dtype):
    roles = workshop.roles(quantized=True, dtype=dtype)
    trainer = make_trainer(roles, bf16=dtype == torch.bfloat16, activation_checkpointing=dtype == torch.float32)
    trainer.train()
    assert history(trainer, "objective/kl")[0] == 0.0
    assert history(trainer, "objective/kl_k3")[0] == 0.0
    assert history(trainer, "policy/ratio_max_first") == [1.0] * 4
    assert history(trainer, "policy/approxkl_avg")[0] > 0
    assert history(trainer, "objective/kl_k3")[-1] > 0


def test_first_step_invariants_of_full_models(workshop, make_trainer):
    trainer = make_trainer(full_models(workshop))
    trainer.train()
    assert history(trainer, "objective/kl")[0] == 0.0
    assert history(trainer, "policy/ratio_max_first") == [1.0] * 4


def test_only_policy_and_value_change(workshop, make_trainer):
    roles = workshop.roles(quantized=True)
    flags = {n: p.requires_grad for n, p in roles.peft.named_parameters()}
    before, heads = (
        fingerprints(roles.peft),
        (roles.reward.head.linear.weight.clone(), roles.value.head.linear.weight.clone()),
    )
    trainer = make_trainer(roles, activation_checkpointing=True)
    trainer.train()
    changed = {n for n, digest in fingerprints(roles.peft).items() if digest != before[n]}
    assert changed and all(".policy." in n or ".value." in n for n in changed)
    assert {n for n in before if ".policy." in n or ".value." in n} == changed
    assert {n: p.requires_grad for n, p in roles.peft.named_parameters()} == flags
    assert torch.equal(roles.reward.head.linear.weight, heads[0])
    assert not torch.equal(roles.value.head.linear.weight, heads[1])


def test_minibatches_make_optimizer_steps(make_trainer):
    trainer = make_trainer(num_ppo_epochs=3, num_mini_batches=4, max_steps=2)
    steps, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (steps.append(1), step(*a, **k))
    trainer.train()
    assert len(steps) == 2 * 3 * 4
    assert history(trainer, "update/optimizer_steps") == [12.0, 12.0]


def test_run_is_reproducible_and_ignores_global_randomness(workshop, make_trainer):
    torch.manual_seed(5)
    first = make_trainer()
    first.train()
    torch.manual_seed(6)
    second = make_trainer()
    second.train()
    assert timeless(first) == timeless(second)
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("kind", ["adapters", "full"])
def test_resume_continues_bit_for_bit(workshop, make_trainer, tmp_path, kind):
    def build(folder, **options):
        roles = workshop.roles() if kind == "adapters" else full_models(workshop)
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


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_checkpoints_are_complete_or_absent(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    run = tmp_path / "run"
    assert [p.name for p in checkpoint.checkpoints(run)] == ["checkpoint-3", "checkpoint-4"]
    assert not list(run.glob(".*")) and not list(run.rglob("*.bin")) and not list(run.rglob("*.pt"))
    weights_file = run / "checkpoint-4" / "adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    assert [p.name for p in checkpoint.checkpoints(run)] == ["checkpoint-3"]
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        make_trainer().train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_checkpoint_cut_short_leaves_the_last_one(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(save_strategy="steps", save_steps=1)

    def fail(*_):
        if trainer.state.global_step == 2:
            raise OSError("disk full")

    monkeypatch.setattr("rlhf.ppo.resume.checkpoint.save_random_states", fail)
    with pytest.raises(OSError, match="disk full"):
        trainer.train()
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_resume_refuses_other_prompts(workshop, make_trainer, prompts):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(ValueError, match="belongs to another run: prompts was 12, is 9"):
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


def test_generation_config_stays_and_does_not_matter(workshop, make_trainer, tmp_path):
    roles = workshop.roles()
    config = roles.policy.model.generation_config
    config.repetition_penalty, config.eos_token_id = 1.3, [2, 3]
    before = config.to_dict()
    trainer = make_trainer(roles, max_steps=1)
    assert trainer.loop.eos_ids == (2, 3)
    trainer.train()
    assert roles.policy.model.generation_config.to_dict() == before
    assert history(trainer, "policy/ratio_max_first") == [1.0]
    assert history(trainer, "mismatch/rollout_vs_train_mean_abs")[0] < 1e-5


class Spoil(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.trainer.loop.scorer = lambda prompts, replies, rows: torch.full((len(prompts),), float("nan"))


def test_nan_reward_stops_before_the_step(make_trainer):
    spoil = Spoil()
    trainer = spoil.trainer = make_trainer(callbacks=[spoil], save_strategy="steps", save_steps=1)
    with pytest.raises(NonFinite, match="reward/mean is nan in update 2") as caught:
        trainer.train()
    assert (caught.value.metric, caught.value.update) == ("reward/mean", 2)
    stored = load_file(checkpoint.checkpoints(Path(trainer.args.output_dir))[-1] / "adapter_model.safetensors")
    assert all(torch.isfinite(t).all() for t in stored.values())
    assert all(torch.isfinite(p).all() for _, p in trainer.policy.trainable())


def test_infinite_gradient_stops_before_the_step(make_trainer):
    trainer = make_trainer()
    before = weights(trainer)
    parameter = trainer.policy.trainable()[0][1]
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFinite, match="policy/grad_norm"):
        trainer.train()
    assert same(before, weights(trainer))


def test_gradients_are_clipped_separately(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3, vf_coef=1e3, max_steps=1, num_ppo_epochs=1, num_mini_batches=1)
    norms, step = [], trainer.optimizer.step

    def record(*args, **kwargs):
        for role in (trainer.policy, trainer.value):
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for _, p in role.trainable()])))
        return step(*args, **kwargs)

    trainer.optimizer.step = record
    trainer.train()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert history(trainer, "value/grad_norm")[0] > 1


def test_learning_rates(make_trainer):
    trainer = make_trainer(learning_rate=1e-3, value_learning_rate=4e-3, warmup_steps=2, lr_scheduler_type="linear")
    trainer.train()
    assert history(trainer, "lr") == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    assert history(trainer, "lr_value") == pytest.approx([2e-3, 4e-3, 4e-3, 2e-3])
    assert [group["eps"] for group in trainer.optimizer.param_groups] == [1e-5, 1e-5]


def test_value_warmup_leaves_the_policy_alone(make_trainer):
    trainer = make_trainer(value_warmup_updates=1, max_steps=1)
    before = {n: p.detach().clone() for n, p in trainer.policy.trainable()}
    trainer.train()
    assert all(torch.equal(before[n], p) for n, p in trainer.policy.trainable())
    assert history(trainer, "update/value_only") == [1.0]


def test_update_stops_early_on_kl(make_trainer):
    trainer = make_trainer(max_update_kl=1e-6, learning_rate=1e-2, max_steps=1)
    trainer.train()
    assert history(trainer, "update/stopped_early") == [1.0]
    assert history(trainer, "update/optimizer_steps") == [1.0]


def test_callback_stops_the_run(make_trainer):
    trainer = make_trainer(callbacks=[StopAt(1)])
    assert trainer.train().global_step == 1


def test_evaluation_runs_on_schedule(make_trainer, prompts, tmp_path):
    held_out = prompts.select(range(3))
    trainer = make_trainer(eval_dataset=held_out, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "eval_objective/scores" in row] == [2, 4]
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {"prompt", "reply", "score", "kl", "length", "step"} <= rows[0].keys()
    trainer.evaluate()
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 6


def test_function_scorer_sees_texts_and_columns(workshop, make_trainer):
    from rlhf.ppo.scoring import FunctionScorer

    seen = []

    def longest(prompts, replies, rows):
        seen.extend((p, row["answer"]) for p, row in zip(prompts, rows, strict=True))
        return [float(len(reply.split())) for reply in replies]

    roles = workshop.roles()
    roles.reward = FunctionScorer(longest, workshop.tokenizer)
    trainer = make_trainer(roles, max_steps=1)
    trainer.train()
    assert len(seen) == 8 and all(isinstance(text, str) and answer.isdigit() for text, answer in seen)


def test_learns_to_prefer_low_tokens(workshop, make_trainer):
    roles = workshop.roles()
    roles.reward = lambda prompts, replies, rows: torch.tensor([sum(t < 48 for t in r) / len(r) for r in replies])
    trainer = make_trainer(
        roles,
        dataset=Dataset.from_dict({"input_ids": [[1, 5 + i] for i in range(32)]}),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_mini_batches=1,
        num_ppo_epochs=4,
        max_steps=12,
        response_length=4,
        learning_rate=1e-2,
        kl_coef=0.0,
        eos_token_ids=[],
    )
    trainer.train()
    scores = history(trainer, "objective/scores")
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 0.15
