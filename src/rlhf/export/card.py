"""The card of an exported model: from what, under which licence, how near to the run, and how three programs load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import Stage
from rlhf.data.sources import is_hub
from rlhf.export.refuse import is_reward
from rlhf.runs.card import RUN, licence

PLACE = "PATH/TO/THIS/FOLDER"


def card(stage: Stage, held: Mapping[str, Any], run: Mapping[str, Any], ollama: str | None, chat: bool) -> str:
    """The text of README.md; `held` is export.json, `run` run.json, `chat` whether there is a chat template."""
    known, reward = licence(stage, run.get("command", ())), is_reward(stage)
    bases = [
        e["stage"]
        for e in held["lineage"]
        if not RUN.fullmatch(e["id"]) and is_hub(e["stage"]) and not Path(e["stage"]).exists()
    ]
    head = {"library_name": "transformers", "pipeline_tag": "text-classification" if reward else "text-generation"}
    head |= {"license": known} if known else {}
    head |= {"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}
    head |= (
        {"datasets": [stage.dataset.path]}
        if is_hub(stage.dataset.path) and not Path(stage.dataset.path).exists()
        else {}
    )
    head |= {"tags": ["trl", stage.method.name]}
    chain = ", ".join(f"`{entry['stage']}`" for entry in [*held["lineage"], {"stage": held["run"]}])
    how = f"its base ({stage.quantization.name}) made whole again and its adapter merged into it"
    made = how if stage.adapter.name == "lora" else "all its weights"
    what = "scores" if reward else "logits"
    last = "same order" if reward else "same greedy replies"
    rows = [
        f"| {one['file']} | {one['dtype']} | {one['max_logit']:.2g} | {one['mean_logit']:.2g} | {one['kl']:.2g} | {one['same_replies']:.1%} |"
        for one in held["formats"]
    ]
    table = [
        f"| file | dtype | max difference of {what} | mean | KL, nats a token | {last} |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    count = held["formats"][0]["prompts"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---",
        f"# {held['run']}",
        f"The run `{held['run']}` as plain weights: {made}. Weights it builds on, in order: {chain}. Their licence: {known or 'not known'}.",
        f"Measured against the run as it was trained, on {count} prompts (`export.json`):",
        "\n".join(table),
        "```sh\n" + "\n".join(usage(stage, held, ollama, chat)) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def usage(stage: Stage, held: Mapping[str, Any], ollama: str | None, chat: bool) -> list[str]:
    """Three commands, or as many as the formats allow. A pipeline left to itself samples, and squashes scores."""
    kinds = {one["format"]: one for one in held["formats"]}
    lines = []
    if "hf" in kinds:
        task = "text-classification" if is_reward(stage) else "text-generation"
        given = "[{'role': 'user', 'content': 'Hello'}]" if chat else "'Hello'"
        given = "'Hello', function_to_apply='none'" if is_reward(stage) else f"{given}, do_sample=False"
        lines.append(f"python -c \"from transformers import pipeline; print(pipeline('{task}', '{PLACE}')({given}))\"")
        if not is_reward(stage):
            lines.append(f"vllm serve {PLACE} --dtype {kinds['hf']['dtype']}")
        else:
            lines.append(f"vllm serve {PLACE} --runner pooling")
            lines.append(f"python src/compare.py recipe={stage.run.recipe} judge=reward:{PLACE}")
    if "gguf" in kinds:
        lines.append(f"llama-server --model {PLACE}/{kinds['gguf']['file']} --jinja")
        if ollama:
            lines.append(f"ollama create {stage.run.stage.replace('/', '-')} --file {PLACE}/{ollama}")
    return lines
