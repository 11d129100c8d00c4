"""RewardBench 2 on a finished reward model: each score is the saved classifier's, each outcome follows from the scores alone."""

import json
import random

import numpy as np
import pytest
import torch
from peft import PeftModel

from rlhf.config import compose_config, to_stage
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.statistics import wilson
from rlhf.public.rankings import Question, estimated, tied_score
from tests.public.helpers import evaluate, finish, settings

DRAW = random.Random(1)


def words(count):
    return " ".join(f"w{DRAW.randrange(5, 96)}" for _ in range(count))


def row(name, subset, right=1, wrong=3, **more):
    replies = {"chosen": [words(4) for _ in range(right)], "rejected": [words(4) for _ in range(wrong)]}
    counts = {"num_correct": right, "num_incorrect": wrong, "total_completions": right + wrong}
    return {"id": name, "prompt": words(6), "subset": subset, **replies, **counts, **more}


ROWS = [row(f"{subset}{i}", subset) for subset in ("Factuality", "Math") for i in range(10)]
ROWS += [row(f"{kind}:{i}", "Ties", 1 + (kind == "tied")) for i in range(8) for kind in ("tied", "ref")]
ROWS += [row("ref:8", "Ties"), row("Math10", "Math", chosen=[words(130)])]  # the second is longer than 128 positions


@pytest.fixture(scope="module")
def run(workshop, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    stage = to_stage(compose_config([f"run.root={root}", *settings(workshop, "reward", "reward")]))
    return finish(stage, workshop.reward, workshop.tokenizer)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "bench.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return path


@pytest.fixture(scope="module")
def score(workshop):
    """The score of a prompt and a reply by transformers and PEFT alone: one unpadded text that ends in EOS."""
    model = PeftModel.from_pretrained(workshop.load_reward(quantized=True), str(workshop.reward)).eval()

    @torch.no_grad()
    def of(prompt, reply):
        ids = workshop.tokenizer(f"{prompt} {reply}")["input_ids"] + [workshop.tokenizer.eos_token_id]
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    return of


def scores_of(row, score):
    return [[score(row["prompt"], reply) for reply in row[side]] for side in ("chosen", "rejected")]


def ties_as_published(rows, score):
    """The score of the subset as allenai/reward-bench has it: means over all prompts, then their weighted sum."""
    found = {r["id"]: scores_of(r, score) for r in rows}
    numbers = [name.partition(":")[2] for name in found if name.startswith("tied:")]
    ref, tied = ([found[f"{kind}:{n}"] for n in numbers] for kind in ("ref", "tied"))
    gap_ref, gap_tied = (np.array([min(right) - max(wrong) for right, wrong in part]) for part in (ref, tied))
    spread = np.array([max(right) - min(right) for right, _ in tied])
    least = np.minimum(gap_ref, gap_tied)
    terms = [(0.3, gap_tied > 0), (0.3, gap_ref > 0), (0.2, gap_tied > spread), (0.2, least > spread)]
    return sum(weight * np.mean(term) for weight, term in terms) + 0.01 * np.mean(np.tanh(least / spread - 1))


def test_outcomes_follow_from_the_saved_classifiers_scores(run, file, score, capsys):
    evaluate("run=tiny/reward", f"file={file}", "batch_size=3", f"run.root={run.parent.parent}")
    rows = {r["task"]: r for r in json.loads((run / "benchmarks.json").read_text())["rows"]}
    expected = {}
    for subset in ("Factuality", "Math"):
        found = [scores_of(r, score) for r in ROWS if r["subset"] == subset and r["id"] != "Math10"]
        expected[subset] = sum(right[0] > max(wrong) for right, wrong in found) / len(found)
        assert 0 < expected[subset] < 1 and len(found) == rows[f"bench/{subset}"]["n"] == 10
    expected["Ties"] = ties_as_published([r for r in ROWS if r["subset"] == "Ties" and r["id"] != "ref:8"], score)
    assert {name: rows[f"bench/{name}"]["value"] for name in expected} == pytest.approx(expected)
    assert all(
        rows[f"bench/{name}"]["low"] <= value <= rows[f"bench/{name}"]["high"] for name, value in expected.items()
    )
    assert rows["bench"]["value"] == pytest.approx(sum(expected.values()) / 3) and rows["bench"]["n"] == 28
    out = capsys.readouterr().out
    assert f"| bench/Math       | accuracy        | {expected['Math']:.4f} | [" in out and "| mean of subsets |" in out
    assert "1 rows left out: ties without their other row" in out
    assert "1 rows left out: longer than the model's 128 positions" in out


def test_the_same_rows_give_the_same_bytes_and_a_limit_is_told(run, file):
    evaluate(f"run={run}", f"file={file}", "limit=2")
    first = (run / "benchmarks.json").read_bytes()
    evaluate(f"run={run}", f"file={file}", "limit=2")
    assert (run / "benchmarks.json").read_bytes() == first
    assert [r["n"] for r in json.loads(first)["rows"] if r["limit"] == 2] == [2, 2, 2, 6]


def test_a_classifier_in_hugging_faces_layout_is_measured_too(workshop, score, tmp_path):
    merged = PeftModel.from_pretrained(workshop.load_reward(), str(workshop.reward)).merge_and_unload()
    merged.save_pretrained(tmp_path / "plain")
    tokenizer = type(workshop.tokenizer).from_pretrained(workshop.reward)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "plain")
    some = [r for r in ROWS if r["subset"] == "Math"][:10]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    evaluate(f"run={tmp_path}/plain", f"file={tmp_path}/some.jsonl")
    model = workshop.load_reward(tmp_path / "plain")

    @torch.no_grad()
    def plain(prompt, reply):
        return float(model(input_ids=torch.tensor([[*tokenizer(f"{prompt} {reply}")["input_ids"], 2]])).logits[0, 0])

    found = [scores_of(r, plain) for r in some]
    expected = sum(right[0] > max(wrong) for right, wrong in found) / 10
    assert json.loads((tmp_path / "plain/benchmarks.json").read_text())["rows"][0]["value"] == pytest.approx(expected)


