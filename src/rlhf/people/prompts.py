"""What people are asked to judge replies to: rows of a file, or what no stage of a recipe trains on and no verdict uses."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config import Splits, Stage, compose_config, options, read_stage, to_stage
from rlhf.data import columns, contract, sources
from rlhf.data.ledger import Ledger
from rlhf.errors import DataError, Refusal
from rlhf.files import CONFIG_FILE

CUSTOMERS = "prompts"  # the split of `support` that PPO draws from, three times as large as what it takes


@dataclass(frozen=True)
class Prompt:
    """Turns that end with the user's, and what an annotator who knows the truth judges by."""

    messages: list[dict[str, Any]]
    facts: dict[str, str] | None = None


def of_file(path: Path, stage: Stage) -> list[Prompt]:
    """The prompts of a file of rows in any of the shapes of docs/data.md, each once.

    Raises:
        DataError: a row that is none, with its line, or no rows at all.
    """
    blank = {"mixture": None, "splits": Splits("train", None, None), "columns": {}, "options": {}, "annotator": None}
    dataset = replace(
        stage.dataset, path=str(path), subset=None, revision=None, format="chat", bad_rows="error", **blank
    )
    read, found = columns.read(dataset, "train", "prompts"), {}
    for row in read.rows:
        with Ledger().account(row, "error"):
            dialogue = contract.prompt(read.dataset, row)
            if dialogue.tools or dialogue.options:
                raise contract.BadRow("tools", "a page shows turns alone, and this row has more", "leave tools out")
            found.setdefault(str(dialogue.messages), Prompt(dialogue.messages, row.values.get("facts")))
    if not found:
        raise DataError(f"prompts={path}: holds no rows\n  fix: one JSON object a line, with a prompt")
    return list(found.values())


def unseen(stage: Stage, root: Path, seed: int) -> list[Prompt]:
    """New customers of `support`, in an order that `seed` draws: none that a stage of the recipe reads for anything.

    Raises:
        Refusal: another dataset, of whose rows nobody knows which are free.
    """
    if not stage.dataset.path.startswith(f"{sources.GENERATOR}support/"):
        why = f"which rows of {stage.dataset.path} no stage trains on is not known"
        raise Refusal("prompts", "null", why, fix="prompts=my.jsonl, a file with a prompt in each row")
    from rlhf.support.prompts import capacity, draw

    seen = set(_asked(stage.run.recipe, root))
    drawn = draw(CUSTOMERS, capacity(CUSTOMERS), random.Random(f"collect/{seed}"))
    free = [facts for facts in drawn if facts["prompt"] not in seen]
    return [Prompt([{"role": "user", "content": facts["prompt"]}], facts) for facts in free]


def _asked(recipe: str, root: Path) -> Iterator[str]:
    """The prompts of every split that a stage of a recipe reads, as its file says and as its runs were made."""
    stages = [to_stage(compose_config([f"recipes={name}"])) for name in options("recipes") if _of(name) == recipe]
    stages += [read_stage(file.parent) for file in sorted((root / recipe).glob(f"*/{CONFIG_FILE}"))]
    for dataset in {str(stage.dataset): stage.dataset for stage in stages}.values():
        for role in ("train", "eval", "test"):
            if role != "test" and "text" in dataset.columns:  # documents, which hold prompts of the demonstrations
                continue
            for part in sources.parts(dataset, role):
                if part.dataset.path.startswith(sources.GENERATOR):
                    yield from (row.values["prompt"] for row in part.open().read())


def _of(name: str) -> str:
    return name.rpartition("/")[0]
