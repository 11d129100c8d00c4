"""The chain of stages: what a run leaves, what the first step must be, what is skipped, resumed and refused."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import yaml

from rlhf import files
from rlhf.config import REPO, compose_config, read_stage, to_stage
from rlhf.runs import record
from tests.faults.tiny import SMALL

pytestmark = pytest.mark.slow
STAGES = ("base", "sft", "reward", "dpo", "ppo")
METHOD_OF = {"base": "sft"}
BELOW = {
    "base": "none",
    "sft": "`support/base`",
    "reward": "`support/base`, `support/sft`",
    "dpo": "`support/base`, `support/sft`",
}
BELOW |= {"ppo": "`support/base`, `support/sft`, `support/reward`"}


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _build(chain, stage_name, *overrides):
    """The trainer of a stage, on the finished stages of the chain."""
    from rlhf import methods
    from rlhf.data.prepare import prepare
    from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer

    stage = to_stage(compose_config([f"recipes=support/{stage_name}", "debug=smoke", f"run.root={chain}", *overrides]))
    tokenizer = load_tokenizer(stage)
    data = prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer))
    stage.run.stage = f"scratch-{stage_name}"
    return stage, tokenizer, methods.build(stage, tokenizer, data), data


@pytest.mark.parametrize("name", STAGES)
def test_a_run_folder_holds_what_the_design_says(chain, name):
    folder = chain / "support" / name
    for file in (
        "config.yaml",
        "trainer_args.json",
        "run.json",
        "data.json",
        "metrics.jsonl",
        "results.json",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    ):
        assert (folder / file).is_file(), file
    weights = "model.safetensors" if name == "base" else "adapter_model.safetensors"
    for file in (weights, "tokenizer.json", "chat_template.jinja", "README.md"):
        assert (folder / "final" / file).is_file(), file
    assert [path.parent.name for path in folder.rglob("README.md")] == ["final"], "one card, ours"
    _, head, card = (folder / "final/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0" and yaml.safe_load(head)["tags"] == [
        "trl",
        METHOD_OF.get(name, name),
    ]
    numbers = json.loads((folder / "results.json").read_text())
    assert all(f"| {key} | {value:.4g} |" in card for key, value in numbers.items() if isinstance(value, float))
    assert f"Weights it builds on, in order: {BELOW[name]}. " in card and f"recipe=support/{name}" in card
    assert (folder / "samples.jsonl").is_file() == (name != "reward")
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "finished" and run["seed"] == 1 and run["seconds"] > 0 and run["peak_memory_mb"] > 100
    assert {"torch", "trl", "peft", "bitsandbytes"} <= set(run["versions"]) and run["command"][:2] == [
        "python",
        "src/train.py",
    ]
    assert [entry["stage"] for entry in run["lineage"]] == {
        "base": [],
        "sft": ["support/base"],
        "reward": ["support/base", "support/sft"],
        "dpo": ["support/base", "support/sft"],
        "ppo": ["support/base", "support/sft", "support/reward"],
    }[name]
    for role, ledger in json.loads((folder / "data.json").read_text())["splits"].items():
        made = 6 if name in ("reward", "dpo") and role != "test" else 1  # pairs of four ranked replies; equals are ties
        found = ledger["kept"] + sum(ledger["dropped"].values()) + ledger["ties"]
        assert ledger["read"] > 0 and ledger["read"] * made == found
    assert list(folder.glob("*.png"))


def test_reward_and_dpo_were_trained_on_the_same_pairs(chain):
    ledgers = [json.loads((chain / "support" / name / "data.json").read_text())["splits"] for name in ("reward", "dpo")]
    assert ledgers[0]["train"]["fingerprint"] == ledgers[1]["train"]["fingerprint"]
    assert ledgers[0]["eval"]["fingerprint"] == ledgers[1]["eval"]["fingerprint"]


def test_the_report_has_the_promised_keys(chain):
    found = json.loads((chain / "support" / "report.json").read_text())
    for name in ("sft", "dpo", "ppo"):
        keys = {
            "gold_score",
            "win_rate_vs_sft",
            "win_rate_ci",
            "reward_score",
            "kl",
            "length",
            "eos_rate",
            "distinct_2",
        }
        assert keys <= set(found[name]), keys - set(found[name])
        assert set(found[name]["gold_by_situation"]) == {"kind", "honest", "clarifying", "safe", "brief"}
    assert {"accuracy_true", "accuracy_noisy"} <= set(found["reward"])
    text = (chain / "support" / "report.md").read_text()
    assert all(f"- {name}: " in text for name in ("base", "sft", "dpo", "ppo"))


def test_dpo_starts_at_ln_2(chain):
    _, _, trainer, _ = _build(chain, "dpo", "method.args.loss_type=[sigmoid]", "method.args.loss_weights=null")
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kwise", [True, False])
def test_reward_starts_at_ln_2_with_a_zeroed_head(chain, kwise):
    import torch

    _, _, trainer, _ = _build(chain, "reward", f"method.kwise={kwise}", "method.args.center_rewards_coefficient=null")
    for name, parameter in trainer.model.named_parameters():
        if "score" in name:
            assert parameter.dtype == torch.float32
            parameter.data.zero_()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(math.log(2), abs=1e-6)


def test_ppo_starts_with_kl_0_and_ratio_1(chain):
    """From a real SFT adapter on NF4: the first update's own metrics, before any step has been made."""
    first = _metrics(chain / "support" / "ppo")[0]
    assert first["objective/kl"] == 0.0
    _, _, trainer, _ = _build(chain, "ppo", "method.args.num_ppo_epochs=1", "method.args.num_mini_batches=1")
    trainer.train()
    logs = [log for log in trainer.state.log_history if "val/ratio" in log]
    assert logs[0]["objective/kl"] == 0.0 and logs[0]["val/ratio"] == pytest.approx(1.0, abs=1e-6)


