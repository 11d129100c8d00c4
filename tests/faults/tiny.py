"""A tiny recipe of six stages, and what a run leaves that must not depend on what struck it."""

import json
from pathlib import Path
from typing import Any

STAGES = ("base", "sft", "reward", "dpo", "kto", "ppo")
METHODS = STAGES[1:]
ROWS = ("dataset.options.train=16", "dataset.options.held_out=4", "dataset.options.evaluation=4")
SIZES = ("hidden_size=32", "intermediate_size=32", "num_attention_heads=4", "num_key_value_heads=4")
TINY = ("debug=smoke", "debug.max_steps=4", "method.args.save_steps=2", "batch_size=2", "hardware.micro_batch_size=2")
TINY += ("evaluation.prompts=2", "evaluation.max_new_tokens=4", *ROWS)
SMALL = tuple(f"base.model.init.{size}" for size in SIZES)  # as src/pipeline.py is told
MORE = {"base": tuple(word.removeprefix("base.") for word in SMALL), "ppo": ("method.args.response_length=4",)}
OTHER = {
    "kto": ("method=kto", "dataset=support_thumbs", "run.recipe=support", "run.stage=kto")
}  # in no file of the recipe
VARYING = ("time", "seconds", "runtime", "per_second", "memory")  # parts of the names of what no two runs share


def settings(name: str, root: Path) -> list[str]:
    return [*OTHER.get(name, (f"recipe=support/{name}",)), *TINY, *MORE.get(name, ()), f"run.root={root}"]


def left(folder: Path) -> dict[str, Any]:
    """What a run is to leave, whatever has struck it: weights and replies byte for byte, and each number that is no duration."""
    root = str(folder.parent.parent).encode()  # stands in an adapter's config
    files = [path for path in (folder / "final").rglob("*") if path.is_file() and path.name != "README.md"]
    final = {path.relative_to(folder).as_posix(): path.read_bytes().replace(root, b"runs") for path in files}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]
    numbers = [
        {key: value for key, value in line.items() if key != "eps" and not any(part in key for part in VARYING)}
        for line in lines
    ]
    samples = folder / "samples.jsonl"
    return {
        "final": final,
        "metrics": numbers,
        "results": json.loads((folder / "results.json").read_text()),
        "samples": samples.read_bytes() if samples.exists() else b"",
        "status": json.loads((folder / "run.json").read_text())["status"],
    }
