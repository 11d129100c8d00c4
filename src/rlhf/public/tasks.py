"""Tasks of lm-evaluation-harness (Gao et al., EleutherAI) on a policy: its prompts, few-shot examples and metrics, our weights.

The harness reads log-likelihoods under the whole vocabulary, where training and chat leave the padding token out, and by default
no chat template: what papers call MMLU 5-shot is a text to go on with. Rows of hub datasets are kept where `datasets` keeps
them; nothing else is written, and tasks that would run code which the model wrote are refused.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import random
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf.config import REPO
from rlhf.errors import Refusal, nearest

RESAMPLES = 1000  # of the harness's bootstrap, for metrics whose standard error has no formula


@dataclass(frozen=True)
class Asked:
    """What to measure: names of the harness or of YAML files in `include`; the first `limit` rows of each task, None for all."""

    tasks: Sequence[str]
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    include: str | None = None
    chat_template: bool = False
    seed: int = 1234

    @property
    def shown(self) -> str:
        return f"[{','.join(self.tasks)}]"


def check_installed(tasks: Sequence[str]) -> None:
    """Refuse tasks where the harness is not there, before anything is loaded."""
    if importlib.util.find_spec("lm_eval") is None:
        pin = (REPO / "requirements-benchmarks.txt").read_text().split()[-1]
        why = "lm-evaluation-harness measures it and is not installed"
        raise Refusal("tasks", f"[{','.join(tasks)}]", why, fix=f"{shlex.quote(sys.executable)} -m pip install {pin}")


def load(asked: Asked) -> dict[str, Any]:
    """The tasks with their rows, as the harness holds them: `tasks` and `groups` by name.

    Raises a Refusal for a name that is none, a task that can't be loaded here or runs code, few-shot examples that it won't take.
    """
    _quiet()
    manager_of = _harness("tasks").TaskManager
    if asked.include is not None and not Path(asked.include).is_dir():
        raise Refusal(
            "include", asked.include, "is no folder", fix="the folder that holds the YAML files of your tasks"
        )
    own = manager_of(include_path=asked.include, include_defaults=False) if asked.include else None
    if own is not None and set(asked.tasks) <= set(own.all_tasks):  # the index of all tasks takes seconds
        manager = own
    else:
        manager = manager_of(include_path=asked.include)
    for name in asked.tasks:
        if name not in manager.all_tasks:
            where = "lm-evaluation-harness" if own is None else f"neither {asked.include} nor lm-evaluation-harness"
            why = f"{where} has {'no such' if own is None else 'such a'} task{nearest(name, manager.all_tasks)}"
            raise Refusal("tasks", name, why, fix="lm-eval ls tasks   (which lists all)")
    try:
        with _terminal_only():
            found: Any = manager.load(list(asked.tasks))
    except Exception as error:  # of a task's YAML, its code, its packages, its rows on the hub
        why = f"can't be loaded: {type(error).__name__}: {(str(error) or 'no words').splitlines()[0][:200]}"
        fix = "go online once, then its rows are cached" if isinstance(error, OSError) else ""
        if isinstance(error, ImportError) and error.name:
            fix = f"{shlex.quote(sys.executable)} -m pip install {error.name}"
        raise Refusal("tasks", asked.shown, why, fix=fix) from error
    for name, task in found["tasks"].items():
        _settle(name, task, asked)
    return found


def _settle(name: str, task: Any, asked: Asked) -> None:
    """Gives a task its few-shot examples; refuses what the harness would leave out without a word, or run."""
    if getattr(task, "UNSAFE_CODE", False):
        raise Refusal("tasks", name, "runs the code that the model writes, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise Refusal("tasks", name, "shows pictures or sounds, and a policy reads text")
    own = task.get_config("num_fewshot")
    if own == 0 and asked.num_fewshot:
        why = f"{name} is defined without examples, and the harness would go on without them"
        raise Refusal("num_fewshot", asked.num_fewshot, why, fix="num_fewshot=0")
    task.set_config(key="num_fewshot", value=(own or 0) if asked.num_fewshot is None else asked.num_fewshot)
    task.set_fewshot_seed(seed=asked.seed)


def measure(model: Any, tokenizer: Any, found: dict[str, Any], asked: Asked) -> tuple[list[dict[str, Any]], int]:
    """One row a task, group and metric, and how many requests were longer than the model's context and lost their beginning."""
    import numpy as np
    import torch

    if asked.chat_template and not tokenizer.chat_template:
        raise Refusal("chat_template", "true", "the tokenizer has none", fix="chat_template=false")
    random.seed(asked.seed)
    np.random.seed(asked.seed)
    torch.manual_seed(asked.seed)
    lm = language_model(model, tokenizer, asked.batch_size)
    try:
        with _terminal_only():
            results = _harness("evaluator").evaluate(
                lm,
                task_dict=found,
                limit=asked.limit,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                apply_chat_template=asked.chat_template,
                fewshot_as_multiturn=asked.chat_template,
            )
    except AssertionError as error:
        if "max tokens to generate" not in str(error):
            raise
        why = f"asks for longer replies than the model's {lm.max_length} positions hold"
        raise Refusal("tasks", asked.shown, why, fix="a task with shorter replies, by a YAML in include=") from error
    return list(rows(results, asked, f"lm_eval {metadata.version('lm_eval')}")), lm.cut