def test_a_reply_has_one_score_everywhere(chain, tmp_path):
    """In the reward stage's own model, after save and load in a new process, and inside PPO."""
    import torch

    stage, tokenizer, trainer, data = _build(chain, "reward")
    from rlhf.models.adapters import fill_adapter

    final = chain / "support" / "reward" / "final"
    head = fill_adapter(trainer.model, "default", final, "final")
    next(p for n, p in trainer.model.named_parameters() if "score" in n and "default" in n).data.copy_(head)
    prompts, replies = data.eval["prompt_ids"][:4], data.eval["chosen_ids"][:4]
    trainer.model.eval()
    with torch.no_grad():
        own = [
            float(trainer.model(input_ids=torch.tensor([p + r])).logits) for p, r in zip(prompts, replies, strict=True)
        ]

    script = tmp_path / "score.py"
    script.write_text(
        "import json, sys; sys.path.insert(0, 'src'); import torch\n"
        "from peft import AutoPeftModelForSequenceClassification\n"
        "from transformers import BitsAndBytesConfig\n"
        f"q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype='float32', llm_int8_skip_modules=['score'])\n"
        f"m = AutoPeftModelForSequenceClassification.from_pretrained({str(final)!r}, num_labels=1, dtype=torch.float32, quantization_config=q).train()\n"
        f"rows = {[p + r for p, r in zip(prompts, replies, strict=True)]!r}\n"
        f"m.config.pad_token_id = {tokenizer.pad_token_id}\n"
        "with torch.no_grad(): print(json.dumps([float(m(input_ids=torch.tensor([row])).logits) for row in rows]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(own, abs=1e-5)

    _, _, ppo, _ = _build(chain, "ppo")
    assert ppo.loop.scorer(prompts, replies, []).tolist() == pytest.approx(own, abs=1e-5)


def test_a_second_pipeline_skips_everything_and_a_changed_stage_runs_again(chain, door, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(chain, root)
    arguments = ("pipeline.py", "recipe=support", "debug=smoke", *SMALL, f"run.root={root}")
    again = door(*arguments)
    assert again.returncode == 0 and again.stdout.count("is finished and unchanged") == 5, again.stdout
    changed = door(*arguments, "ppo.method.args.kl_coef=0.2")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert (
        changed.stdout.count("is finished and unchanged") == 4
        and "support/ppo runs again: method.args.kl_coef 0.15 -> 0.2 changed" in changed.stdout
    )
    before = json.loads((root / "support/reward/run.json").read_text())
    before["id"] = "another"
    (root / "support/reward/run.json").write_text(json.dumps(before))
    follow = door(*arguments, "stages=[ppo]", "ppo.method.args.kl_coef=0.2")
    assert "support/ppo runs again: stage:reward changed" in follow.stdout


def test_runs_that_were_moved_are_read_where_they_lie(chain, door, tmp_path):
    root = tmp_path / "elsewhere"
    shutil.copytree(chain, root, ignore=shutil.ignore_patterns("checkpoint-*"))
    for config in root.glob("support/*/config.yaml"):
        told = config.read_text()
        assert str(chain) in told
        config.write_text(told.replace(str(chain), "runs/as/they/were"))
        run = json.loads((config.parent / "run.json").read_text())
        run["files"] = files.listing(config.parent, *record.VERIFIED)
        (config.parent / "run.json").write_text(json.dumps(run))
    again = door("pipeline.py", "recipe=support", "debug=smoke", *SMALL, f"run.root={root}")
    assert again.returncode == 0 and again.stdout.count("is finished and unchanged") == 5, again.stdout + again.stderr
    said = door("chat.py", "run=support/ppo", f"run.root={root}", "max_new_tokens=8", stdin="hello\n")
    assert said.returncode == 0, said.stderr
    stage = read_stage(root / "support/ppo")
    weights = [stage.model.path, stage.method.start_from, *stage.method.reward_models]
    assert stage.run.root == str(root) and weights == [
        f"{root}/support/{name}/final" for name in ("base", "sft", "reward")
    ]


def test_a_finished_run_is_not_overwritten(chain, door):
    folder = chain / "support" / "sft"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for more in (
        [],
        ["seed=7"],
        ["method.args.learning_rate=fast"],
        ["hardware.micro_batch_size=3", "run.overwrite=true"],
        ["modle=x"],
    ):
        done = door("train.py", "recipes=support/sft", "debug=smoke", f"run.root={chain}", *more)
        assert done.returncode == 2 and len(done.stderr.splitlines()) <= 6, (more, done.stderr)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_the_same_seed_gives_the_same_weights_and_another_does_not(chain, door, tmp_path):
    from safetensors.torch import load_file

    found = [load_file(chain / "support/sft/final/adapter_model.safetensors")]
    for name, seed in (("again", 1), ("other", 2)):
        root = tmp_path / name
        shutil.copytree(chain / "support/base", root / "support/base")
        assert (
            door("train.py", "recipes=support/sft", "debug=smoke", f"run.root={root}", f"seed={seed}").returncode == 0
        )
        found.append(load_file(root / "support/sft/final/adapter_model.safetensors"))
    assert all(found[0][key].equal(found[1][key]) for key in found[0])
    assert any(not found[0][key].equal(found[2][key]) for key in found[0])


def test_full_fine_tuning_goes_through_all_stages(door, tmp_path):
    """A stage at a time, and the pipeline knows them as its own."""
    whole = ("debug=smoke", f"run.root={tmp_path}", "adapter=none", "quantization=none")
    small = [word.removeprefix("base.") for word in SMALL]
    stages = [("train.py", f"recipes=support/{name}", *(small if name == "base" else [])) for name in STAGES]
    for command in (*stages, ("pipeline.py", "recipe=support", *SMALL)):
        done = door(*command, *whole)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is finished and unchanged") == len(STAGES)
    assert all((tmp_path / "support" / name / "final/model.safetensors").is_file() for name in STAGES)


def test_chat_answers_alone_and_side_by_side(chain, door):
    alone = door(
        "chat.py", "run=support/sft", f"run.root={chain}", "max_new_tokens=8", stdin="hello\n/new\nhello\n/quit\n"
    )
    assert alone.returncode == 0 and alone.stdout.count("you> ") == 4, alone.stderr
    both = door("chat.py", "run=support/sft,support/dpo", f"run.root={chain}", "max_new_tokens=8", stdin="hello\n")
    assert both.returncode == 0 and "support/sft" in both.stdout and " │ " in both.stdout, both.stderr


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["chat.py", "run=support/pppo"], 2, "did you mean support/ppo"),
        (["chat.py", "run=support/reward"], 2, "is a reward model"),
        (["chat.py", "hello"], 2, "is not key=value"),
        (["report.py", "recipe=nothing"], 2, "has no finished stage"),
        (["pipeline.py", "recipe=suport"], 2, "did you mean support"),
        (["pipeline.py", "recipe=support", "stages=[dppo]"], 2, "did you mean ppo, dpo"),
        (["pipeline.py", "recipe=support", "method.args.betta=1"], 2, "no stage of support knows this key"),
        (["pipeline.py", "recipe=support", "dpo.method.args.bta=1"], 2, "support/dpo: method.args.bta is not a field"),
        (["train.py", "recipes=support/sft", "run.stage=x", "dataset.path=nowhere.jsonl"], 3, "no such file"),
        (["train.py", "recipes=support/sft", "run.stage=x", "dataset.columns.prompt=promt"], 3, "did you mean prompt"),
        (["train.py", "recipes=support/sft", "run.stage=x", "dataset.max_length=2"], 3, "rows is left"),
        (["train.py", "recipes=support/sft", "run.stage=x", "hardware.device=cuda"], 2, "fix: hardware=cpu"),
        (["train.py", "recipes=support/sft", "run.stage=x", "model.pad_token='<|end|>'"], 2, "equals the EOS token"),
        (["train.py", "recipes=support/sft", "run.stage=x", "model.path=./nowhere"], 2, "no such folder"),
    ],
)
def test_doors_refuse_bad_input(chain, door, arguments, code, message):
    root = {"pipeline.py": [], "train.py": [f"run.root={chain}", "debug=smoke"]}.get(
        arguments[0], [f"run.root={chain}"]
    )
    done = door(*arguments, *root)
    assert done.returncode == code and message in done.stderr and len(done.stderr.splitlines()) <= 6, done.stderr
    assert not (chain / "support/x").exists(), "a refused run leaves nothing behind"


