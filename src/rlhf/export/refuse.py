"""What can be refused of an export before anything heavy is imported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf.config import Stage
from rlhf.errors import Refusal
from rlhf.methods import METHODS
from rlhf.runs import record

RECORD = "export.json"


def refuse(root: Path, name: str, to: Sequence[str], dtype: str, out: Path) -> Stage:
    """The stage of run `name` below `root`, to be computed with on the CPU in fp32; raises what is said against exporting it so.

    Raises:
        ConfigError: a run or a setting that can't be exported; a folder that holds something else.
        DataError: weights that are gone or not those that were written.
    """
    stage = exportable(root / name, root)
    check_out(out)
    if dtype == "q8_0" and "hf" in to:
        raise Refusal("dtype", dtype, "is a format of GGUF", fix="to=[gguf], or dtype=float16")
    if is_reward(stage) and "gguf" in to:
        raise Refusal("to", "gguf", f"{name} is a reward model, and llama.cpp has no scalar head", fix="to=[hf]")
    return stage


def exportable(folder: Path, root: Path) -> Stage:
    """The stage of a finished run whose weights, base and predecessors are those that it was trained with.

    Refused is a base in int8, whose rounding of activations no plain weights have.
    """
    stage = record.finished_stage(folder, root, reward=True)
    record.check_current(folder, stage)
    if stage.quantization.name == "int8":
        why = "multiplies rounded activations (LLM.int8), which is a function that no plain weights compute"
        raise Refusal("quantization", "int8", why, fix="train it with quantization=nf4 or quantization=none")
    model = replace(stage.model, attention="eager" if stage.model.attention == "eager" else "sdpa")  # flash needs a GPU
    return replace(stage, model=model, hardware=replace(stage.hardware, device="cpu", devices=1, precision="fp32"))


def is_reward(stage: Stage) -> bool:
    return METHODS[stage.method.name].leaves == "reward"


def check_out(out: Path) -> None:
    """Raises a Refusal where a folder holds what is no export of ours."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Refusal("out", out, "is a link or a file", fix="out= with another folder, or take it away yourself")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise Refusal("out", out, "is not empty and holds no export", fix=f"out={out}-2, or take it away yourself")
