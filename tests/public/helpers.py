"""Finished runs on the workshop's weights, made in a moment, and the same weights loaded by PEFT alone."""

import shutil
from pathlib import Path
from typing import Any

import torch

from rlhf import door
from rlhf.config import Stage
from rlhf.runs.record import Record
from tests.helpers import door_module

PINNED = "requirements-benchmarks.txt"


def finish(stage: Stage, weights: Path, tokenizer: Any) -> Path:
    """The folder of a run that ended with these weights."""
    record = Record(stage, None, False, [])
    shutil.copytree(weights, stage.path / "final")
    tokenizer.save_pretrained(stage.path / "final")
    record.write("results.json", {})
    record.status("trained")
    record.status("finished")
    return stage.path


def settings(workshop: Any, method: str, stage: str) -> list[str]:
    """Of a run on the tiny base in NF4 with a LoRA adapter."""
    dataset = {"sft": "support_demonstrations", "reward": "support_rankings"}[method]
    model = [f"model.path={workshop.base}", "model.chat_template=plain", "quantization=nf4", "adapter=lora"]
    return [f"method={method}", f"dataset={dataset}", *model, "run.recipe=tiny", f"run.stage={stage}"] + (
        ["method.start_from=null"] if method == "reward" else []
    )


def evaluate(*words: str) -> None:
    """src/evaluate.py with these words, in this process."""
    module = door_module("evaluate")
    module.main(door.arguments(module.Arguments, words, str(module.__doc__)))


def log_likelihood(model: Any, context: list[int], reply: list[int]) -> float:
    """Of a reply after its context: one unpadded pass, summed in double."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*context, *reply]])).logits[0].double()
    found = logits.log_softmax(-1)[len(context) - 1 : -1]
    return float(found.gather(1, torch.tensor(reply)[:, None]).sum())
