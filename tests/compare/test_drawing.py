"""Drawing the replies of a comparison: a process that dies and a score that is not a number are told, and nothing half-written stays."""

import os
import signal

import pytest

from rlhf.compare import replies as module
from rlhf.compare.trials import Comparison
from rlhf.errors import GuardStop, ResourceError


class Killed(module.Replies):
    """Each process that draws is killed at its first task."""

    def _draw(self, task, rows):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "Replies", Killed)
    monkeypatch.setattr(module, "_start_worker", str)  # which would load transformers
    drawing = Killed(Comparison("support", [f"run.root={tmp_path}"]), "annotator")
    with pytest.raises(ResourceError, match=r"killed.*2 at a time(.|\n)*fix: jobs=1; what was drawn is kept"):
        list(drawing._drawn([[1], [2]], [], 2))


@pytest.mark.parametrize(("name", "score"), [("gold", float("nan")), ("reward", float("inf")), ("kl", float("nan"))])
def test_a_score_that_is_not_a_number_leaves_no_file(tmp_path, name, score):
    samples = [dict.fromkeys(module.KEPT, 0)] * 2
    scores = {"gold": [0.0, 1.0], "reward": [0.0, 1.0], "kl": [0.0, 1.0]}
    module._write(tmp_path / "good.jsonl", "key", "trial", samples, *scores.values())
    assert module._key_of(tmp_path / "good.jsonl") == "key" and len(module._read(tmp_path / "good.jsonl")) == 2
    scores[name][1] = score
    with pytest.raises(GuardStop, match=f"trial: the {name} of reply 1 is {score}; the finished trials are kept"):
        module._write(tmp_path / "bad.jsonl", "key", "trial", samples, *scores.values())
    assert [file.name for file in tmp_path.iterdir()] == ["good.jsonl"]
