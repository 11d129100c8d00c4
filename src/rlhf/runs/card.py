"""The model card in `final/`: what this is, from what, under which licence, how good, and how to make it again."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlhf import files
from rlhf.config import REPO, Stage, read_stage
from rlhf.data.sources import is_hub
from rlhf.methods import METHODS
from rlhf.output.console import exporting
from rlhf.runs import record

LICENCE = "model.licence"
RUN = re.compile("[0-9a-f]{16}")  # the id of a run; other weights have a revision


def card(stage: Stage, overrides: Sequence[str], results: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The text of the card; `run` is run.json."""
    below = record.lineage(stage)
    chain = ", ".join(f"`{entry['stage']}`" for entry in below)
    bases = [entry["stage"] for entry in below if not RUN.fullmatch(entry["id"]) and is_hub(entry["stage"])]
    known = licence(stage, overrides)
    head = {"library_name": "peft" if stage.adapter.name == "lora" else "transformers"}
    head |= {"license": known} if known else {}
    head |= {"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}
    head |= {"datasets": [stage.dataset.path]} if is_hub(stage.dataset.path) else {}
    head |= {"tags": ["trl", stage.method.name]}
    numbers = [f"| {name} | {value:.4g} |" for name, value in results.items() if isinstance(value, int | float)]
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---",
        f"# {stage.run.recipe}/{stage.run.stage}",
        f"Trained with the method `{stage.method.name}` on `{stage.dataset.path}` (licence: "
        f"{stage.dataset.licence or 'not stated'}), seed {stage.seed}.",
        f"Weights it builds on, in order: {chain or 'none'}. Their licence: {known or 'not known'}.",
        "\n".join(["| result | value |", "|---|---|", *numbers]) if numbers else "",
        loading(stage) if stage.adapter.name == "lora" else "",
        f"Made by `{' '.join(run.get('command', []))}`, commit {run.get('git', {}).get('commit') or 'not known'}. "
        "Settings: `config.yaml` beside this folder; versions and machine: `run.json`.",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def loading(stage: Stage) -> str:
    """What others must know to load an adapter: the form of its base, and what ends a reply, which no adapter's folder tells them."""
    from rlhf.models.base import placement  # imports torch, which a stage has loaded by now

    placed = placement(stage)
    dtype = str(placed["dtype"]).removeprefix("torch.")
    kind = (
        "AutoModelForSequenceClassification"
        if METHODS[stage.method.name].leaves == "reward"
        else "AutoModelForCausalLM"
    )
    labels = ", num_labels=1" if kind.endswith("Classification") else ""
    args = dict(stage.quantization.args)
    if args.get("load_in_4bit"):
        args["bnb_4bit_compute_dtype"] = str(placed["quantization_config"].bnb_4bit_compute_dtype).removeprefix(
            "torch."
        )
    given = ", ".join(f"{key}={value!r}" for key, value in args.items())
    quantized = f", quantization_config=BitsAndBytesConfig({given})" if given else ""
    form = f"in {stage.quantization.name} (bitsandbytes: {given})" if given else "as it is"
    imports = [kind, *(["BitsAndBytesConfig"] if given else [])]
    code = [
        f"from transformers import {', '.join(imports)}",
        "from peft import PeftModel",
        f'base = {kind}.from_pretrained("{stage.model.path}", dtype="{dtype}"{labels}{quantized})',
        'model = PeftModel.from_pretrained(base, "PATH/TO/THIS/FOLDER")',
    ]
    return (
        f"This is an adapter, trained on its base {form}. On the base in another form it is another model. As it was trained:\n\n"
        "```python\n" + "\n".join(code) + "\n```\n\n"
        "The tokenizer here has the chat template and the token that ends a reply; give `generate` its `eos_token_id`. Whole weights "
        f"that any program loads, measured against this run: `{exporting(stage)}`."
    )


def licence(stage: Stage, overrides: Sequence[str] = ()) -> str | None:
    """The licence of the weights that a stage starts from; None where nobody says it.

    What the command or the recipe says counts, else the run below, the option of conf/model with these weights, or their own card: the
    option that was chosen says nothing of other weights that `model.path` puts in their place.
    """
    path, recipe = stage.model.path, REPO / f"recipes/{stage.run.recipe}/{stage.run.stage}.yaml"
    said = any(word.lstrip("+").startswith(f"{LICENCE}=") for word in overrides)
    if said or path is None or (recipe.is_file() and OmegaConf.select(OmegaConf.load(recipe), LICENCE) is not None):
        return stage.model.licence
    folder = Path(path)
    if folder.name == files.FINAL and record.read_run(folder.parent):
        return licence(read_stage(folder.parent), record.read_run(folder.parent).get("command", ()))
    for option in sorted((REPO / "conf/model").glob("*.yaml")):
        if (held := yaml.safe_load(option.read_text()) or {}).get("path") == path:
            return held.get("licence")
    own = folder / files.CARD
    found = re.search(r"^license:\s*(\S+)", own.read_text(errors="replace"), re.MULTILINE) if own.is_file() else None
    return found[1].strip("'\"") if found else None
