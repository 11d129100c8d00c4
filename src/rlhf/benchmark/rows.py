"""Preparing data, ours beside `datasets.map` over the tokenizer's `apply_chat_template`: from the same file, in as many processes.

The texts are of 20,000 made-up words with frequencies as Zipf's law has them; the tokenizer is a byte-level BPE of 32,000 tokens that
was trained on them, with a ChatML template, since no other can be had without a network.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from rlhf.benchmark.process import worker
from rlhf.output.tables import grid

# rows, and tokens of each, by kind; `size` is rows of 1,200 tokens, as UltraChat has
KINDS = {"dialogues": (1000, 3500), "pairs": (4000, 700), "short": (16000, 220)}
SIZES, LONG = (20_000, 200_000), 1200
BAR = 400  # MB above the libraries
RECIPES, MANY = ("tulu3-8b", "zephyr-7b"), 50_000
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compare_rows(repeats: int) -> dict[str, Any]:
    """Medians of alternating measurements; `time_ratio` is ours over theirs, both from the file of rows to tokens on disk."""
    report: dict[str, Any] = {"processes": WORKERS, "repeats": repeats}
    with tempfile.TemporaryDirectory() as folder:
        worker(folder, {"rows": "tokenizer"}, None)
        for kind, (rows, tokens) in KINDS.items():
            worker(folder, {"rows": "make", "kind": kind, "count": rows, "tokens": tokens}, None)
            found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
            for repeat in range(repeats):
                for who in ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours"):
                    one = worker(folder, {"rows": who, "kind": kind}, None)
                    found[who].append(one)
                    print(
                        f"{kind:10s} {who:7s} {one['seconds']:.2f} s, {one['peak_mb']:.0f} MB above the libraries",
                        flush=True,
                    )
            seconds = {who: statistics.median(one["seconds"] for one in ones) for who, ones in found.items()}
            mapped = statistics.median(one["map_seconds"] for one in found["theirs"])
            peaks = {who: max(one["peak_mb"] for one in ones) for who, ones in found.items()}
            report[kind] = {
                "rows": rows,
                "tokens": found["ours"][0]["tokens"],
                "time_ratio": seconds["ours"] / seconds["theirs"],
                "time_ratio_to_map_alone": seconds["ours"] / mapped,
                "seconds": seconds,
                "peak_mb": peaks["ours"],
                "their_peak_mb": peaks["theirs"],
            }
    return report


def rows_table(report: dict[str, Any]) -> str:
    """A row a kind."""
    head = ["from a file of", "time, ours over datasets.map", "at most", "over the map alone", "our peak, MB", "theirs"]
    rows = [
        [
            f"{found['rows']:,} {kind}, {found['tokens'] / 1e6:.1f}M tokens",
            *(f"{found['time_ratio']:.2f}", "1.00", f"{found['time_ratio_to_map_alone']:.2f}"),
            *(f"{found['peak_mb']:.0f}", f"{found['their_peak_mb']:.0f}"),
        ]
        for kind, found in report.items()
        if kind in KINDS
    ]
    return grid([head, *rows])


def measure_size() -> dict[str, Any]:
    """Time, memory and disk of preparing many rows, and the start of a second stage on the same ones."""
    report: dict[str, Any] = {"processes": WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        worker(folder, {"rows": "tokenizer"}, None)
        for count in SIZES:
            worker(folder, {"rows": "make", "kind": "dialogues", "count": count, "tokens": LONG}, None)
            first, second = (worker(folder, {"rows": who, "kind": "dialogues"}, None) for who in ("ours", "again"))
            report[str(count)] = {"first": first, "second_seconds": second["seconds"], "peak_mb": first["peak_mb"]}
            print(
                f"{count:,} rows: {first['seconds']:.0f} s, {first['peak_mb']:.0f} MB, again {second['seconds']:.2f} s",
                flush=True,
            )
    return report


def size_table(report: dict[str, Any]) -> str:
    head = [
        f"rows of {LONG:,} tokens",
        "s",
        "peak above the libraries, MB",
        "at most",
        "on disk, GB",
        "a second stage, s",
        "at most",
    ]
    rows = [
        [
            *(
                f"{count:,}",
                f"{report[str(count)]['first']['seconds']:.0f}",
                f"{report[str(count)]['peak_mb']:.0f}",
                f"{BAR}",
            ),
            *(
                f"{report[str(count)]['first']['disk_mb'] / 1024:.2f}",
                f"{report[str(count)]['second_seconds']:.2f}",
                "5",
            ),
        ]
        for count in SIZES
    ]
    return grid([head, *rows])


def measure_stages(count: int = MANY) -> dict[str, Any]:
    """What each stage of RECIPES takes to prepare so many rows of its schema, and what src/plan.py says that it takes at most."""
    from rlhf.config import options

    report: dict[str, Any] = {"processes": WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        worker(folder, {"rows": "tokenizer"}, None)
        for kind in ("dialogues", "pairs"):
            worker(folder, {"rows": "make", "kind": kind, "count": count, "tokens": LONG}, None)
        for name in sorted(name for name in options("recipes") if name.partition("/")[0] in RECIPES):
            one = report[name] = worker(folder, {"rows": "stage", "stage": name}, None)
            print(f"{name}: {one['seconds']:.0f} s, {one['peak_mb']:.0f} MB above the libraries", flush=True)
    return report


def stages_table(report: dict[str, Any]) -> str:
    """A row a stage: what was measured, of what was planned."""
    head = ["", "rows", "s, of", "GB on disk, of", "MB above the libraries, of"]
    rows = [
        [
            *(name, f"{one['rows']:,}", f"{one['seconds']:.0f} / {one['planned_seconds']:.0f}"),
            *(f"{one['disk_mb'] / 1024:.2f} / {one['planned_disk_mb'] / 1024:.2f}", f"{one['peak_mb']:.0f} / {BAR}"),
        ]
        for name, one in report.items()
        if "/" in name
    ]
    return grid([head, *rows])


# -- in the process that is measured


def run(folder: Path, what: dict[str, Any]) -> dict[str, Any]:
    """One step: `tokenizer` trains it, `make` writes the rows, `ours`, `again`, `theirs` and `stage` make tokens of them."""
    kind = what.get("kind", "")
    if what["rows"] == "tokenizer":
        return _train(folder)
    if what["rows"] == "make":
        return _make(folder / f"{kind}.jsonl", kind, what["count"], what["tokens"])
    from datasets import config  # and with it the library: what is measured is above those

    cache = config.HF_DATASETS_CACHE = folder / f"cache-{what['rows'].replace('again', 'ours')}"
    if what["rows"] != "again":
        shutil.rmtree(cache, ignore_errors=True)
    with contextlib.redirect_stdout(sys.stderr):
        if what["rows"] == "stage":
            return _stage(folder, what["stage"])
        return (_theirs if what["rows"] == "theirs" else _ours)(folder, kind)


def _words(seed: int, count: int) -> list[str]:
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "it", "on", "ul")]
    known = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(20_000)]
    weights = list(accumulate(1 / place for place in range(1, len(known) + 1)))
    return random.Random(seed).choices(known, cum_weights=weights, k=count)


def _train(folder: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from rlhf.config import REPO

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((" ".join(_words(seed, 1000)) for seed in range(300)), trainer)
    template = (REPO / "conf/chat_template/chatml.jinja").read_text()
    marks = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=template, additional_special_tokens=["<|im_start|>"], **marks
    )
    made.save_pretrained(folder / "tokenizer")
    LlamaConfig(vocab_size=len(made)).save_pretrained(folder / "tokenizer")
    return {"vocabulary": len(made)}


def _make(file: Path, kind: str, count: int, tokens: int) -> dict[str, Any]:
    """Rows of about so many tokens, nearly one to a word."""
    words, draw = _words(1, 400_000), random.Random(2)

    def text(length: int) -> str:
        start = draw.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    def turns(number: int, length: int) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": text(length)} for i in range(number)]

    size = int(tokens / 1.03)
    with file.open("w") as lines:
        for _ in range(count):
            if kind == "pairs":
                asked, short = turns(1, size // 3), size // 3
                row = {side: asked + [{"role": "assistant", "content": text(short)}] for side in ("chosen", "rejected")}
                row |= {"prompt": asked[0]["content"]} if tokens == LONG else {}  # as the recipes' have
            else:
                number = 2 if kind == "short" else 8
                row = {"messages": turns(number, size // number)}
            lines.write(json.dumps(row) + "\n")
    return {"bytes": file.stat().st_size}


def _ours(folder: Path, kind: str) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from rlhf.config import compose_config, to_stage
    from rlhf.data.prepare import prepare
    from rlhf.data.store import cache
    from rlhf.data.tokens import Renderer

    method, preset = ("dpo", "local_pairs") if kind == "pairs" else ("sft", "local_demonstrations")
    given = [f"method={method}", "method.start_from=null", f"dataset={preset}", f"dataset.path={folder}/{kind}.jsonl"]
    stage = to_stage(compose_config([*given, "model=smollm2_135m", "dataset.max_length=16384"]))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    below, began = _peak(), time.perf_counter()
    data = prepare(stage, Renderer(tokenizer, plain=False), Renderer(tokenizer, plain=False))
    seconds, tokens = time.perf_counter() - began, data.ledger["train"]["tokens"]["sum"]
    disk = sum(file.stat().st_size for file in cache().rglob("*") if file.is_file()) / 2**20
    return {"seconds": seconds, "tokens": tokens, "disk_mb": disk, **_above(below)}


def _stage(folder: Path, name: str) -> dict[str, Any]:
    from rlhf.config import compose_config, to_stage
    from rlhf.data.prepare import prepare
    from rlhf.data.store import cache
    from rlhf.methods import METHODS
    from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer
    from rlhf.preflight.plan import preparing

    rows = METHODS[to_stage(compose_config([f"recipes={name}"])).method.name].rows
    file = folder / f"{'dialogues' if rows == 'demonstrations' else 'pairs'}.jsonl"
    here = [f"dataset.path={file}", f"model.path={folder}/tokenizer", "model.eos_token=null", "model.pad_token=null"]
    only = [f"dataset.{key}" for key in ("splits.train=train", "splits.eval=null", "splits.test=null", "subset=null")]
    stage = to_stage(compose_config([f"recipes={name}", "hardware=cpu", *here, *only]))
    tokenizer = load_tokenizer(stage)
    with file.open() as lines:
        disk, planned, _ = preparing(stage, sum(1 for _ in lines))
    below, began = _peak(), time.perf_counter()
    ledger = prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer)).ledger["train"]
    seconds = time.perf_counter() - began
    used = sum(file.stat().st_size for file in cache().rglob("*") if file.is_file())
    figures = {"planned_seconds": planned, "disk_mb": used / 2**20, "planned_disk_mb": disk / 2**20}
    return {"rows": ledger["kept"], "seconds": seconds, **figures, **_above(below)}


def _theirs(folder: Path, kind: str) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        if kind == "pairs":
            both = {side: tokenizer.apply_chat_template(row[side], return_dict=True) for side in ("chosen", "rejected")}
            return {f"{side}_{name}": ids for side, made in both.items() for name, ids in made.items()}
        return dict(tokenizer.apply_chat_template(row["messages"], return_dict=True))

    below, began = _peak(), time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=f"{folder}/{kind}.jsonl", split="train")
    read = time.perf_counter()
    loaded.map(tokenize, remove_columns=loaded.column_names, num_proc=WORKERS)
    ended = time.perf_counter()
    return {"seconds": ended - began, "map_seconds": ended - read, **_above(below)}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _above(below: float) -> dict[str, float]:
    """The peak of this process above what it had, and with it that of each child above the same (of the largest, times all)."""
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"peak_mb": _peak() - below + WORKERS * max(0.0, child - below)}
