"""The measured peak of each method beside the planned one: stages as src/train.py builds them, on rows of full length.

Peaks are above a process that has trained a tiny model with the method before, since libraries load late.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.benchmark.instrument import Memory
from rlhf.benchmark.process import worker
from rlhf.benchmark.workload import SIZES, Size, Workload, make
from rlhf.config import Stage, compose_config, to_stage
from rlhf.methods import METHODS, build
from rlhf.preflight.memory import OVERHEAD, estimate
from rlhf.preflight.sizes import shape_of
from rlhf.process import return_freed_memory

DATASETS = {"demonstrations": "local_demonstrations", "pairs": "local_pairs", "prompts": "support_prompts"}


def compare_plans(size: Size, *, device: str, threads: int | None, at_once: int = 1) -> dict[str, Any]:
    """Planned and measured MB of each method, measured in a process of its own, without and with what the libraries take.

    Memory is a process's own, so several may run `at_once`.
    """
    with tempfile.TemporaryDirectory() as folder:
        device = worker(folder, {"size": asdict(size), "device": device}, threads)["device"]
        found: dict[str, Any] = {"device": device, "size": asdict(size), "methods": {}}
        with ThreadPoolExecutor(at_once) as pool:
            methods = [name for name, row in METHODS.items() if row.measured]
            measured = pool.map(lambda method: worker(folder, {"method": method}, threads), methods)
            for method, one in zip(methods, measured, strict=True):
                stage = stage_of(Workload.read(Path(folder)), method)
                moments = estimate(stage, shape_of(stage)).values()
                own = [sum(size for part, size in parts.items() if part not in OVERHEAD) for parts in moments]
                one["planned_mb"] = max(own) / 2**20
                one["planned_peak_mb"] = max(sum(m.values()) for m in moments) / 2**20
                found["methods"][method] = one | {"ratio": one["planned_mb"] / one["measured_mb"]}
                figures = f"{one['planned_mb']:.0f} MB planned, {one['measured_mb']:.0f} MB measured"
                print(f"{method:8s} {figures}", flush=True)
    return found


def measure_stage(work: Workload, method: str, *settings: str) -> dict[str, float]:
    """Peak of loading and training above what was in use before, and peak of the process."""
    return_freed_memory()
    memory = Memory(work.device)
    for one in (make(work.folder / f"tiny-{method}", SIZES["tiny"], work.device), work):
        stage, rows = stage_of(one, method, *settings), _rows(one, method)
        memory.start()
        trainer = trainer_of(stage, one.tokenizer(), rows)
        trainer.add_callback(_with_moments())
        trainer.train()
    return {"measured_mb": memory.peak() - memory.before, "peak_mb": memory.peak()}


def _with_moments() -> Any:
    """A callback that has the optimizer make its state before the first step: one step then needs what later ones do."""
    import torch
    from transformers import TrainerCallback

    class Moments(TrainerCallback):
        def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()

    return Moments


def stage_of(work: Workload, method: str, *settings: str) -> Stage:
    """One step of one micro-batch."""
    size, folder, row = work.size, work.folder, METHODS[method]
    given = f"""method={method} dataset={DATASETS[row.rows]} dataset.path=random.jsonl evaluation.prompts=0
        dataset.max_length={size.prompt_tokens + size.reply_tokens} dataset.max_prompt_length={size.prompt_tokens} debug.max_steps=1
        model.path={folder}/base model.chat_template=plain run.root={folder}/runs adapter.args.r={size.rank}
        batch_size={size.micro_batch} hardware.micro_batch_size={size.micro_batch}"""
    if work.device == "cuda":
        given += " hardware.device=cuda hardware.precision=bf16"
    if row.rows != "demonstrations":
        given += f" method.start_from={folder}/sft"
    if row.own_loop:
        given += f" method.reward_model={folder}/reward method.args.response_length={size.reply_tokens}"
        given += " method.args.num_ppo_epochs=1 method.args.eos_token_ids=[] method.args.missing_eos_penalty=null"
    return to_stage(compose_config([*given.split(), *settings]))


def _rows(work: Workload, method: str) -> Any:
    """Random rows of full length, as `rlhf.data.prepare` hands them to the trainers."""
    from datasets import Dataset

    count, prompt, reply = 2 * work.size.micro_batch, work.size.prompt_tokens, work.size.reply_tokens
    rows = METHODS[method].rows
    if rows == "prompts":
        return work.rows(count, prompt)
    if rows == "demonstrations":
        return work.rows(count, prompt + reply).map(lambda row: {"labels": row["input_ids"]})
    prompts, replies = work.rows(count, prompt)["input_ids"][:], work.rows(2 * count, reply)["input_ids"][:]
    pairs = {"prompt_ids": prompts, "chosen_ids": replies[:count], "rejected_ids": replies[count:]}
    return Dataset.from_dict(pairs | {"ranking": list(range(count)), "k": [2] * count})


def trainer_of(stage: Stage, tokenizer: Any, rows: Any) -> Any:
    """The trainer of a stage on rows that are prepared already."""
    from rlhf.data.prepare import Prepared

    return build(stage, tokenizer, Prepared(rows, None, [], {}, ""))