def language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """The harness's own adapter of a model that is loaded, with log-probabilities in fp32; `cut` counts requests that it cuts."""
    harness = _harness("models.huggingface").HFLM

    class Policy(harness):
        cut = 0

        def _loglikelihood_tokens(self, requests: Any, *more: Any, **options: Any) -> Any:
            self.cut += sum(len(context) + len(reply) > self.max_length + 1 for _, context, reply in requests)
            return super()._loglikelihood_tokens(requests, *more, **options)

        def tok_batch_encode(self, strings: list[str], *more: Any, **options: Any) -> Any:
            most = options.get("left_truncate_len")
            self.cut += sum(len(self.tok_encode(text)) > most for text in strings) if most else 0
            return super().tok_batch_encode(strings, *more, **options)

    return Policy(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


def rows(results: dict[str, Any], asked: Asked, by: str) -> Iterator[dict[str, Any]]:
    """The harness's results as rows of benchmarks.json. `n` counts the rows of a dataset, of a group all of its tasks'."""
    for task, values in results["results"].items():
        leaves = list(_leaves(task, results.get("group_subtasks", {})))
        shots = {results["n-shot"].get(leaf) for leaf in leaves}
        about = {
            "num_fewshot": shots.pop() if len(shots) == 1 else None,
            "n": sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
            "limit": asked.limit,
            "chat_template": asked.chat_template,
            "seed": asked.seed,
            "version": results["versions"].get(task),
            "by": by,
        }
        for name, value in values.items():
            metric, comma, chosen = name.rpartition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            measured = {"value": float(value), "stderr": error if isinstance(error, float) else None}
            yield {"task": task, "metric": metric, "filter": chosen, **measured, **about}


def _leaves(task: str, below: dict[str, list[str]]) -> Iterator[str]:
    """The tasks of a group, or the task itself."""
    for child in below.get(task) or ():
        yield from _leaves(child, below)
    if not below.get(task):
        yield task


def _harness(module: str) -> Any:
    """A module of lm_eval, which type checkers find in no environment but one with the extra."""
    return importlib.import_module(f"lm_eval.{module}")


def _quiet() -> None:
    """The harness warns about what is decided here on purpose; `evaluate`, below it, counts its downloads by default. Its
    bootstrap would fork this process, weights and all, once a core."""
    os.environ |= {"HF_UPDATE_DOWNLOAD_COUNTS": "false", "DISABLE_MULTIPROC": "1"}
    for name in ("lm_eval", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _terminal_only() -> Iterator[None]:
    """Progress bars, of which an hour of requests needs one, go to a terminal and to nothing else; what is printed beside, nowhere."""
    with open(os.devnull, "w") as nowhere:
        bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(nowhere)
        with contextlib.redirect_stdout(nowhere), bars:
            yield
