"""Measure stock TRL's PPO against ours on the same random 4-bit model, on a GPU if there is one, else on the CPU.

  python src/benchmark.py [parts=[fixed,natural,growth,sft]] [size=cpu] [repeats=3] [threads=2] [run.root=runs] [page=docs/benchmarks.md]

parts      fixed: time and memory of an update when every reply has the same length; natural: the same when replies end by
           themselves, at 40% of the limit in the mean; growth: peak memory when the rollout has four times the prompts; sft: our
           peak over that of TRL's SFTTrainer, and SFT on rows of natural lengths; dpo: time and memory of DPO on rankings and pairs, stock
           TRL against ours; reward: the same of reward models on rankings of 4; support: the recipe's PPO stage by stock TRL, scored by the same annotator (needs
           the finished stages of runs/<recipe>; recipe=support); plan: the peak of each method beside what src/plan.py says;
           data: time of preparing rows beside datasets.map over apply_chat_template; rows: memory and time of preparing 20,000
           and 200,000 rows of 1,200 tokens, and of finding them again; stages: what each stage of zephyr-7b and tulu3-8b takes
           to prepare 50,000 rows, beside what src/plan.py says; export: logits and replies of each way out of a recipe's runs (src/export.py),
           and of two wrong ones, beside the run's, on asked= of its prompts;
           gpu: every method in NF4 on an 8B shape with random weights, PPO beside stock and beside SFT, memory beside the plan, in the
           order of their worth and within minutes=; without a GPU (size=tiny) a rehearsal of the same code;
           processes: each method on one, two and (PPO) four processes, what differs, and PPO's time on two cores against one;
           failures: a signal, an exception and a guard at one rank of two, what is left and what the same command makes of it; and
           two processes of other launchers;
           costs: seconds for 1,000 tokens by method, against the length of a sequence and the replies of a ranking;
           serve: 32 requests to src/serve.py one by one and at once (recipe=support, its finished stage ppo)
size       cpu: 41M parameters, 16 prompts of 64 tokens, replies of 128; 8b: an 8B shape for a GPU (parts=[gpu] takes it unless told
           otherwise); tiny: seconds, for a test.
           Any field of it can be set: layers=, width=, prompts=, grown=, reply_tokens=, epochs=, micro_batch=, updates=, ...
device     auto, cpu or cuda
rollout_base   dense (unless told otherwise) or quantized: we sample from a copy of the base dequantized once a rollout, or from its 4 bits
minutes    gpu: what would end later is left out and named
repeats    measurements of each contender, in alternation, each in a process of its own; medians are reported

Prints the table and writes runs/benchmark/report.json (support.json, export-<recipe>.json, plan.json, data.json, rows.json, stages.json, serve.json, processes.json, failures.json, costs.json, gpu.json); with page= also between that file's markers.
"""

from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Literal

from rlhf import door
from rlhf.benchmark.workload import SIZES, Size


@dataclass
class Measured:
    # fmt: off
    parts: list[Literal["fixed", "natural", "growth", "sft", "dpo", "reward", "support", "plan", "data", "rows", "stages", "export", "serve", "gpu", "processes", "failures", "costs"]] = (
        field(default_factory=lambda: ["fixed", "natural", "growth", "sft"])
    )
    # fmt: on
    size: Literal["cpu", "8b", "tiny"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rollout_base: Literal["dense", "quantized"] = "dense"
    minutes: float = 9.0
    repeats: int = 3
    threads: int | None = None
    recipe: str = "support"
    asked: int = 200
    run_root: str = "runs"
    page: str | None = None


Arguments = make_dataclass("Arguments", [(one.name, int | None, None) for one in fields(Size)], bases=(Measured,))


def size_of(own: Measured) -> Size:
    """The named size with the fields that were set."""
    changes = {one.name: value for one in fields(Size) if (value := getattr(own, one.name)) is not None}
    return replace(SIZES[name_of(own)], **changes)


def name_of(own: Measured) -> str:
    return own.size or ("8b" if own.parts == ["gpu"] else "cpu")


def main(own: Measured) -> None:
    from rlhf.benchmark.run import benchmark

    benchmark(
        own.parts,
        name_of(own),
        size_of(own),
        minutes=own.minutes,
        device=own.device,
        rollout_base=own.rollout_base,
        repeats=own.repeats,
        threads=own.threads,
        recipe=own.recipe,
        prompts=own.asked,
        root=Path(own.run_root),
        page=None if own.page is None else Path(own.page),
    )


if __name__ == "__main__":
    door.enter(main, Arguments)
