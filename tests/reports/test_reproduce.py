"""The verdict: what is inside, outside, not run or not to be measured here; its exit codes; and the index of the recipes."""

import json
import math
import re
import shutil
from functools import cache

import pytest

from rlhf.config import REPO, Expected, compose_config, to_stage
from rlhf.errors import ConfigError, GuardStop
from rlhf.public import results
from rlhf.reports import reproduce
from rlhf.reports.reproduce import compare, into, measured, settle, verdict
from rlhf.runs.pipeline import Pipeline
from rlhf.runs.record import Record
from tests.faults.tiny import SMALL

STATED = [("sft", "gold_score"), ("reward", "accuracy_true")]
STATED += [(stage, metric) for stage in ("dpo", "ppo") for metric in ("gold_score", "win_rate_vs_sft")]  # of support
BAND = Expected(published=0.5, source="a card", low=0.4, high=0.6, band="ours")


@pytest.mark.parametrize(
    "value, word",
    [(0.4, "reproduced"), (0.6, "reproduced"), (0.61, "outside"), (math.nan, "outside"), (None, "not run")],
)
def test_a_number_is_inside_its_band_or_not(value, word):
    assert verdict(BAND, value) == word


def test_what_needs_a_judge_is_not_checked():
    assert verdict(Expected(published=7.2, source="a paper", needs="GPT-4"), None) == "not checked: needs GPT-4"


def test_a_metric_is_read_from_the_results_the_last_log_line_or_the_report(tmp_path):
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"accuracy": 0.7, "table": {}}))
    lines = [{"step": 1, "eval_loss": 2.0}, {"step": 2, "eval_loss": 1.5}, {"step": 3, "loss": 1.0, "accuracy": 0.1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "report.json").write_text(json.dumps({"sft": {"win_rate_vs_sft": 0.5}}))
    found = [measured(folder, name) for name in ("accuracy", "eval_loss", "win_rate_vs_sft", "table", "absent")]
    assert found == [0.7, 1.5, 0.5, None, None]


@pytest.mark.parametrize(
    "words, message",
    [
        (["reproduced", "not checked: needs x", "not run"], None),
        (["reproduced", "outside"], "dpo m1 outside the band"),
        (["not run", "not checked: needs x"], "fix: without check=true, to run dpo"),
        (["not checked: needs x"], "nothing was measured"),
    ],
)
def test_only_what_is_all_inside_counts_as_reproduced(words, message):
    rows = [{"stage": "dpo", "metric": f"m{i}", "verdict": word} for i, word in enumerate(words)]
    if message is None:
        settle("r", rows)
    else:
        with pytest.raises(GuardStop, match=message):
            settle("r", rows)


@pytest.mark.parametrize(
    ("value", "differs", "told"),
    [
        (None, {}, "not checked: python src/evaluate.py run=guanaco-7b/sft run.root={root} tasks=[mmlu] num_fewshot=5"),
        (0.366, {}, "reproduced"),
        (0.25, {}, "outside"),
        (0.366, {"limit": 100}, "not checked: "),
        (0.366, {"num_fewshot": 0}, "not checked: "),
        (0.366, {"chat_template": True}, "not checked: "),
        (0.366, {"task": "mmlu_stem"}, "not checked: "),
    ],
)
def test_a_benchmark_is_held_against_what_was_published_or_its_command_is_told(tmp_path, value, differs, told):
    plan = Pipeline("guanaco-7b", [f"run.root={tmp_path}"])
    run = Record(plan.stage("sft"), None, False, [])
    run.status("finished")
    row = {"task": "mmlu", "metric": "acc", "filter": "none", "value": value, "num_fewshot": 5, "limit": None}
    row |= {"chat_template": False, "seed": 1234} | differs
    if value is not None:
        results.keep(run.path, [row])
    found = {row["metric"]: row for row in compare(plan)}["mmlu"]
    assert found["verdict"].startswith(told.format(root=tmp_path))
    assert found["measured"] == (None if told.startswith("not") else pytest.approx(100 * value))
    run.run["id"] = "another training in this folder"
    run.status("finished")
    assert {row["metric"]: row for row in compare(plan)}["mmlu"]["measured"] is None


@pytest.mark.slow
def test_the_door_says_so_with_its_exit_code(chain, door, tmp_path):
    """On finished runs of `support`, held against a band around what was measured, and one beside it."""
    shutil.copytree(chain / "support", tmp_path / "support")
    accuracy = json.loads((tmp_path / "support/reward/results.json").read_text())["accuracy"]

    own = [
        f"{s}.expect.{m}.{side}" for s, m in STATED for side in ("low=-9", "high=9")
    ]  # two steps reproduce none of them

    def reproduce(low, high, *more):
        band = f"{{published: {(low + high) / 2}, low: {low}, high: {high}, band: ours, source: here}}"
        settings = (
            "recipe=support",
            "debug=smoke",
            *SMALL,
            f"run.root={tmp_path}",
            f"reward.+expect={{accuracy: {band}}}",
            *own,
        )
        return door("reproduce.py", *settings, *more)

    inside = reproduce(accuracy - 0.01, accuracy + 0.01)
    assert inside.returncode == 0 and inside.stdout.count("is finished and unchanged") == 5, (
        inside.stdout + inside.stderr
    )
    assert " reproduced " in inside.stdout and f"{accuracy:.4g}" in inside.stdout
    written = json.loads((tmp_path / "support/reproduction.json").read_text())
    assert written["reproduced"] and [row["measured"] for row in written["rows"] if row["metric"] == "accuracy"] == [
        accuracy
    ]
    outside = reproduce(accuracy + 0.01, accuracy + 0.02, "check=true")
    assert outside.returncode == 4 and "reward accuracy outside the band" in outside.stderr, outside.stderr
    stale = reproduce(accuracy - 0.01, accuracy + 0.01, "check=true", "seed=2")
    assert "not run with these settings (" in stale.stdout and stale.returncode == 4
    for arguments, message in (
        (["recipe=suport"], "did you mean support"),
        (["check=true"], "recipe is missing"),
        (["recipe=support", "check=yes"], "check=yes: 'yes' is not true or false"),
        (["recipe=imdb-gpt2-large"], "nothing to reproduce"),
    ):
        refused = door("reproduce.py", *arguments)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_the_index_is_up_to_date_narrow_and_says_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "index", cache(reproduce.index))  # 42 stages are composed and planned for it
    copy = tmp_path / "README.md"
    shutil.copy(REPO / "recipes/README.md", copy)
    assert not into(copy), "python src/reproduce.py page=recipes/README.md"
    assert max(map(len, copy.read_text().splitlines())) <= 110
    recipes = sorted({path.parent.name for path in REPO.glob("recipes/*/*.yaml")})
    (head, *planned), ((*_, here, verdict), *rows) = tables(copy)
    assert head == ["recipe", "base model", "base", "sft", "judge", "reward", "kto", "dpo", "ppo"]
    assert [row[0] for row in planned] == [f"[{recipe}]" for recipe in recipes] and len(recipes) == 15
    for name, _, *sizes in planned:
        stages = {path.stem for path in (REPO / "recipes" / name.strip("[]")).glob("*.yaml")}
        assert {stage for stage, size in zip(head[2:], sizes, strict=True) if size} == stages, name
    measured_here = {row[0].partition("/")[0] for row in rows if row[4] or row[5]}
    assert (here, verdict) == ("here", "verdict")
    assert (
        measured_here
        == {path.parent.name for path in REPO.glob("recipes/*/reproduction.json")}
        == {"reviews", "support", "support-thumbs"}
    )
    copy.write_text(copy.read_text().replace("0.628", "0.9"))
    assert into(copy) and not into(copy)
    copy.write_text("no markers")
    with pytest.raises(ConfigError, match="lacks the markers <!-- recipes --> and <!-- /recipes -->\n  fix: add both"):
        into(copy)