def question(right, wrong):
    return Question("", "", "", "", ["r"] * len(right), ["w"] * len(wrong), [*right, *wrong])


@pytest.mark.parametrize(
    ("ref", "tied", "value"),
    [
        (([3.0], [0.0]), ([2.0, 1.0], [-1.0, -5.0]), 1.0 + 0.01 * np.tanh(2 / 1 - 1)),  # apart from wrong by 2, together by 1
        (([0.5], [0.0]), ([2.0, 1.0], [-1.0]), 0.8 + 0.01 * np.tanh(0.5 - 1)),  # the margin of ref is below the spread
        (([-1.0], [0.0]), ([2.0, 1.0], [0.5]), 0.3 + 0.01 * np.tanh(-1 - 1)),
        (([1.0], [0.0]), ([2.0, 2.0], [1.0]), 1.0 + 0.01),  # no spread: the limit of tanh
        (([5.0], [0.0]), ([2.0, 1.0], [0.5]), 0.6 + 0.01 * np.tanh(0.5 - 1)),  # that of tied is, too
        (([0.0], [0.0]), ([2.0, 2.0], [1.0]), 0.5),  # 0 / 0 counts as 0
    ],
)  # fmt: skip
def test_a_tied_prompt_scores_as_published(ref, tied, value):
    assert tied_score(question(*ref), question(*tied)) == pytest.approx(value)


def test_the_right_reply_must_be_strictly_first_and_certainty_has_an_interval():
    first, shared = question([1.0], [0.0, 0.5]), question([1.0], [1.0, 0.0])
    assert estimated("Math", [[first], [shared]]).mean == 0.5
    sure = estimated("Math", [[first]] * 9)
    assert (sure.mean, sure.low, sure.high) == (1.0, *wilson(1.0, 9))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("a", "Math", rejected=[]), "bench.jsonl:1: rejected must be a list of texts, found []"),
        (row("a", "Math", num_correct=2), "num_correct is 2, and chosen has 1"),
        (row("a", "Math", right=2), "subset Math has one right reply to a prompt, found 2"),
        (row("a", 7), "subset must be a text, found 7"),
        (row("tied:1", "Ties"), "id tied:1 with 1 right replies; Ties has ref:<number> with one and tied:"),
    ],
)
def test_rows_of_another_shape_are_refused_with_their_line(run, tmp_path, bad, message):
    (tmp_path / "bench.jsonl").write_text(json.dumps(bad) + "\n")
    with pytest.raises(DataError) as caught:
        evaluate(f"run={run}", f"file={tmp_path}/bench.jsonl")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (
            "tasks=[mmlu]",
            ConfigError,
            "tasks=[mmlu]: a policy is asked them, and {run} is a reward model\n  fix: file=",
        ),
        ("", ConfigError, "file is missing\n  python src/evaluate.py run={run} file=reward-bench-2.jsonl"),
        ("file=a.jsonl num_fewshot=5", ConfigError, "num_fewshot=5: file= does not read it"),
        ("file=/nowhere.jsonl", DataError, "file=/nowhere.jsonl: there is no such file\n  fix: "),
    ],
)
def test_what_a_reward_model_cannot_be_asked_is_refused(run, words, kind, message):
    with pytest.raises(kind) as caught:
        evaluate(f"run={run}", *words.split())
    assert message.format(run=run) in str(caught.value)
