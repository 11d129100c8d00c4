"""The benchmark as its door starts it: arguments in, table on the terminal, reports in the run folder."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.benchmark.planned import compare_plans
from rlhf.benchmark.ratios import PARTS, compare
from rlhf.benchmark.tables import origin, plan_table, support_table, table
from rlhf.benchmark.workload import SIZES, Size
from rlhf.errors import ConfigError, nearest
from rlhf.output.tables import between_markers
from rlhf.runs import provenance


def benchmark(parts: Sequence[str], own: Mapping[str, str], changes: Mapping[str, str]) -> None:
    """Runs `parts` (none: all but plan and support), `changes` over the chosen size.

    Raises ConfigError, before anything is measured, when a key or value is unknown.
    """
    parts = parts or PARTS
    for part in parts:
        _known("parts", part, (*PARTS, "plan", "support"))
    name = _known("size", own.get("size", "cpu"), tuple(SIZES))
    device = _known("device", own.get("device", "auto"), ("auto", "cpu", "cuda"))
    base = _known("rollout_base", own.get("rollout_base", "dense"), ("quantized", "dense"))
    size = _sized(SIZES[name], changes)
    repeats = _count("repeats", own.get("repeats", "3"))
    threads = _count("threads", own["threads"]) if "threads" in own else None
    root, page = Path(own.get("root", "runs")), Path(own["page"]) if "page" in own else None
    if page is not None and not page.is_file():
        raise ConfigError(f"page={page} does not exist\n  fix: page=docs/benchmarks.md")
    folder = root / "benchmark"
    measured = [part for part in parts if part in PARTS]
    if measured:
        report = compare(measured, size, device=device, repeats=repeats, threads=threads, rollout_base=base)
        mark = name if report["device"] == "cpu" else f"{name} on a GPU"
        _publish(folder / "report.json", report, table(report), page, mark)
    if "plan" in parts:
        found = compare_plans(size, device=device, threads=threads)
        _publish(folder / "plan.json", found, plan_table(found), page, "plan")
    if "support" in parts:
        from rlhf.benchmark.recipe import compare_recipe
        from rlhf.process import quiet

        quiet()
        recipe = own.get("recipe", "support")
        found = compare_recipe(root / recipe)
        _publish(folder / "support.json", found, support_table(found), page, recipe)


def _publish(file: Path, report: dict[str, Any], shown: str, page: Path | None, mark: str) -> None:
    report |= provenance.provenance()
    report["machine"]["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, report)
    print(f"\n{shown}\n\nreport   {file}", flush=True)
    if page is not None:
        between_markers(page, mark, f"{shown}\n\n{origin(report)}")


def _sized(size: Size, changes: Mapping[str, str]) -> Size:
    fields = [field.name for field in dataclasses.fields(size)]
    for key in changes:
        if key not in fields:
            raise ConfigError(f"{key} is not a key{nearest(key, fields)}\n  see python src/benchmark.py --help")
    return dataclasses.replace(size, **{key: _count(key, value) for key, value in changes.items()})


def _known(key: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not known{nearest(value, allowed)}\n  allowed: {', '.join(allowed)}")
    return value


def _count(key: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{key}={value} is not a whole number above 0")
    return int(value)
