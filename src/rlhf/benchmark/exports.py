"""Every way out of a recipe's runs beside the runs: the formats of src/export.py, and two that other tools take and that are wrong."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhf.config import Quantization, Stage
from rlhf.errors import ConfigError, GuardStop
from rlhf.export.check import as_trained, difference, prompts_of, reload
from rlhf.export.folder import settle, write_folder
from rlhf.export.gguf import TYPES, check_gguf, write_gguf
from rlhf.export.refuse import exportable, is_reward
from rlhf.export.weights import whole
from rlhf.files import FINAL
from rlhf.output.tables import grid
from rlhf.runs import record


def compare_exports(root: Path, recipe: str, prompts: int) -> dict[str, Any]:
    """Each finished policy of a recipe that is an adapter, in each variant, held against the run on some of its test prompts.

    Raises ConfigError where there is none.
    """
    from rlhf.models.tokenizer import saved_tokenizer

    finished = [name for name, run in record.runs(root / recipe).items() if run.get("status") == "finished"]
    stages = [exportable(root / recipe / name, root) for name in finished]
    stages = [stage for stage in stages if stage.adapter.name == "lora" and not is_reward(stage)]
    if not stages:
        raise ConfigError(
            f"{root / recipe} has no finished policy with an adapter\n  fix: python src/pipeline.py recipe={recipe}"
        )
    rows = []
    for stage in stages:
        tokenizer = saved_tokenizer(stage.path / FINAL)
        trained = as_trained(stage, tokenizer, prompts_of(stage, tokenizer, prompts))
        for variant, dtype, model in variants(stage, tokenizer):
            found = difference(stage, tokenizer, trained, model)
            rows.append({"run": stage.run.stage, "variant": variant, "within": within(found, dtype), **asdict(found)})
            print(f"{stage.run.stage}  {variant}  max {found.max_logit:.2g}  same {found.same_replies:.1%}", flush=True)
    return {"recipe": recipe, "rows": rows}


def within(found: Any, dtype: str) -> bool:
    try:
        found.refuse("the variant", dtype)
    except GuardStop:
        return False
    return True


def variants(stage: Stage, tokenizer: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, dtype and model of each: what was written and read back; then what must be found to be another model."""
    merged = whole(stage, tokenizer)
    settle(merged, tokenizer)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for dtype in ("float32", "float16", "q8_0"):
            check_gguf(merged.config, tokenizer)
            write_gguf(merged, tokenizer, dtype, folder / f"{dtype}.gguf", "x")
        for dtype in ("float32", "float16", "bfloat16"):
            model = merged if dtype != "bfloat16" else whole(stage, tokenizer)  # float16 has lost what bfloat16 keeps
            write_folder(model, tokenizer, dtype, folder)
            yield f"HF {dtype}", dtype, reload(folder, dtype, False)
        for dtype in ("float32", "float16", "q8_0"):
            yield f"GGUF {TYPES[dtype]}", dtype, reload(folder, dtype, False, f"{dtype}.gguf")
    yield (
        "wrong: merged into the original weights",
        "float32",
        whole(replace(stage, quantization=Quantization("none", {})), tokenizer),
    )
    yield "wrong: merged into the 4-bit weights", "float32", merged_into_4_bit(stage, tokenizer)


def merged_into_4_bit(stage: Stage, tokenizer: Any) -> Any:
    """What `PeftModel.from_pretrained(...).merge_and_unload()` makes of a 4-bit base: the sum is rounded to 4 bits again."""
    from peft import PeftModel

    from rlhf.models.base import load_base

    return PeftModel.from_pretrained(load_base(stage, tokenizer), str(stage.path / FINAL)).merge_and_unload()


def exports_table(report: dict[str, Any]) -> str:
    head = ["run", "variant", "max logit", "mean logit", "KL, nats a token", "same replies", "within tolerance"]
    rows = [
        [
            row["run"],
            row["variant"],
            *(f"{row[key]:.2g}" for key in ("max_logit", "mean_logit", "kl")),
            f"{row['same_replies']:.1%}",
            "yes" if row["within"] else "no",
        ]
        for row in report["rows"]
    ]
    counts = {
        name: next(r for r in report["rows"] if r["run"] == name)
        for name in dict.fromkeys(r["run"] for r in report["rows"])
    }
    asked = ", ".join(f"{name} {row['prompts']} prompts and {row['positions']} tokens" for name, row in counts.items())
    return f"{grid([head, *rows])}\n\n{report['recipe']}: {asked}"