def test_the_index_has_every_number_that_a_recipe_states_or_kept():
    _, (_, *rows) = tables(REPO / "recipes/README.md")
    legend = dict(re.findall(r"^- ([A-Z]): (.+)$", (REPO / "recipes/README.md").read_text(), re.MULTILINE))
    found = {(place, metric): rest for place, metric, *rest in rows}
    stated = {}
    for file in sorted(REPO.glob("recipes/*/*.yaml")):
        kept = file.parent / "reproduction.json"
        here = {(r["stage"], r["metric"]): r for r in json.loads(kept.read_text())["rows"]} if kept.exists() else {}
        stage = to_stage(compose_config([f"recipe={file.parent.name}/{file.stem}"]))
        for metric, e in stage.expect.items():
            row = here.get((file.stem, metric), {"measured": None})
            told = ["", ""] if row["measured"] is None else [f"{row['measured']:.4g}", row["verdict"]]
            stated[f"{file.parent.name}/{file.stem}", metric] = (e, told)
    assert found.keys() == stated.keys() and len(rows) == len(found) == 63
    for key, (expected, told) in stated.items():
        number, band, *measured_here = found[key]
        assert float(number) == expected.published and measured_here == told, key
        if expected.needs:
            assert legend[band.removeprefix("needs ")] == expected.needs, key
        else:
            ends, _, letter = band.partition(" ")
            assert [float(end) for end in ends.split("..")] == [expected.low, expected.high], key
            by = expected.benchmark
            assert legend.get(letter) == (by and f"`{results.command(key[0], by)}`"), key


def tables(page):
    """The cells of each table of a page, without the line below the head."""
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE)]
    return [[[cell.strip() for cell in line[1:-1].split("|")] for line in (head, *rows)] for head, _, *rows in blocks]


def test_stages_run_after_those_they_need_and_otherwise_in_the_order_of_their_methods():
    assert Pipeline("support", []).order == ["base", "sft", "reward", "dpo", "ppo"]
    assert Pipeline("zephyr-7b", []).order == ["sft", "reward", "dpo", "ppo"]
    with pytest.raises(ConfigError, match="method.name=pp is not one of sft, reward, dpo, kto, ppo; did you mean ppo"):
        Pipeline("support", ["ppo.method.name=pp"])
