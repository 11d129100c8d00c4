"""An exported run is the same model in programs that know nothing of this package; a wrong file is another one, and told apart."""

import json

import gguf
import pytest

from rlhf.export import gguf as writer
from rlhf.export.refuse import exportable
from rlhf.export.weights import whole
from rlhf.models.tokenizer import saved_tokenizer
from tests.export.helpers import ask, base

pytestmark = pytest.mark.slow
ANSWERS = ["yes .", "no , it's 2025", "I don't know", "which one do you mean?", "1,000"]


@pytest.fixture(scope="module")
def root(tmp_path_factory, door):
    """`mine/sft`: SFT of an NF4 base with LoRA until its replies end by themselves."""
    folder = tmp_path_factory.mktemp("export")
    base(folder / "base")
    rows = [{"prompt": f"question {i % 5}", "completion": ANSWERS[i % 5]} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        f"model.path={folder}/base",
        "model=smollm2_135m",
        "model.chat_template=null",
        "model.eos_token=null",
        "model.pad_token=null",
    ]
    given += [
        "model.shape={}",
        "dataset=local_demonstrations",
        f"dataset.path={folder}/rows.jsonl",
        "dataset.splits.test=train[:10]",
    ]
    given += [
        "run.recipe=mine",
        f"run.root={folder}/runs",
        "batch_size=8",
        "evaluation.prompts=5",
        "evaluation.max_new_tokens=12",
    ]
    done = door("train.py", *given, "method.args.num_train_epochs=16", "method.args.learning_rate=2e-2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def exported(root, door):
    done = door("export.py", "run=mine/sft", "to=[hf,gguf]", "dtype=float32", f"out={root}/../out", f"run.root={root}")
    assert done.returncode == 0, done.stdout + done.stderr
    return (root / "../out").resolve()


@pytest.fixture(scope="module")
def prompts(root):
    samples = [json.loads(line) for line in (root / "mine/sft/samples.jsonl").read_text().splitlines()]
    return [sample["prompt_ids"] for sample in samples if sample["set"] == "test"]


@pytest.fixture(scope="module")
def trained(root, prompts):
    """The run itself, by our own decoding on NF4 + LoRA."""
    samples = [json.loads(line) for line in (root / "mine/sft/samples.jsonl").read_text().splitlines()]
    return [sample["ids"] for sample in samples if sample["set"] == "test"]


@pytest.fixture(scope="module")
def elsewhere(exported, prompts):
    return ask("transformers_alone", exported, prompts)


def test_transformers_alone_gives_the_replies_of_the_run(exported, elsewhere, trained):
    assert [reply["tokens"] for reply in elsewhere["replies"]] == trained
    assert sum(reply["ended"] for reply in elsewhere["replies"]) >= 3 and len({*map(str, trained)}) == 5
    held = json.loads((exported / "export.json").read_text())
    assert held["same_replies"] == 1.0 and held["max_logit"] < 1e-3 and held["kl"] < 1e-6
    assert [one["format"] for one in held["formats"]] == ["hf", "gguf"]


def test_llama_cpp_gives_them_too(exported, elsewhere, prompts):
    (file,) = exported.glob("*.gguf")
    assert differences(ask("llama_cpp", file, prompts), elsewhere) == []


MUTANTS = {
    "q and k as transformers has them": ("interleaved", lambda weight, heads: weight, {"log-probabilities"}),
    "turn tokens are plain text": ("add_token_types", lambda self, types: TYPES(self, [1 if t == 3 else t for t in types]), {"tokens"}),
    "pre-tokenizer named default": ("add_tokenizer_pre", lambda self, pre: PRE(self, "default"), {"tokens"}),
    "no EOS": ("add_eos_token_id", lambda self, i: None, {"replies"}),
}  # fmt: skip
TYPES, PRE = gguf.GGUFWriter.add_token_types, gguf.GGUFWriter.add_tokenizer_pre


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_file_is_told_apart(mutant, monkeypatch, root, tmp_path, elsewhere, prompts):
    name, wrong, seen = MUTANTS[mutant]
    monkeypatch.setattr(writer if name == "interleaved" else gguf.GGUFWriter, name, wrong)
    stage = exportable(root / "mine/sft", root)
    tokenizer = saved_tokenizer(stage.path / "final")
    writer.write_gguf(whole(stage, tokenizer), tokenizer, "float32", tmp_path / "wrong.gguf", "wrong")
    found = differences(ask("llama_cpp", tmp_path / "wrong.gguf", prompts), elsewhere)
    assert found and seen <= {*found}, found


def differences(theirs, ours):
    """In what two programs differ: tokens of texts, the chat template, replies, their log-probabilities."""
    found = []
    if theirs["tokens"] != ours["tokens"]:
        found.append("tokens")
    if theirs["rendered"] != ours["rendered"]:
        found.append("chat template")
    for one, other in zip(theirs["replies"], ours["replies"], strict=True):
        ends = len(other["tokens"]) - int(other["ended"])  # llama.cpp does not return the token that ends a reply
        if (one["tokens"][: ends + 1], one["ended"]) not in (
            (other["tokens"][:ends], other["ended"]),
            (other["tokens"], other["ended"]),
        ):
            found.append("replies")
        pairs = zip(one["logprobs"][:ends], other["logprobs"][:ends], strict=False)
        if any(abs(a - b) > 1e-3 for a, b in pairs):
            found.append("log-probabilities")
    return sorted({*found})
