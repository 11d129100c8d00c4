"""Rounds of feedback: who is asked and what is paid at each point, a kill anywhere, and what the report says of known numbers."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from rlhf import config
from rlhf.errors import ConfigError, Preempted
from rlhf.evaluation.statistics import estimate
from rlhf.feedback.schema import Judgement, Reply
from rlhf.feedback.store import Store
from rlhf.rounds import report, run
from rlhf.rounds.plan import Rounds
from rlhf.runs import record
from rlhf.runs.launcher import Launcher
from tests.faults.tiny import SMALL
from tests.helpers import remember_stages


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    remember_stages(monkeypatch)


def planned(tmp_path, *overrides, rounds=3, labels=10, seeds=(1,), replies=4, name="rounds"):
    return Rounds("support", [f"run.root={tmp_path}", *overrides], rounds, labels, seeds, replies, name)


def test_the_arms_differ_in_who_is_asked_and_what_is_paid_and_in_nothing_else(tmp_path):
    plan = planned(tmp_path, "ppo.method.args.kl_coef=0.07")
    arms = {arm: plan.of(arm, 1) for arm in ("rounds", "at_once", "frozen")}
    first = {id(points[0]) for points in arms.values()}
    assert len(first) == 1 and [point.labels for point in arms["rounds"]] == [10, 20, 30]
    sft = "support/sft"
    assert [point.asked for point in arms["at_once"]] == [sft] * 3
    assert [point.asked for point in arms["rounds"]] == [sft, *(point.policy.name for point in arms["rounds"][:2])]
    start, paid = arms["frozen"][0], {arm: [point.reward.weights for point in points] for arm, points in arms.items()}
    assert paid["frozen"] == [start.reward.weights] * 3 and [point.store for point in arms["frozen"][1:]] == [None] * 2
    assert len({*paid["rounds"], *paid["at_once"]}) == 5 and [point.labels for point in arms["frozen"]] == [10] * 3
    for arm, points in arms.items():
        for number, point in enumerate(points):
            method = point.policy.stage.method
            assert method.reward_model == str(paid[arm][number]) and method.args["kl_coef"] == 0.07
            assert point.policy.stage.monitor.rules == {} and point.policy.stage.seed == 1 + 100 * number
            before = [points[number - 1].policy.weights, plan.start] if number else [plan.start, None]
            assert [method.start_from, method.reference] == [one and str(one) for one in before]
            if point.store is not None:
                assert point.reward.stage.dataset.mixture[0]["path"] == str(point.store)
                assert point.before == (points[number - 1].store if number else None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rounds": 1}, "rounds=1: one round is one collection"),
        ({"replies": 1}, "replies=1: one alone has no rank"),
        ({"name": "ppo"}, "name=ppo: must be a folder name that no stage of support has"),
        ({"overrides": ["ppo.seed=3"]}, r"a seed of its own\n  fix: seeds=\[1,2,3\]"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, given, said):
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, *given.pop("overrides", ()), **given)
    with pytest.raises(ConfigError, match="recipe=reviews: .*\n  fix: recipe=support"):
        Rounds("reviews", [f"run.root={tmp_path}"], 3, 10, [1], 4, "rounds")


def test_other_labels_in_the_same_folder_are_refused(tmp_path):
    run._same_settings(planned(tmp_path, rounds=2))
    run._same_settings(planned(tmp_path, rounds=3))  # more of the same
    with pytest.raises(
        ConfigError, match="labels=20: .* was begun with labels=10\n  fix: labels=10, or name=rounds-20"
    ):
        run._same_settings(planned(tmp_path, rounds=2, labels=20))


def filled(path, runs, judged):
    with Store(path) as store:
        for number, name in enumerate(runs):
            replies = [Reply(text, "support/sft", name) for text in ("yes.", "no.")]
            store.add([{"role": "user", "content": f"question {number}"}], {}, "one", replies)
        for item in store.items()[:judged]:
            store.judge(Judgement(item.id, "ann", [reply.id for reply in item.replies], [0, 1]))


def test_a_round_begins_with_what_was_judged_and_is_made_again_when_its_policy_was(tmp_path):
    before, store = tmp_path / "a.sqlite", tmp_path / "b/c.sqlite"
    filled(before, ["one"] * 5, judged=3)
    run._copied(before, store)
    assert run._counted(store) == (3, 3) and run._counted(before) == (5, 3)
    assert run._current(store, {"one", "two"}) and not run._current(store, {"two"})
    assert not run._current(tmp_path / "none.sqlite", {"one"}) and run._counted(tmp_path / "none.sqlite") == (0, 0)


def test_people_are_waited_for(tmp_path, monkeypatch):
    plan = planned(tmp_path, rounds=2, labels=4)
    point, asked = plan.of("rounds", 1)[0], []
    monkeypatch.setattr(record, "read_run", lambda path: {"id": "one"})

    def typed(self, point, what, script, words):
        asked.append(script)
        filled(point.store, ["one"] * 5, judged=3)

    monkeypatch.setattr(run.Work, "_run", typed)
    work, store = run.Work(plan, Launcher(config.Launcher(), plan.planned, tmp_path), "people"), point.store
    assert store is not None
    for _ in range(2):  # a second time nothing is collected
        with pytest.raises(Preempted, match=r"round 1: 1 judgements are lacking in \S+\n  fix: .* write=tasks.json"):
            work.labelled(point, store)
    with Store(store) as held:
        last = held.items()[3]
        held.judge(Judgement(last.id, "ann", [reply.id for reply in last.replies], outcome="all bad"))
    work.labelled(point, store)
    assert asked == ["collect.py"]


def told(frozen, rounds, proxy, best=1):
    """The conclusion of a report whose arms moved by so much since their best point, over 40 prompts and 3 seeds."""
    noise = np.random.default_rng(0).normal(size=(2, 3, 40)) * 0.1
    moved = {"frozen": frozen, "rounds": rounds}
    fall = {arm: {"gold": report._numbers(estimate(noise[0] + gold))} for arm, gold in moved.items()}
    fall["frozen"]["proxy"] = report._numbers(estimate(noise[1] + proxy))
    last = {"at_once": estimate(noise[0] + rounds), "frozen": estimate(noise[1] + rounds - frozen)}
    rows = [{"labels": 10}, {"labels": 20}]
    return report.conclusion(
        {"setup": {"prompts": 40, "seeds": [1, 2, 3]}, "rounds": rows, "fall": fall | {"from": best}}, last
    )


def test_the_words_follow_the_numbers():
    cured = told(frozen=-0.5, rounds=0.3, proxy=0.4)
    assert "With 20 labels: asking in 2 rounds is better than asking once" in cured
    assert "was over-optimized: from point 1 to point 2 its score rose by +0." in cured and "Rounds cure that" in cured
    assert "from SFT to point 2" in told(frozen=-0.5, rounds=0.3, proxy=0.4, best=0)
    assert "Rounds do not cure that" in told(frozen=-0.5, rounds=-0.5, proxy=0.4)
    calm = told(frozen=0.2, rounds=0.0, proxy=0.4, best=2)
    assert "was not over-optimized: the last policy that it paid is its best" in calm and "not distinguishable" in calm
    assert "is not established" in told(frozen=-0.5, rounds=0, proxy=-0.4)  # then its score did not rise


def test_a_kill_in_the_middle_costs_what_was_being_made(chain, door, tmp_path):
    root = tmp_path / "runs"
    for stage in ("base", "sft"):
        shutil.copytree(chain / "support" / stage, root / "support" / stage)
    words = ["recipe=support", "rounds=2", "labels=16", "seeds=[1]", "jobs=1", "debug=smoke", "reward.batch_size=1"]
    words += [*SMALL, f"run.root={root}", "ppo.method.args.response_length=8", "evaluation.max_new_tokens=8"]
    folder = root / "support/rounds"
    running = door.start("rounds.py", *words, folder=tmp_path)
    while not (folder / "rounds-seed1/feedback-2.sqlite").exists():
        assert running.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    made = {path: path.read_text() for path in folder.glob("first-seed1/*/run.json")}
    assert len(made) == 2
    done = door("rounds.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "logs/rounds-seed1.log").read_text()
    assert {path: path.read_text() for path in made} == made
    found = json.loads((folder / "report.json").read_text())
    for arm in ("rounds", "at_once", "frozen"):
        assert [row["labels"] for row in found[arm]] == [16, 16 if arm == "frozen" else 32]
        assert (
            all(row["low"] <= row["gold"] <= row["high"] for row in found[arm]) and found[arm][0] == found["rounds"][0]
        )
    stores = {arm: folder / f"{arm}-seed1/feedback-2.sqlite" for arm in ("rounds", "at_once")}
    runs = {arm: {reply.run for item in Store(path).items() for reply in item.replies} for arm, path in stores.items()}
    ids = [
        json.loads((root / "support" / name / "run.json").read_text())["id"]
        for name in ("sft", "rounds/first-seed1/ppo-1")
    ]
    assert runs == {"rounds": set(ids), "at_once": {ids[0]}}
    assert [run._counted(path)[1] for path in stores.values()] == [32, 32]
    assert {path.name for path in folder.glob("*.*")} == {"report.json", "report.md", "gold.png", "settings.json"}
