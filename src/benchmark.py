"""Measure stock TRL's PPO against ours on the same random 4-bit model, on a GPU if there is one, else on the CPU.

  python src/benchmark.py [parts=[fixed,natural,growth,sft]] [size=cpu] [repeats=3] [threads=2] [root=runs] [page=docs/benchmarks.md]

parts      fixed: time and memory of an update when every reply has the same length; natural: the same when replies end by
           themselves, at 40% of the limit in the mean; growth: peak memory when the rollout has four times the prompts; sft: our
           peak over that of TRL's SFTTrainer; support: the recipe's PPO stage by stock TRL, scored by the same annotator (needs
           the finished stages of runs/<recipe>; recipe=support); plan: the peak of each method beside what src/plan.py says
size       cpu: 41M parameters, 16 prompts of 64 tokens, replies of 128; 8b: an 8B shape for a GPU; tiny: seconds, for a test.
           Any field of it can be set: layers=, width=, prompts=, grown=, reply_tokens=, epochs=, micro_batch=, updates=, ...
device     auto, cpu or cuda
rollout_base   dense (unless told otherwise) or quantized: we sample from a copy of the base dequantized once a rollout, or from its 4 bits
repeats    measurements of each contender, in alternation, each in a process of its own; medians are reported

Prints the table and writes runs/benchmark/report.json (support.json, plan.json); with page= also between that file's markers.
"""

from rlhf import door


def main() -> None:
    own, sizes = door.own_arguments(__doc__ or "", KEYS)
    from rlhf.benchmark import run

    parts = [part.strip() for part in own.pop("parts", "").strip("[]").split(",") if part.strip()]
    run.benchmark(parts, own, dict(argument.split("=", 1) for argument in sizes))


KEYS = ("parts", "size", "device", "rollout_base", "repeats", "threads", "recipe", "root", "page")

if __name__ == "__main__":
    door.enter(main)
