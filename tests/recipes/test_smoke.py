"""Every stage of every recipe runs here, from loading its rows to saving its weights, and ends in `reproduce`.

The weights are random models of the same architecture with a few thousand parameters, the rows local files with the real schema and the
awkward rows that occur in it; the code is that of a real run. The recipe `support` runs in tests/runs/test_stages.py.
"""

import functools
import json
import re
import shutil
from collections import Counter
from itertools import cycle, islice
from statistics import mean
from typing import Any

import pytest
import torch

from rlhf.config import compose_config, options, to_stage
from rlhf.errors import ConfigError, GuardStop
from rlhf.evaluation.samples import final_samples
from rlhf.methods import METHODS, REPORTED
from rlhf.models.layers import plain_4bit_kernels
from rlhf.reports.recipe import into_readme, report
from rlhf.reports.reproduce import SAVED, check_stated, compare, settle, table
from rlhf.runs.pipeline import Pipeline, stages_of
from rlhf.runs.stage import run_stage
from tests.recipes.rows import laid_out

pytestmark = pytest.mark.slow
RECIPES = sorted({option.partition("/")[0] for option in options("recipes")} - {"support", "support-thumbs"})
# logged only where an annotator knows the truth, or where a PPO stage has held-out prompts
ELSEWHERE = {"gold_score", "known_words"}
ELSEWHERE |= {name for name in METHODS["ppo"].metrics if name.startswith("eval_")}
ORDER = ("sft", "reward", "judge", "dpo", "ppo")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(root, local):
    """`run("zephyr-7b", "sft")`: a stage after those before it, trained once: its method, its overrides, what it logged."""

    @functools.cache
    def train(recipe, name):
        for before in ORDER[: ORDER.index(name)]:
            if before in stages_of(recipe):
                train(recipe, before)
        own = [f"run.root={root}", *local(f"{recipe}/{name}")]
        results = run_stage(compose_config([f"recipes={recipe}/{name}", *own]), own)
        lines = [json.loads(line) for line in (root / recipe / name / "metrics.jsonl").read_text().splitlines()]
        method = to_stage(compose_config([f"recipes={recipe}/{name}", *own])).method.name
        return method, own[1:], set(results).union(*lines)

    return train


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_to_its_verdict(recipe, root, run):
    overrides = [f"run.root={root}"]
    for name in [name for name in ORDER if name in stages_of(recipe)]:
        method, own, _ = run(recipe, name)
        overrides += [f"{name}.{override}" for override in own]
        folder = root / recipe / name
        assert list((folder / "final").glob("*.safetensors")) and (folder / "final/tokenizer.json").is_file()
        _rows_are_accounted_for(folder, method, to_stage(compose_config([f"recipes={recipe}/{name}"])).dataset.path)
    plan = Pipeline(recipe, overrides)
    assert set(plan.order) == set(stages_of(recipe))
    stated = {(name, metric): e for name in plan.order for metric, e in plan.stage(name).expect.items()}
    if REPORTED & {metric for _, metric in stated}:
        report(root / recipe)
    rows = compare(plan)
    assert {(row["stage"], row["metric"]) for row in rows} == set(stated)
    for row in rows:
        elsewhere = row["needs"] is not None or row["benchmark"] is not None
        assert (row["measured"] is None) == elsewhere, row
        told = ("not checked: needs ", "not checked: python src/evaluate.py run=")
        assert row["verdict"] in ("reproduced", "outside") or row["verdict"].startswith(told)
        assert row["metric"] in table(rows)
    assert json.loads((root / recipe / SAVED).read_text())["rows"] == rows
    if stated:
        with pytest.raises(GuardStop):  # of random weights nothing is reproduced
            settle(recipe, rows)
    else:
        with pytest.raises(ConfigError, match="nothing to reproduce"):
            check_stated(plan)


