#!/usr/bin/env bash
# lm_eval 0.4.13: two settings that are left aside without an error or a warning.
# - `num_fewshot`, given to the harness, counts for a task that says 1 and not for one that says 0: no example is shown, and 0 is reported.
# - `target_delimiter` of a task joins question and answer in the examples and, of `multiple_choice`, in the text that is scored; what a
#   `loglikelihood` task scores lacks it, also beside examples that have it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet lm_eval==0.4.13 datasets==5.2.0 torch==2.13.0
mkdir tasks
HF_HUB_OFFLINE=1 venv/bin/python - 2>warnings <<'PYTHON'
import json
from pathlib import Path
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
Path("rows.jsonl").write_text("".join(json.dumps({"q": f"q{i}", "a": f"a{i}"}) + "\n" for i in range(8)))
def define(kind, own):
    task = {"task": f"{kind}_{own}", "output_type": kind, "dataset_path": "json", "test_split": "test", "fewshot_split": "train"}
    task["dataset_kwargs"] = {"data_files": {"train": "rows.jsonl", "test": "rows.jsonl"}}
    task |= {"doc_to_text": "{{q}}", "target_delimiter": " -> ", "num_fewshot": own, "metric_list": [{"metric": "acc"}]}
    task |= {"doc_to_target": "{{a}}"} if kind == "loglikelihood" else {"doc_to_target": 0, "doc_to_choice": ["yes", "no"]}
    Path(f"tasks/{task['task']}.yaml").write_text(json.dumps(task))
    return task["task"]
class Ear(LM):
    heard = None
    def loglikelihood(self, requests):
        self.heard = self.heard or requests[0].args
        return [(-1.0, True) for _ in requests]
    def loglikelihood_rolling(self, requests):
        raise NotImplementedError
    generate_until = loglikelihood_rolling
def asked(kind, own, shots):
    ear, name = Ear(), define(kind, own)
    manager = TaskManager(include_path="tasks", include_defaults=False)
    found = simple_evaluate(ear, tasks=[name], num_fewshot=shots, limit=1, bootstrap_iters=0, task_manager=manager)
    (context, scored), reported = ear.heard, found["n-shot"][name]
    print(f"{kind}, the task says {own}, asked for {shots}: {context!r} then {scored!r}, reported as {reported}")
    return context, scored, reported
for kind in ("loglikelihood", "multiple_choice"):
    assert asked(kind, 1, 2)[0].count("\n\n") == 2 and asked(kind, 1, 2)[2] == 2
    assert "\n\n" not in asked(kind, 0, 2)[0] and asked(kind, 0, 2)[2] == 0, "num_fewshot counts now"
context, scored, _ = asked("loglikelihood", 1, None)
assert " -> a" in context and scored == "a0", "loglikelihood scores the delimiter now"
assert asked("multiple_choice", 1, None)[1] == " -> yes"
PYTHON
if grep -iE "warn.*(fewshot|delimiter)" warnings; then echo "it warns now"; exit 1; fi
