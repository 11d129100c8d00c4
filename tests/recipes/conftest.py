"""Recipes on this machine: their weights as tiny random models, their datasets as local files with the same schema."""

import json
from pathlib import Path

import pytest

from rlhf.config import Stage, compose_config, to_stage

LONGEST = 256  # tokens; the lengths of the recipes are for GPUs


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def local(models, data):
    """`local("zephyr-7b/sft")`: the overrides that put local files in place of the hub, for one stage."""
    from tests.recipes.helpers import stand_in
    from tests.recipes.rows import laid_out

    def files(stage: Stage) -> Path:
        """A folder with a file a split: the good rows with the awkward ones among them."""
        folder = data / stage.dataset.path.replace("/", "--")
        folder.mkdir(exist_ok=True)
        rows = [row for row, _ in laid_out(stage.dataset.path)]
        for split in {split.partition("[")[0] for split in vars(stage.dataset.splits).values() if split}:
            # where the last thousand rows are held out of the only split, there must be more of them
            many = rows * (2 + 1024 // len(rows)) if ":-10" in str(stage.dataset.splits.train) else rows
            if split == "prompts":  # as recipes/reviews/fetch.py writes it: the prompts and nothing else
                many = [{"prompt": row["prompt"]} for row in rows]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
        return folder

    def overrides(recipe: str) -> list[str]:
        stage = to_stage(compose_config([f"recipes={recipe}"]))
        found = [
            "hardware=cpu",
            "debug=smoke",
            "debug.rows=32",
            "evaluation.prompts=4",
            f"dataset.max_length={LONGEST}",
        ]
        if not str(stage.dataset.path).startswith("generator:"):
            found += [f"dataset.path={files(stage)}", f"model.path={stand_in(str(stage.model.path), models)}"]
        if stage.method.reward_label:
            found.append(f"method.reward_model={stand_in(stage.method.reward_model, models)}")
        if stage.method.name == "ppo":
            found += ["method.args.response_length=8", f"dataset.max_prompt_length={LONGEST - 8}"]
        return found

    return overrides
