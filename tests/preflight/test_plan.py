"""The preflight: everything we ship can be planned, quickly and without torch; what does not fit gets settings that do."""

import json
import subprocess
import sys

import pytest

from rlhf.config import REPO, options
from rlhf.preflight.plan import count_rows, count_steps, lines, remedy, resolve
from tests.doors import HEAVY, imported

HUB = ["dataset=ultrafeedback", "batch_size=16", "method.start_from=null", "hardware=gpu_24gb"]
DPO = ["method=dpo", "model=qwen3_8b", *HUB, "hardware.memory_gb=11"]
PPO = ["method=ppo", "model=llama3.1_8b", "method.reward_model=org/name", *HUB]
FULL = [
    "model=llama3.1_8b",
    "dataset=ultrachat",
    "adapter=none",
    "quantization=none",
    "evaluation.prompts=0",
    *HUB[-1:],
]


def test_every_recipe_can_be_planned(tmp_path):
    stages, known = options("recipes"), 0
    for stage in stages:
        plan = resolve([f"recipes={stage}", f"run.root={tmp_path}"])
        told = "\n".join(lines(plan))
        assert plan.gigabytes > 0.5 and "| total" in told and all(f"| {moment}" in told for moment in plan.moments), (
            stage
        )
        known += "steps    counted" not in told
    print(f"{len(stages)} stages planned, the steps of {known} known without a download")
    assert len(stages) == len(list((REPO / "recipes").rglob("*.yaml"))) >= 36 and known >= 27


def test_a_plan_loads_no_torch(door):
    code = (
        "import sys; sys.path.insert(0, 'src'); import rlhf.preflight.plan as p; given = ['recipes=zephyr-7b/ppo', 'hardware.memory_gb=11']; "
        "plan = p.resolve(given); list(p.lines(plan)); p.remedy(given, plan); "
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'peft', 'bitsandbytes'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
    for arguments, code in ((["hardware=gpu_80gb"], 0), (["hardware=gpu_24gb", "hardware.memory_gb=11"], 5)):
        done = door("plan.py", "recipes=zephyr-7b/ppo", *arguments, PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == code, done.stdout + done.stderr
        for word in (
            "policy",
            "reference",
            "reward",
            "value",
            "activations",
            "logits",
            "KV cache",
            "optimizer",
            "625 updates",
        ):
            assert word in done.stdout
        assert "hydra" in imported(done) and not HEAVY & imported(done)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (DPO, {"hardware.micro_batch_size"}),
        ([*PPO, "hardware.memory_gb=11"], {"evaluation.batch_size"}),
        ([*DPO, "hardware.memory_gb=8"], {"hardware.micro_batch_size", "dataset.max_length"}),
        (FULL, {"adapter", "quantization"}),
    ],
)
def test_what_does_not_fit_gets_settings_that_do(overrides, keys, tmp_path):
    overrides = [*overrides, f"run.root={tmp_path}"]
    plan = resolve(overrides)
    settings, better = remedy(overrides, plan)
    print(settings, f"{plan.gigabytes:.2f} GB to {better.gigabytes:.2f} GB")
    assert not plan.fits and keys <= {setting.partition("=")[0] for setting in settings}, settings
    applied = resolve([*overrides, *settings])  # as a user would type them
    assert applied.fits and applied.gigabytes == better.gigabytes


def test_the_door_says_what_to_change_and_leaves_with_5(door):
    done = door("plan.py", *DPO)
    assert done.returncode == 5 and ": does not fit hardware.memory_gb=11" in done.stdout, done.stdout + done.stderr
    (fix,) = (line for line in done.stdout.splitlines() if line.startswith("fix"))
    again = door("plan.py", *DPO, *(word for word in fix.split() if "=" in word))
    assert again.returncode == 0 and ": fits hardware.memory_gb=11" in again.stdout, again.stdout
    never = door("plan.py", *DPO, "hardware.memory_gb=4")
    assert never.returncode == 5 and "no fix   a smaller model, or more memory" in never.stdout


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["hardware=gpu_99gb"], 2, "did you mean gpu_"),
        (["model.path=org/unknown"], 2, "model.shape={model_type: llama"),
        (["batch_size=30", "hardware.micro_batch_size=4"], 2, "batch_size=28 or batch_size=32"),
        (["modle=support"], 2, "did you mean model"),
        (["recipes=support/sft", "dataset=local_demonstrations", "dataset.path=my.jsonl"], 3, "no such file"),
    ],
)
def test_what_cannot_run_is_refused(door, overrides, code, message):
    done = door("plan.py", *overrides)
    assert done.returncode == code and message in done.stderr and not done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_steps_are_the_trainers(tmp_path):
    """Epochs, a ragged last batch and accumulation, against what a trainer really does."""
    from rlhf.benchmark.planned import stage_of, trainer_of
    from rlhf.benchmark.workload import SIZES, make
    from rlhf.process import quiet

    quiet()
    work = make(tmp_path, SIZES["tiny"], "cpu")
    for rows, epochs in ((11, 2), (9, 1.5)):
        stage = stage_of(work, "sft", "batch_size=4", f"method.args.num_train_epochs={epochs}", "debug.max_steps=null")
        data = work.rows(rows, 6).map(lambda row: {"labels": row["input_ids"]})
        trainer = trainer_of(stage, work.tokenizer(), data)
        trainer.train()
        assert trainer.state.global_step == count_steps(stage, rows), (rows, epochs)


def test_steps_of_ppo_and_of_what_is_not_counted(compose_stage):
    ppo = ["recipes=support/ppo", "batch_size=64"]
    assert (
        count_steps(compose_stage(*ppo, "method.args.total_episodes=200"), None) == 3
    )  # no step on a batch that is not full
    none = compose_stage(*ppo, "method.args.total_episodes=null", "method.args.num_train_epochs=2")
    assert count_steps(none, 2000) == 4000 // 64
    assert count_steps(compose_stage("method.args.packing=true"), 100) is None
    assert count_steps(compose_stage("method.args.max_steps=7"), None) == 7
    assert count_steps(compose_stage("debug=smoke"), None) == 2


@pytest.mark.parametrize(
    ("episodes", "epochs", "told"),
    [(64, 1, "1 update of 1 optimizer step"), (128, 2, "2 updates of 2 optimizer steps")],
)
def test_one_step_is_not_several(tmp_path, episodes, epochs, told):
    ppo = ["recipes=support/ppo", "batch_size=64", f"run.root={tmp_path}", "method.args.num_mini_batches=1"]
    given = [f"method.args.total_episodes={episodes}", f"method.args.num_ppo_epochs={epochs}"]
    assert f"steps    {told}" in list(lines(resolve([*ppo, *given])))


def test_rows_are_counted_where_no_download_is_needed(compose_stage, tmp_path):
    file = tmp_path / "my.jsonl"
    rows = [{"prompt": "a?", "chosen": "b", "rejected": "c"}] * 5 + [{"prompt": "a?", "chosen": "b", "rejected": "b"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = ["method=dpo", "dataset=local_pairs", f"dataset.path={file}"]
    assert count_rows(compose_stage(*local)) == 5  # a pair of equals is none
    assert count_rows(compose_stage(*local, "debug.rows=2")) == 2
    assert count_rows(compose_stage("recipes=support/sft")) == 2400
    assert count_rows(compose_stage("method=dpo", "dataset=ultrafeedback")) == 61135
    assert count_rows(compose_stage("dataset=dolly")) == 15011 * 95 // 100  # train[:95%]
    assert count_rows(compose_stage("method=reward", "dataset=oasst1")) is None
