"""The measured peak of each method beside the planned one: stages as src/train.py builds them, on rows of full length.

Peaks are above a process that has trained a tiny model with the method before, since libraries load late.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import combinations
from typing import Any

from rlhf.benchmark.instrument import Memory, clocked, differences, in_use
from rlhf.benchmark.process import worker
from rlhf.benchmark.workload import SIZES, Size, Workload, make
from rlhf.config import Stage, compose_config, to_stage
from rlhf.methods import METHODS, build
from rlhf.preflight.memory import OVERHEAD, estimate, sequences
from rlhf.preflight.sizes import shape_of
from rlhf.process import return_freed_memory

DATASETS = {
    "demonstrations": "local_demonstrations",
    "pairs": "local_pairs",
    "prompts": "support_prompts",
    "thumbs": "local_thumbs",
}


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
                found["methods"][method] = one | {"ratio": one["planned_mb"] / one["measured_mb"]}
                figures = f"{one['planned_mb']:.0f} MB planned, {one['measured_mb']:.0f} MB measured"
                print(f"{method:8s} {figures}", flush=True)
    return found


def planned(stage: Stage) -> dict[str, float]:
    """What src/plan.py says of the peak, without and with what the libraries or CUDA take."""
    moments = estimate(stage, shape_of(stage)).values()
    own = [sum(size for part, size in parts.items() if part not in OVERHEAD) for parts in moments]
    return {"planned_mb": max(own) / 2**20, "planned_peak_mb": max(sum(m.values()) for m in moments) / 2**20}


def measure_stage(work: Workload, method: str, *settings: str) -> dict[str, Any]:
    """Peak of loading and training above what was in use before, of which `weights_mb` are there when training begins, and peak of
    the process, beside the planned ones; seconds of each step; rows of a step and sequences of a row.
    """
    return_freed_memory()
    tiny = make(work.folder / f"tiny-{method}", SIZES["tiny"], work.device)
    _train(tiny, stage_of(tiny, method, *settings, "debug.max_steps=1"))
    stage = stage_of(work, method, *settings, "method.args.save_strategy=no")
    shape = {"rows": stage.batch_size, "sequences": sequences(stage)}
    return _train(work, stage) | planned(stage) | shape


def _train(work: Workload, stage: Stage) -> dict[str, Any]:
    rows, memory = _rows(work, stage), Memory(work.device)
    memory.start()
    trainer = trainer_of(stage, work.tokenizer(), rows)
    trainer.add_callback(_with_moments())
    clock, _ = clocked(trainer, work.device)
    weights = in_use(work.device) - memory.before
    trainer.train()
    peak = memory.peak()
    found = {"measured_mb": peak - memory.before, "peak_mb": peak, "weights_mb": weights}
    return found | {"seconds": differences(clock)}


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
        model.chat_template=plain run.root={folder}/runs adapter.args.r={size.rank}
        batch_size={size.micro_batch} hardware.micro_batch_size={size.micro_batch}"""
    init = ",".join(f"{name}:{str(value).lower()}" for name, value in size.init.items())
    given += f" model.path=null model.init={{{init}}}" if work.drawn else f" model.path={folder}/base"
    if work.device == "cuda":
        given += " hardware.device=cuda hardware.precision=bf16"
    if row.rows != "demonstrations":
        given += f" method.start_from={folder}/sft"
    if row.own_loop:
        given += f" method.reward_model={folder}/reward method.args.response_length={size.reply_tokens}"
        given += " method.args.num_ppo_epochs=1 method.args.eos_token_ids=[] method.args.missing_eos_penalty=null"
    return to_stage(compose_config([*given.split(), *settings]))


def _rows(work: Workload, stage: Stage) -> Any:
    """Random rows of full length, as `rlhf.data.prepare` hands them to the trainers."""
    from datasets import Dataset

    count, prompt, reply = 2 * work.size.micro_batch, work.size.prompt_tokens, work.size.reply_tokens
    rows = METHODS[stage.method.name].rows
    if rows == "prompts":
        return work.rows(count, prompt)
    if rows == "demonstrations":
        return work.rows(count, prompt + reply).map(lambda row: {"labels": row["input_ids"]})
    k = {"thumbs": 1, "pairs": sequences(stage)}[rows]
    prompts, replies = work.rows(count, prompt)["input_ids"][:], work.rows(k * count, reply)["input_ids"][:]
    if rows == "thumbs":
        thumbs = {"prompt_ids": prompts, "completion_ids": replies, "label": [True, False] * (count // 2)}
        return Dataset.from_dict(thumbs)
    return Dataset.from_list(
        [
            {"prompt_ids": ids, "chosen_ids": better, "rejected_ids": worse, "ranking": ranking, "k": k}
            for ranking, ids in enumerate(prompts)
            for better, worse in combinations(replies[k * ranking : k * (ranking + 1)], 2)
        ]
    )


def trainer_of(stage: Stage, tokenizer: Any, rows: Any) -> Any:
    """The trainer of a stage on rows that are prepared already."""
    from rlhf.data.prepare import Prepared

    return build(stage, tokenizer, Prepared(rows, None, [], {}, ""))
