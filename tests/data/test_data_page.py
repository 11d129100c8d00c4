"""Every example of docs/data.md is prepared by the command below it as the page says, or refused in the words that it says."""

import csv
import json
import re
import shlex

import pytest

from rlhf.config import REPO
from rlhf.data.prepare import prepare
from rlhf.data.tokens import Renderer
from rlhf.errors import DataError
from tests.data.templates import templates, tokenizer_of

PAGE = (REPO / "docs/data.md").read_text()
FOUND = re.findall(r"```json\n(.*?)```\n```\n(python src/train.py .*?)\n# (read as|refused)  (.*?)\n```", PAGE, re.S)
OF_MODEL = {"qwen3_8b": "Qwen3", "smollm2_135m": "Yi", "pythia_1b": "Yi"}  # Yi's is chatml


def test_every_example_has_its_command():
    assert len(FOUND) == PAGE.count("```json") == PAGE.count("# read as") + PAGE.count("# refused  ") == 26


@pytest.fixture
def prepared(compose_stage, tmp_path):
    """`prepared(rows, command)`: what the stage of the command prepares of the rows."""

    def make(rows, command):
        words = shlex.split(command)[2:]
        name = next(word for word in words if word.startswith("dataset.path=")).partition("=")[2]
        file, lines = tmp_path / name, [json.loads(line) for line in rows.splitlines()]
        if file.suffix == ".csv":
            with file.open("w", newline="") as table:
                writer = csv.DictWriter(table, list(lines[0]))
                writer.writeheader()
                writer.writerows(lines)
        else:
            file.write_text(json.dumps(lines) if file.suffix == ".json" else rows)
        stage = compose_stage(*(word.replace(f"dataset.path={name}", f"dataset.path={file}") for word in words))
        model = next(word.partition("=")[2] for word in words if word.startswith("model="))
        renderer = Renderer(tokenizer_of(*templates()[OF_MODEL[model]]), plain=stage.dataset.format == "plain")
        return prepare(stage, renderer, renderer), renderer

    return make


@pytest.mark.parametrize("number", range(len(FOUND)))
def test_an_example_is_read_or_refused_as_the_page_says(prepared, number):
    rows, command, how, words = FOUND[number]
    if how == "refused":
        with pytest.raises(DataError, match=re.escape(words)):
            prepared(rows, command)
        return
    data, renderer = prepared(rows, command)
    lines = [json.loads(line) for line in rows.splitlines()]
    liked = [line for line in lines if line.get("label") is not False or "method=kto" in command]
    report = data.ledger["train"]
    assert report["read_as"] == words
    assert report["read"] == len(lines) and sum(report["dropped"].values()) == len(lines) - len(liked)
    if "labels" in data.train.column_names:
        for line, row in zip(liked, data.train, strict=True):
            learned = renderer.tokenizer.decode([token for token in row["labels"] if token >= 0])
            turns = line.get("messages", line.get("conversations", ()))
            said = [turn for turn in turns if turn.get("role", turn.get("from")) in ("assistant", "gpt")]
            texts = [turn["content"] for turn in said if turn.get("weight", 1) and isinstance(turn.get("content"), str)]
            texts += [turn["value"] for turn in said if "value" in turn]
            texts += [turn["reasoning_content"] for turn in said if "reasoning_content" in turn]
            texts += [line[key] for key in ("output", "answer", "antwort", "completion", "text") if key in line]
            assert all(text in learned for text in texts), (texts, learned)
            assert "9" not in learned.replace("8", "") or turns != line.get("messages") or "weight" not in str(line)
    else:
        assert len(data.train) >= len(lines)


def test_the_settings_that_a_refusal_prints_can_be_pasted(prepared):
    rows, command, _, _ = next(found for found in FOUND if "in 2 ways" in found[3])
    with pytest.raises(DataError) as refused:
        prepared(rows, command)
    ways = str(refused.value).partition("one of these: ")[2].split("; ")
    learned = []
    for way in ways:
        data, renderer = prepared(rows, f"{command} {way.partition(': ')[2]}")
        learned.append(renderer.tokenizer.decode([token for token in data.train[0]["labels"] if token >= 0]))
    assert sorted(learned) == ["At nine.<|im_end|>", "Soon.<|im_end|>"]
