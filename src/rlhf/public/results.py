"""benchmarks.json: what was measured on public benchmarks, beside the weights that were measured."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.config import Benchmark
from rlhf.output.tables import grid

FILE = "benchmarks.json"
# what makes two rows the same measurement, whose newer value replaces the older
KEYS = ("task", "metric", "filter", "num_fewshot", "limit", "chat_template", "seed", "file")


def keep(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Add rows to a folder's benchmarks.json, in place of those that they measure again and of those of other weights."""
    found = {_key(row): row for row in (*read(folder), *rows)}
    files.write_json(folder / FILE, {"run": _id(folder), "rows": list(found.values())})
    return folder / FILE


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows that belong to the weights which the folder holds now."""
    stored = files.read_json(folder / FILE) if (folder / FILE).is_file() else {}
    return stored["rows"] if stored and stored["run"] == _id(folder) else []


def measured(folder: Path, benchmark: Benchmark) -> float | None:
    """What an expectation's benchmark gave on all of its rows, times its scale; None if it was not run as it says."""
    asked = {"num_fewshot": benchmark.num_fewshot, "limit": None, "chat_template": False}
    asked |= {"task": benchmark.task, "metric": benchmark.metric, "filter": benchmark.filter}
    values = [row["value"] for row in read(folder) if all(row.get(key) == value for key, value in asked.items())]
    return values[-1] * benchmark.scale if values else None


def command(run: str, benchmark: Benchmark) -> str:
    """What measures it, to be pasted."""
    shots = "" if benchmark.num_fewshot is None else f" num_fewshot={benchmark.num_fewshot}"
    return f"python src/evaluate.py run={run} tasks=[{benchmark.task}]{shots}"


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Fixed-width columns that read as Markdown too; a dash where there is no such number."""
    cells = [["task", "metric", "value", "stderr", "95% interval", "n", "few-shot"]]
    for row in rows:
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
        error = "-" if row["stderr"] is None else f"{row['stderr']:.4f}"
        interval = "-" if row.get("low") is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
        shots = "-" if row["num_fewshot"] is None else str(row["num_fewshot"])
        cells.append([row["task"], metric, f"{row['value']:.4f}", error, interval, str(row["n"]), shots])
    empty = [i for i, name in enumerate(cells[0]) if i > 2 and all(row[i] == "-" for row in cells[1:])]
    return grid([[cell for i, cell in enumerate(row) if i not in empty] for row in cells])


def _id(folder: Path) -> str | None:
    """Which run left the weights; None in a folder that no run of ours left."""
    return files.read_json(folder / files.RUN_FILE).get("id") if (folder / files.RUN_FILE).is_file() else None


def _key(row: dict[str, Any]) -> str:
    return str([row.get(key) for key in KEYS])
