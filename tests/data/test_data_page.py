"""Every example of docs/data.md is read by the command below it, as the page says."""

import csv
import json
import re
import shlex

import pytest

from rlhf.config import REPO
from rlhf.data import columns, contract
from rlhf.methods import METHODS

PAGE = (REPO / "docs/data.md").read_text()
FOUND = re.findall(r"```json\n(.*?)```\n```\n(python src/train.py .*?)\n# read as  (.*?)\n```", PAGE, re.S)


def test_every_example_has_its_command():
    assert len(FOUND) == PAGE.count("```json") == PAGE.count("# read as") == 14


@pytest.mark.parametrize("number", range(len(FOUND)))
def test_an_example_is_read_as_the_page_says(compose_stage, tmp_path, number):
    rows, command, shape = FOUND[number]
    lines = [json.loads(line) for line in rows.splitlines()]
    words = shlex.split(command)[2:]
    name = next(word for word in words if word.startswith("dataset.path=")).partition("=")[2]
    file = tmp_path / name
    if file.suffix == ".csv":
        with file.open("w", newline="") as table:
            writer = csv.DictWriter(table, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        file.write_text(json.dumps(lines) if file.suffix == ".json" else rows)
    stage = compose_stage(*(word.replace(f"dataset.path={name}", f"dataset.path={file}") for word in words))
    kind = METHODS[stage.method.name].rows
    found = columns.read(stage.dataset, "train", kind)
    assert found.shape == shape
    make = {"demonstrations": contract.dialogue, "prompts": contract.prompt, "pairs": lambda *a: [*contract.pairs(*a)]}[
        kind
    ]
    kept = 0
    for row in found.rows:
        if row.values.get("label") is not False:
            assert make(found.dataset, row)
            kept += 1
    assert kept == len(lines) - sum(line.get("label") is False for line in lines) > 0
