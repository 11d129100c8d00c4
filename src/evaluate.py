"""Measure a finished run on public benchmarks.

  python src/evaluate.py run=guanaco-7b/sft tasks=[mmlu] num_fewshot=5 [limit=100] [batch_size=8] [include=my-tasks]
  python src/evaluate.py run=tulu3-8b/reward file=reward-bench-2.jsonl [limit=100] [batch_size=8]

run= is <recipe>/<stage>, a run folder, or a folder with a config.json (any model in Hugging Face's layout). A policy is asked tasks=
of lm-evaluation-harness (an extra: requirements-benchmarks.txt), or of the YAML files in include=, whose Python functions are run.
chat_template=true asks as in chat, seed=1234 draws few-shot examples as the harness does. A reward model scores the rows of file=,
shaped as RewardBench 2. The table is printed, and kept in benchmarks.json beside the weights, where src/reproduce.py reads it.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf import door
from rlhf.errors import Refusal


@dataclass
class Arguments:
    run: str
    tasks: list[str] | None = None
    file: str | None = None
    num_fewshot: door.Count | None = None
    limit: int | None = None
    batch_size: int = 8
    include: str | None = None
    chat_template: bool = False
    seed: door.Count = door.Count(1234)
    run_root: str = "runs"


def main(own: Arguments) -> None:
    from rlhf.process import quiet
    from rlhf.public import rankings, results, tasks
    from rlhf.public.subject import policy, subject

    of = subject(own.run, Path(own.run_root))
    if own.file is not None and not of.scores:
        why = f"a reward model scores it, and {of.folder} is a policy"
        raise Refusal("file", own.file, why, fix="tasks=[mmlu], or in run= a reward model")
    if own.tasks is not None and of.scores:
        why = f"a policy is asked them, and {of.folder} is a reward model"
        raise Refusal("tasks", f"[{','.join(own.tasks)}]", why, fix="file=rows.jsonl, or in run= a policy")
    if of.scores:
        if own.file is None:
            raise door.missing("file", f"python src/evaluate.py run={own.run} file=reward-bench-2.jsonl")
        for key in ("num_fewshot", "include", "chat_template"):
            if value := getattr(own, key):
                raise Refusal(key, value, "file= does not read it", fix="leave it out")
        quiet()
        rows, left_out = rankings.measure(of, Path(own.file), own.limit, own.batch_size)
        notes = [f"{count} rows left out: {reason}" for reason, count in left_out.items()]
        shown = rows
    else:
        if own.tasks is None:
            raise door.missing("tasks", __doc__ or "")
        asked = tasks.Asked(
            own.tasks, own.num_fewshot, own.limit, own.batch_size, own.include, own.chat_template, own.seed
        )
        tasks.check_installed(asked.tasks)
        quiet()
        found = tasks.load(asked)
        rows, cut = tasks.measure(*policy(of), found, asked)
        notes = [f"{cut} requests were longer than the model's context and lost their beginning"] if cut else []
        shown = [row for row in rows if row["task"] in asked.tasks] or rows
        notes += [f"{len(rows) - len(shown)} more rows, of the tasks in a group"] if len(shown) < len(rows) else []
    print(results.table(shown))
    print("\n".join(["", *(f"note     {note}" for note in notes), f"results  {results.keep(of.folder, rows)}"]))


if __name__ == "__main__":
    door.enter(main, Arguments)