def test_a_report_asks_the_judge_that_no_arm_learned_from(root, run, tmp_path):
    """`evaluation.gold`, of runs that have been moved; the judge is loaded here by the code on its card, without this package."""
    for name in ORDER:
        run("reviews", name)
    shutil.copytree(root / "reviews", tmp_path / "reviews")
    shown = report(tmp_path / "reviews")
    found = json.loads((tmp_path / "reviews/report.json").read_text())
    judge = tmp_path / "reviews/judge/final"
    (code,) = re.findall(r"```python\n(.*?)```", (judge / "README.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(code.replace("PATH/TO/THIS/FOLDER", str(judge)), space)
    model = space["model"].eval()
    plain_4bit_kernels(model)
    gold, samples = {}, {name: final_samples(tmp_path / "reviews" / name) for name in ("sft", "dpo", "ppo")}
    for name, replies in samples.items():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rows = [torch.tensor([reply["prompt_ids"] + reply["ids"]]) for reply in replies]
            gold[name] = [float(model(input_ids=row).logits[0, 0]) for row in rows]
        assert len(gold[name]) == 4 and found[name]["gold_score"] == pytest.approx(mean(gold[name]), abs=1e-2)
    for name in ("dpo", "ppo"):
        won = [
            0.5 if ours["ids"] == theirs["ids"] else float(a > b)
            for ours, theirs, a, b in zip(samples[name], samples["sft"], gold[name], gold["sft"], strict=True)
        ]
        assert found[name]["win_rate_vs_sft"] == pytest.approx(mean(won)) and f"| {name} " in shown
        low, high = found[name]["win_rate_ci"]
        assert 0 <= low <= found[name]["win_rate_vs_sft"] <= high <= 1
    assert found["sft"]["win_rate_vs_sft"] == 0.5 and "gold_score" in shown.splitlines()[0]
    assert len({round(score, 6) for name in samples for score in gold[name]}) > 1
    assert {"accuracy", "accuracy_true", "annotator_accuracy"} <= found["reward"].keys() & found["judge"].keys()
    scored = {name: found[name]["reward_score"] for name in samples}
    assert any(abs(scored[name] - found[name]["gold_score"]) > 1e-3 for name in samples), "the reward model is another"
    page = tmp_path / "README.md"
    page.write_text("<!-- results -->\n<!-- /results -->\n")
    into_readme(page, tmp_path / "reviews", shown)
    assert f"win rate by `reward:{judge}`" in page.read_text()


def _rows_are_accounted_for(folder, method, dataset):
    """Each awkward row is dropped for its own reason, cut or kept; nothing else is lost."""
    ledger = json.loads((folder / "data.json").read_text())["splits"]["train"]
    if dataset == "OpenAssistant/oasst1":
        assert (ledger["read"], ledger["kept"], ledger["dropped"]) == (32, 64, {})
        return
    outcome = Counter(what for _, what in islice(cycle(laid_out(dataset)), ledger["read"]))
    assert ledger["read"] == ledger["kept"] + sum(ledger["dropped"].values()) and ledger["read"] >= 20
    if method != "ppo":  # PPO reads prompts alone
        assert ledger["truncated"] == outcome.pop("truncated", 0)
        assert {**ledger["dropped"], "kept": ledger["kept"] - ledger["truncated"]} == outcome


def test_every_stage_ran_and_every_known_metric_was_logged(run):
    """`expect` may name what a row logs: so it must be true of each method."""
    ran = [(recipe, name) for recipe in RECIPES for name in ORDER if name in stages_of(recipe)]
    assert sorted(map("/".join, ran)) == sorted(o for o in options("recipes") if not o.startswith("support"))
    logged: dict[str, set[str]] = {method: set() for method in METHODS}
    for stage in ran:
        method, _, names = run(*stage)
        logged[method] |= names
    print(f"{len(RECIPES)} recipes, {len(ran)} stages ran")
    assert (len(RECIPES), len(ran)) == (13, 37)
    assert {method for method, names in logged.items() if not names} == {"kto"}  # tests/methods/test_kto.py
    for method, names in ((name, row.metrics) for name, row in METHODS.items() if logged[name]):
        assert names - logged[method] <= ELSEWHERE, f"{method} never logs {sorted(names - logged[method] - ELSEWHERE)}"
