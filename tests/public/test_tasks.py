"""Tasks of lm-evaluation-harness on a finished run: the numbers are those of its own logits, and what can't be measured is refused."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import PeftModel

from rlhf.config import REPO
from rlhf.errors import ConfigError, Refusal
from rlhf.public import tasks
from rlhf.public.subject import policy, subject
from tests.public.helpers import PINNED, evaluate, finish, log_likelihood, settings

WORDS = [f"w{i}" for i in range(4, 96)]
CHOICES = [
    {"question": f"{WORDS[3 * i]} {WORDS[i]}", "choices": [f"{WORDS[i + j]} {WORDS[2 * j]}" for j in range(3)]}
    for i in range(20)
]


@pytest.fixture(scope="module")
def run(workshop, tmp_path_factory):
    """The folder of a finished SFT run, below a folder of runs."""
    from rlhf.config import compose_config, to_stage

    root = tmp_path_factory.mktemp("runs")
    stage = to_stage(compose_config([f"run.root={root}", *settings(workshop, "sft", "sft")]))
    return finish(stage, workshop.sft, workshop.tokenizer)


@pytest.fixture(scope="module")
def judge(workshop):
    """The same weights by PEFT alone: the NF4 base with the adapter on it."""
    return PeftModel.from_pretrained(workshop.load(quantized=True), str(workshop.sft)).eval()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with two tasks of our own, and a group of both."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [row | {"answer": i % 3} for i, row in enumerate(CHOICES)]
    for name, some in (("test", rows[1:]), ("train", rows[:1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {name: f"{folder}/{name}.jsonl" for name in ("test", "train")}},
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{question}}",
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}
    choice["metric_list"] = [{"metric": "acc", **mean}]
    last = {"output_type": "loglikelihood", "doc_to_target": " {{choices[0]}}", "num_fewshot": 0}
    last["metric_list"] = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    for name, more in (("toy_choice", choice), ("toy_last", last)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | more | {"task": name}))
    (folder / "toy_hub.yaml").write_text(yaml.safe_dump(data | choice | {"task": "toy_hub", "dataset_path": "a/b"}))
    group = {"group": "toys", "task": ["toy_choice"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "toys.yaml").write_text(yaml.safe_dump(group))
    return folder


def ids(workshop, text):
    return workshop.tokenizer(text)["input_ids"]


def kept(folder):
    rows = json.loads((folder / "benchmarks.json").read_text())["rows"]
    return {(row["task"], row["metric"], row["num_fewshot"], row["limit"]): row for row in rows}


def test_what_is_measured_is_the_policy_as_trained(run, judge, workshop):
    model, tokenizer = policy(subject("tiny/sft", run.parent.parent))
    some = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=some).logits, judge(input_ids=some).logits, atol=1e-5)
        assert not torch.allclose(model(input_ids=some).logits, workshop.load(True)(input_ids=some).logits, atol=1e-2)
    assert tokenizer.get_vocab() == workshop.tokenizer.get_vocab()
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())


@pytest.mark.parametrize("shots", [0, 1])
def test_the_accuracy_is_that_of_the_models_own_logits(run, judge, workshop, own, capfd, shots):
    before = f"{CHOICES[0]['question']} {CHOICES[0]['choices'][0]}\n\n" if shots else ""
    right = 0
    for i, row in enumerate(CHOICES[1:], 1):
        context = ids(workshop, before + row["question"])
        found = [log_likelihood(judge, context, ids(workshop, choice)) for choice in row["choices"]]
        right += max(range(3), key=found.__getitem__) == i % 3
    evaluate(f"run={run}", "tasks=toy_choice", f"include={own}", f"num_fewshot={shots}", "batch_size=3")
    row = kept(run)["toy_choice", "acc", shots, None]
    n = len(CHOICES) - 1
    assert (row["value"], row["n"]) == (pytest.approx(right / n), n) and 0 < right < n
    assert row["stderr"] == pytest.approx(math.sqrt(right / n * (1 - right / n) / (n - 1)))
    out, err = capfd.readouterr()
    assert (
        err == "" and f"| toy_choice | acc    | {right / n:.4f} |" in out and f"results  {run}/benchmarks.json" in out
    )


def test_the_log_likelihood_is_too_and_the_same_again(run, judge, workshop, own):
    pairs = [(ids(workshop, row["question"]), ids(workshop, row["choices"][0])) for row in CHOICES[1:5]]
    found = [log_likelihood(judge, *pair) for pair in pairs]
    words = (f"run={run}", "tasks=[toy_last,toy_choice]", f"include={own}", "limit=4")
    evaluate(*words)
    first = (run / "benchmarks.json").read_bytes()
    assert kept(run)["toy_last", "perplexity", 0, 4]["value"] == pytest.approx(math.exp(-sum(found) / 4), rel=1e-4)
    evaluate(*words)
    assert (run / "benchmarks.json").read_bytes() == first


def test_a_group_counts_the_rows_of_its_tasks_and_nothing_else_is_written(run, own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    evaluate(f"run={run}", "tasks=toys", f"include={own}", "num_fewshot=1", "limit=5")
    assert kept(run)["toys", "acc", 1, 5]["value"] == kept(run)["toy_choice", "acc", 1, 5]["value"]
    assert (
        kept(run)["toys", "acc", 1, 5]["n"] == 5 and "1 more rows, of the tasks in a group" in capsys.readouterr().out
    )
    changed = {path for path in run.rglob("*") if before.get(path) != path.stat().st_mtime_ns}
    assert changed - {run / "benchmarks.json"} == set() and list(tmp_path.iterdir()) == []


def test_the_harness_sees_a_model_that_is_loaded(run, judge, workshop):
    lm = tasks.language_model(*policy(subject(str(run), run.parent.parent)), batch_size=2)
    long = " ".join(WORDS + WORDS)
    asked = [("w5 w6", " w7"), ("w8", " w9 w10"), (long, " w9")]
    found = lm.loglikelihood([SimpleNamespace(args=pair) for pair in asked])
    for (context, reply), (value, _) in list(zip(asked, found, strict=True))[:2]:
        assert value == pytest.approx(log_likelihood(judge, ids(workshop, context), ids(workshop, reply)), abs=1e-4)
    assert lm.cut == 1, "184 tokens do not fit 128 positions"
    greedy = ids(workshop, "w5 w6")
    with torch.no_grad():
        for _ in range(4):
            greedy.append(int(judge(input_ids=torch.tensor([greedy])).logits[0, -1].argmax()))
    options = {"until": [], "max_gen_toks": 4, "do_sample": False}
    (said,) = lm.generate_until([SimpleNamespace(args=("w5 w6", options))])
    assert ids(workshop, said)[: greedy.index(2) if 2 in greedy else None] == greedy[2:6][: len(ids(workshop, said))]
    assert lm.cut == 1


def test_a_folder_in_hugging_faces_layout_is_measured_too(workshop, own, tmp_path):
    workshop.load().save_pretrained(tmp_path / "plain")
    workshop.tokenizer.save_pretrained(tmp_path / "plain")
    evaluate(f"run={tmp_path}/plain", "tasks=toy_last", f"include={own}")
    pairs = [(ids(workshop, row["question"]), ids(workshop, row["choices"][0])) for row in CHOICES[1:]]
    found = [log_likelihood(workshop.load(), *pair) for pair in pairs]
    value = kept(tmp_path / "plain")["toy_last", "perplexity", 0, None]["value"]
    assert value == pytest.approx(math.exp(-sum(found) / len(found)), rel=1e-4)


@pytest.mark.parametrize(
    "words, message",
    [
        ("tasks=toy_chioce", "tasks=toy_chioce: neither {own} nor lm-evaluation-harness has such a task; did you mean toy_"),
        ("tasks=toy_last num_fewshot=2", "num_fewshot=2: toy_last is defined without examples"),
        ("tasks=toy_choice chat_template=true", "chat_template=true: the tokenizer has none"),
        ("tasks=toy_choice include=/nowhere", "include=/nowhere: is no folder"),
        ("tasks=toy_hub", "tasks=[toy_hub]: can't be loaded: ConnectionError"),
    ],
)  # fmt: skip
def test_what_the_harness_cannot_measure_is_refused(run, own, words, message):
    with pytest.raises(Refusal) as caught:
        evaluate(f"run={run}", *words.split(), *([] if "include" in words else [f"include={own}"]))
    assert message.format(own=own) in str(caught.value) and "fix: " in str(caught.value)


def test_without_the_harness_its_pinned_version_is_named(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal) as caught:
        evaluate(f"run={run}", "tasks=[mmlu,arc_easy]")
    pin = (REPO / PINNED).read_text().split()[-1]
    assert "tasks=[mmlu,arc_easy]: lm-evaluation-harness measures it and is not installed" in str(caught.value)
    assert str(caught.value).endswith(f"-m pip install {pin}") and pin.startswith("lm_eval==")


@pytest.mark.parametrize(
    "words, message",
    [
        ("run=tiny/sftt tasks=mmlu", "did you mean tiny/sft"),
        ("run=tiny/half tasks=mmlu", "has not finished (status: running)"),
        ("run=tiny/sft file=rows.jsonl", "file=rows.jsonl: a reward model scores it, and {run} is a policy\n  fix: "),
        ("run=tiny/sft", "tasks is missing\n  python src/evaluate.py run="),
    ],
)
def test_what_is_not_a_finished_policy_is_refused(run, compose_stage, workshop, words, message):
    root = run.parent.parent
    if "half" in words:
        from rlhf.runs.record import Record

        Record(compose_stage(*settings(workshop, "sft", "half"), f"run.root={root}"), None, False, [])
    with pytest.raises(ConfigError) as caught:
        evaluate(*words.split(), f"run.root={root}")
    assert message.format(run=run) in str(caught.value)


def test_a_run_on_weights_that_were_made_again_is_refused(run, compose_stage, workshop, tmp_path):
    base = finish(compose_stage(*settings(workshop, "sft", "base")), workshop.base, workshop.tokenizer)
    above = [*settings(workshop, "sft", "above"), f"model.path={base}/final"]
    folder = finish(compose_stage(*above), workshop.sft, workshop.tokenizer)
    subject("tiny/above", folder.parent.parent)
    told = json.loads((base / "run.json").read_text())
    (base / "run.json").write_text(json.dumps(told | {"id": "another"}))
    with pytest.raises(ConfigError, match="above is stale: base was run .*, and is run another now\n  fix: "):
        subject("tiny/above", folder.parent.parent)


def test_results_of_the_harness_become_rows():
    """As lm_eval 0.4.13 gives them: `metric,filter` beside its standard error, a group without counts of its own."""
    results = {
        "results": {
            "g": {"alias": "g", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "a": {"alias": "a", "acc,none": 0.25, "acc_stderr,none": "N/A", "sample_len": 4},
            "b": {"em,strict": 1.0, "em,loose": 0.0, "em_stderr,strict": 0.2, "name": "b"},
        },
        "group_subtasks": {"g": ["a", "b"]},
        "n-shot": {"a": 5, "b": 3},
        "n-samples": {"a": {"original": 9, "effective": 4}, "b": {"original": 9, "effective": 6}},
        "versions": {"a": 1.0},
    }
    found = list(tasks.rows(results, tasks.Asked(["g"], limit=4), "lm_eval 0"))
    brief = [(r["task"], r["metric"], r["filter"], r["value"], r["stderr"], r["num_fewshot"], r["n"]) for r in found]
    assert brief == [
        ("g", "acc", "none", 0.5, 0.1, None, 10),
        ("a", "acc", "none", 0.25, None, 5, 4),
        ("b", "em", "strict", 1.0, 0.2, 3, 6),
        ("b", "em", "loose", 0.0, None, 3, 6),
    ]
    assert {row["limit"] for row in found} == {4} and {row["by"] for row in found} == {"lm_eval 0"}