def test_a_sweep_makes_a_run_a_job(chain, door, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(chain, root)
    settings = ("recipes=support/dpo", "debug=smoke", f"run.root={root}", "-m", "method.args.beta=0.05,0.1", "seed=1,2")
    done = door("train.py", *settings)
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in root.glob("support/dpo-sweep/*/run.json"))
    assert len(runs) == 4
    betas = {json.loads((run / "trainer_args.json").read_text())["beta"] for run in runs}
    assert betas == {0.05, 0.1}
    again = door("train.py", *settings)
    assert again.returncode == 0 and again.stdout.count("is finished and unchanged") == 4, again.stderr


def test_no_token_reaches_a_file(chain, door, tmp_path):
    shutil.copytree(chain / "support/base", tmp_path / "support/base")
    secret = "hf_" + "a" * 30
    settings = ("train.py", "recipes=support/sft", "debug=smoke", f"run.root={tmp_path}")
    refused = door(*settings, f"method.args.hub_token={secret}")
    assert refused.returncode == 2 and "HF_TOKEN" in refused.stderr
    done = door(*settings, f"dataset.revision={secret}", trap=("environment", "HF_TOKEN", secret))
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "support/sft").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def test_a_few_demonstrations_are_learned_by_heart_and_it_shows(door, tmp_path):
    """debug=overfit: the training loss goes to zero while the held-out loss rises, in the metrics and in the results."""
    root = tmp_path / "runs"
    whole = ("adapter=none", "quantization=none", "evaluation.prompts=0", f"run.root={root}")
    for stage, how in (("base", "smoke"), ("sft", "overfit")):
        done = door("train.py", f"recipes=support/{stage}", f"debug={how}", *whole)
        assert done.returncode == 0, done.stderr
    lines = _metrics(root / "support" / "sft")
    losses, held_out = ([line[key] for line in lines if key in line] for key in ("loss", "eval_loss"))
    assert losses[-1] < 0.1 * losses[0]
    assert held_out[-1] > min(held_out) + 0.1 and held_out[-1] > 10 * losses[-1]
    results = json.loads((root / "support" / "sft" / "results.json").read_text())
    assert results["held_out_loss"] == held_out[-1] and results["train_loss"] == losses[-1]
