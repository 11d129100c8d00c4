"""samples.jsonl: what is written, and what earlier runs wrote."""

import json

from rlhf.evaluation.samples import final_samples, write_samples
from rlhf.monitor.feed import replies


def test_the_reward_of_earlier_runs_is_read_whatever_it_was_called(tmp_path):
    rows = [
        {"step": 4, "set": "eval", "reply": "a", "length": 2, "ended": True, "score": 1.5},
        {"step": 8, "set": "test", "reply": "b", "length": 2, "ended": True, "proxy": 2.5},
        {"step": 8, "set": "test", "reply": "c", "length": 2, "ended": True, "reward": 3.5},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [(step, metrics, samples)] = replies(tmp_path, None)
    assert (step, metrics, samples[0]["reward"]) == (4, {}, 1.5)
    assert [sample["reward"] for sample in final_samples(tmp_path)] == [2.5, 3.5]
    assert all("score" not in sample and "proxy" not in sample for sample in [*samples, *final_samples(tmp_path)])


def test_a_resumed_run_writes_its_samples_once(tmp_path):
    for step, name in ((4, "eval"), (8, "eval"), (8, "test"), (8, "eval")):
        write_samples(tmp_path, step, name, [{"reply": f"{step} {name}"}])
    assert (tmp_path / "samples.jsonl").read_text().count("8 eval") == 1
