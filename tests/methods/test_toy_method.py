"""docs/adding.md as it stands: its code blocks go into a copy of this repository, which then trains, is stopped and answers."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from rlhf.config import REPO

BLOCK = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = "METHODS: dict[str, Method] = {\n"
ORPO = {"src/rlhf/methods/orpo.py", "conf/method/orpo.yaml", "src/rlhf/methods/__init__.py"}


@pytest.fixture(scope="module")
def grown(tmp_path_factory, door):
    """A copy of the repository with all that docs/adding.md adds; `files` are those it touched, `run` opens a door there."""
    root, files = tmp_path_factory.mktemp("grown"), {}
    for folder in ("src", "conf", "recipes"):
        shutil.copytree(REPO / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in BLOCK.findall((REPO / "docs/adding.md").read_text()):
        file = root / name
        before = file.read_text() if file.exists() else ""
        files[name] = "changed" if before else "new"
        file.write_text(
            before.replace(TABLE, TABLE + code) if TABLE in before else f"{before}\n\n{code}" if before else code
        )

    def start(script, *arguments, **options):
        return door.start(f"{root}/src/{script}", *arguments, **options)

    def run(script, *arguments, stdin=""):
        done = door(f"{root}/src/{script}", *arguments, stdin=stdin)
        return done.stdout + done.stderr, done.returncode

    return SimpleNamespace(root=root, files=files, start=start, run=run)


def test_a_method_is_three_places(grown):
    assert {name for name in grown.files if "method" in name} == ORPO
    assert grown.files["src/rlhf/methods/__init__.py"] == "changed"
    assert len(grown.files) == 8 and list(grown.files.values()).count("changed") == 3, grown.files


def test_the_tests_that_docs_name_exist():
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (REPO / "docs/adding.md").read_text()))
    assert len(named) >= 7
    for file, name in named:
        assert f"def {name}" in (REPO / file).read_text(), (file, name)


def test_a_new_dataset_and_a_new_model_are_planned(grown, tmp_path):
    rows = [
        {"question": f"How do I return order {i}?", "kept": "I am sorry. Use the label.", "refused": "No."}
        for i in range(20)
    ]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = ("dataset=reviews", f"dataset.path={tmp_path}/reviews.jsonl", "batch_size=2")
    told, code = grown.run(
        "plan.py", "method=dpo", "method.start_from=null", *dataset, "model=smollm3_3b", "hardware=gpu_24gb"
    )
    assert code == 0 and "rows     18 before any is dropped" in told and "steps    9" in told, told
    # 36 layers of 2 * 2048^2 + 2 * 2048 * 512 + 3 * 2048 * 11008, and the embedding of 128256 * 2048
    assert "HuggingFaceTB/SmolLM3-3B: 3,074.9M parameters" in told


def test_a_new_reward_function_scores_and_a_new_judge_decides(grown):
    code = """if True:
        import json, sys
        sys.path.insert(0, "src")
        from pathlib import Path
        from rlhf.evaluation.judges import load_judge
        from rlhf.rewards.functions import RULES
        scores = RULES["close_in_length"].score(["a?"] * 3, ["one two", "one", ""], [{"reference": "x y"}] * 3)
        judge = load_judge("brief", None, None, Path())
        found = judge.compare([{"reply": "ab"}, {"reply": "a"}], [{"reply": "a"}, {"reply": "b"}])
        print(json.dumps([scores, found.outcomes]))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=grown.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1.0, 0.5, 0.0], [0.0, 0.5]]


def test_a_new_method_is_planned_with_a_borrowed_formula(grown):
    stage = (
        "recipe=support/orpo",
        "model.path=HuggingFaceTB/SmolLM3-3B",
        "model=smollm3_3b",
        "method.start_from=null",
    )
    told, code = grown.run("plan.py", *stage, "hardware.memory_gb=200")
    assert code == 0 and "method   orpo: policy on one base" in told, told
    assert "no peak of method=orpo was measured: the formulas are those of method=dpo" in told
    assert " reference " not in told and "steps    " in told


@pytest.mark.parametrize(
    "override, message",
    [
        ("method.args.betta=1", "method.args.betta is not a field of trl.ORPOConfig; did you mean beta"),
        ("method.learn=all", "method.learn=all is about method=sft, not orpo"),
        ("method.reward_model=function:exact_match", "is about method=ppo, not orpo"),
    ],
)
def test_a_new_method_refuses_what_is_not_its_own(grown, override, message, tmp_path):
    local = (f"model.path={tmp_path}", "method.start_from=null")
    told, code = grown.run("train.py", "recipe=support/orpo", *local, override)
    assert code == 2 and message in told, told


def test_a_new_method_expects_only_what_its_row_logs(grown):
    recipe = (grown.root / "recipes/support/orpo.yaml").read_text()
    for metric, code in (("log_odds_ratio", 0), ("log_odds_ratioo", 2)):
        wrong = grown.root / f"recipes/{metric}/orpo.yaml"
        wrong.parent.mkdir()
        wrong.write_text(recipe.replace("held_out_loss:", f"{metric}:"))
        told, left = grown.run("plan.py", f"recipe={metric}/orpo", "model=smollm3_3b", "hardware.memory_gb=200")
        assert left == code and (code == 0 or "did you mean log_odds_ratio" in told), told


@pytest.mark.slow
def test_a_new_method_is_trained_stopped_resumed_evaluated_and_asked(grown, chain, tmp_path):
    """Through the doors that all methods go through: train.py, SIGTERM, pipeline.py, reproduce.py, chat.py."""
    runs = tmp_path / "runs"
    shutil.copytree(chain, runs, ignore=shutil.ignore_patterns("checkpoint-*"))
    folder, settings = (
        runs / "support/orpo",
        ("debug=smoke", f"run.root={runs}", "orpo.debug.max_steps=12", "orpo.debug.rows=24"),
    )
    own = [setting.removeprefix("orpo.") for setting in settings]
    process = grown.start("train.py", "recipe=support/orpo", *own, folder=tmp_path)
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, (tmp_path / "stderr").read_text()
    assert list(folder.glob("checkpoint-*"))
    told, code = grown.run("pipeline.py", "recipe=support", "stages=[orpo]", *settings)
    assert code == 0 and "going on from" in told, told

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 13))
    assert all({"nll_loss", "log_odds_ratio", "rewards/margins", "grad_norm"} <= set(line) for line in trained)
    results = json.loads((folder / "results.json").read_text())
    assert {"train_loss", "held_out_loss", "gold_score", "kl", "eos_rate", "length"} <= set(results)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and {(s["step"], s["set"]) for s in samples} == {(12, "test")}
    assert (folder / "final/adapter_model.safetensors").is_file() and "`orpo`" in (
        folder / "final/README.md"
    ).read_text()

    told, _ = grown.run("reproduce.py", "recipe=support", "check=true", *settings)
    row = next(line for line in told.splitlines() if "| orpo" in line)
    assert (
        "held_out_loss" in row and f"{results['held_out_loss']:.4g}" in row and row.rstrip(" |").endswith("reproduced")
    )
    told, code = grown.run(
        "chat.py", "run=support/orpo", f"run.root={runs}", "max_new_tokens=8", stdin="hello\n/quit\n"
    )
    assert code == 0 and told.count("you> ") == 2, told
