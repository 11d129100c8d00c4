"""The whole loop on a tiny model: invariants of the first step, steps counted, roles kept apart, runs that resume."""

import hashlib
import json

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from rlhf.config import REPO
from rlhf.ppo.metrics import METRICS, page
from tests.ppo.helpers import StopAt, history, same, timeless, weights
from tests.workshop import KINDS


def fingerprint(parameter):
    return hashlib.sha256(parameter.detach().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("kind", [*KINDS, "bf16"])
def test_first_update_starts_at_ratio_one_and_kl_zero(workshop, make_trainer, kind):
    bf16 = kind == "bf16"
    roles = workshop.roles(quantized=True, dtype=torch.bfloat16) if bf16 else workshop.kind(kind)
    trainer = make_trainer(roles, bf16=bf16, activation_checkpointing=not bf16)
    trainer.train()
    assert history(trainer, "objective/kl")[0] == 0.0
    assert history(trainer, "objective/kl_k3")[0] == 0.0
    assert history(trainer, "policy/ratio_max_first") == [1.0] * 4
    assert history(trainer, "policy/approxkl_avg")[0] > 0
    assert history(trainer, "objective/kl_k3")[-1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_policy_and_value_change(workshop, make_trainer, kind):
    """The bytes of the base, the reference, the reward and its head are those of before; all of policy and value move."""
    roles = workshop.kind(kind)
    parts = {role.name: role for role in (roles.policy, roles.reference, roles.reward, roles.value)}
    owned = {id(p) for role in parts.values() for _, p in role.named_parameters()}
    everything = {f"{name}: {n}": p for name, role in parts.items() for n, p in role.named_parameters()}
    everything |= {f"base: {n}": p for n, p in roles.policy.model.named_parameters() if id(p) not in owned}
    flags = {n: p.requires_grad for n, p in everything.items()}
    before = {n: fingerprint(p) for n, p in everything.items()}
    trainer = make_trainer(roles, activation_checkpointing=True)
    trainer.train()
    changed = {n for n, p in everything.items() if fingerprint(p) != before[n]}
    assert changed == {n for n in everything if n.startswith(("policy", "value"))}
    assert {n.partition(":")[0] for n in everything} == {*parts} | ({"base"} if roles.peft else set())
    assert {n: p.requires_grad for n, p in everything.items()} == flags


def test_minibatches_make_optimizer_steps(make_trainer):
    trainer = make_trainer(num_ppo_epochs=3, num_mini_batches=4, max_steps=2)
    steps, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (steps.append(1), step(*a, **k))
    trainer.train()
    assert len(steps) == 2 * 3 * 4
    assert history(trainer, "update/optimizer_steps") == [12.0, 12.0]


@pytest.mark.parametrize("kind", KINDS)
def test_run_is_reproducible_and_ignores_global_randomness(workshop, make_trainer, kind):
    runs = []
    for seed in (5, 6):
        roles = workshop.kind(kind)
        torch.manual_seed(seed)
        runs.append(make_trainer(roles, max_steps=2))
        runs[-1].train()
    first, second = runs
    assert timeless(first) == timeless(second)
    assert same(weights(first), weights(second))


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


def test_a_value_can_be_frozen(make_trainer):
    trainer = make_trainer(value_learning_rate=0.0, max_steps=1)
    before = {n: p.detach().clone() for n, p in trainer.value.trainable()}
    trainer.train()
    assert all(torch.equal(before[n], p) for n, p in trainer.value.trainable())
    assert history(trainer, "lr_value") == [0.0] and history(trainer, "lr")[0] > 0


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
    assert [row["step"] for row in rows] == [2, 2, 2, 4, 4, 4] and len({row["prompt"] for row in rows}) == 3
    for step in (2, 4):
        logged = next(r for r in trainer.state.log_history if r["step"] == step and "eval_objective/kl" in r)
        some = [row for row in rows if row["step"] == step]
        assert all(isinstance(row["reply"], str) and row["length"] >= len(row["reply"].split()) for row in some)
        for key, name in (("reward", "scores"), ("kl", "kl"), ("length", "length")):
            assert sum(row[key] for row in some) / 3 == pytest.approx(logged[f"eval_objective/{name}"], abs=1e-6)
    trainer.evaluate()
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 6


def test_evaluation_measures_the_kl_at_temperature_one(workshop, make_trainer, prompts):
    found = []
    for temperature in (0.5, 2.0):
        roles = workshop.roles()
        trainer = make_trainer(roles, eval_dataset=prompts.select(range(3)), temperature=temperature)
        with torch.no_grad():
            for _, parameter in roles.policy.trainable():
                parameter.mul_(1.5)
        found.append({k: v for k, v in trainer.evaluate().items() if "runtime" not in k})
    assert found[0] == found[1] and found[0]["eval_objective/kl_k3"] > 0


def test_the_best_checkpoint_comes_back_at_the_end(workshop, make_trainer, prompts):
    calls = []

    def first_is_best(prompts, replies, rows):
        calls.append(len(prompts))
        return torch.full((len(prompts),), -float(len(calls)))

    roles, seen = workshop.roles(), {}
    roles.reward = first_is_best

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen[state.global_step] = weights(trainer)

    trainer = make_trainer(
        roles, eval_dataset=prompts.select(range(2)), callbacks=[Look()], max_steps=3, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="eval_objective/scores", greater_is_better=True,
        **dict.fromkeys(("eval_strategy", "save_strategy"), "steps"), **dict.fromkeys(("eval_steps", "save_steps"), 1),
    )  # fmt: skip
    trainer.train()
    assert sorted(seen) == [1, 2, 3] and not same(seen[1], seen[3])
    assert same(weights(trainer), seen[1]) and trainer.state.best_model_checkpoint.endswith("checkpoint-1")


def test_every_logged_number_is_defined_and_every_definition_is_logged(workshop, make_trainer, prompts):
    trainer = make_trainer(eval_dataset=prompts.select(range(2)), eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    logged = {key for row in trainer.state.log_history for key in row} - {"step", "epoch"}  # transformers' own
    assert logged == set(METRICS) and len(METRICS) >= 60
    assert all(text.endswith(".") for text in METRICS.values())
    assert (REPO / "docs/ppo_metrics.md").read_text() == page(), "python -m rlhf.ppo.metrics > docs/ppo_metrics.md"


def test_function_scorer_sees_texts_and_columns(workshop, make_trainer):
    from rlhf.rewards.scorers import FunctionScorer

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
