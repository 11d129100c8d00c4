"""The benchmark as its door starts it: arguments in, table on the terminal, reports in the run folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.benchmark.contenders import has_stock
from rlhf.benchmark.planned import compare_plans
from rlhf.benchmark.ratios import PARTS, compare
from rlhf.benchmark.rows import compare_rows, measure_size, measure_stages, rows_table, size_table, stages_table
from rlhf.benchmark.tables import origin, plan_table, support_table, table
from rlhf.benchmark.workload import Size
from rlhf.errors import ConfigError, Refusal
from rlhf.output.tables import between_markers
from rlhf.runs import provenance
from rlhf.shell import element

STOCK = ("fixed", "natural", "growth", "support")  # parts that train TRL's own PPO


def benchmark(
    parts: Sequence[str],
    name: str,
    size: Size,
    *,
    minutes: float,
    device: str,
    rollout_base: str,
    repeats: int,
    threads: int | None,
    recipe: str,
    prompts: int,
    root: Path,
    page: Path | None,
) -> None:
    """Runs `parts` on `size`, which the table calls `name`; raises ConfigError when `page` is no file, or TRL has no PPO."""
    if page is not None and not page.is_file():
        raise ConfigError(f"page={page} does not exist\n  fix: page=docs/benchmarks.md")
    if (against := [part for part in parts if part in STOCK]) and not has_stock():
        why = "measures against TRL's own PPO, which the TRL that is installed has not; 1.12 is the last that has"
        raise Refusal("parts", element(against), why, fix="python -m pip install trl==1.12.0")
    folder = root / "benchmark"
    if "gpu" in parts:
        _rehearse(folder, size, minutes, threads, page)
    measured = [part for part in parts if part in PARTS]
    if measured:
        report = compare(measured, size, device=device, repeats=repeats, threads=threads, rollout_base=rollout_base)
        mark = "dpo" if not {"fixed", "natural", "growth"} & set(measured) else name
        mark = mark if report["device"] == "cpu" else f"{mark} on a GPU"
        _publish(folder / "report.json", report, table(report), page, mark)
    if "plan" in parts:
        found = compare_plans(size, device=device, threads=threads)
        _publish(folder / "plan.json", found, plan_table(found), page, "plan")
    if "data" in parts:
        found = compare_rows(repeats)
        _publish(folder / "data.json", found, rows_table(found), page, "data")
    if "rows" in parts:
        found = measure_size()
        _publish(folder / "rows.json", found, size_table(found), page, "rows")
    if "stages" in parts:
        found = measure_stages()
        _publish(folder / "stages.json", found, stages_table(found), page, "stages")
    if "export" in parts:
        from rlhf.benchmark.exports import compare_exports, exports_table
        from rlhf.process import quiet

        quiet()
        found = compare_exports(root, recipe, prompts)
        _publish(folder / f"export-{recipe}.json", found, exports_table(found), page, f"export-{recipe}")
    if "serve" in parts:
        from rlhf.benchmark.serving import measure_serving, serving_table

        found = measure_serving(root, f"{recipe}/ppo", repeats)
        _publish(folder / "serve.json", found, serving_table(found), page, "serve")
    if "processes" in parts:
        from rlhf.benchmark.processes import compare_processes, processes_table

        found = compare_processes(repeats)
        _publish(folder / "processes.json", found, processes_table(found), page, "processes")
    if "failures" in parts:
        from rlhf.benchmark.failures import failures_table, measure_failures

        found = measure_failures()
        _publish(folder / "failures.json", found, failures_table(found), page, "failures")
    if "costs" in parts:
        from rlhf.benchmark.costs import costs_table, draw_costs, measure_costs

        found = measure_costs(size, device=device, repeats=repeats, threads=threads)
        folder.mkdir(parents=True, exist_ok=True)
        draw_costs(found, page.with_name("costs.png") if page else folder / "costs.png")
        _publish(folder / "costs.json", found, costs_table(found), page, "costs")
    if "support" in parts:
        from rlhf.benchmark.recipe import compare_recipe
        from rlhf.process import quiet

        quiet()
        found = compare_recipe(root / recipe)
        _publish(folder / "support.json", found, support_table(found), page, recipe)


def _rehearse(folder: Path, size: Size, minutes: float, threads: int | None, page: Path | None) -> None:
    import torch

    from rlhf.benchmark.gpu import gpu_table, rehearse

    if not (there := torch.cuda.is_available()) and page is not None:
        why = "takes what was measured on a GPU, and there is none here: this would be a rehearsal"
        raise Refusal("page", page, why, fix="page=null")

    def tell(report: dict[str, Any]) -> None:
        _write(folder / "gpu.json", report, gpu_table(report), page, "gpu")

    report = rehearse(size, minutes=minutes, there=there, threads=threads, tell=tell)
    _publish(folder / "gpu.json", report, gpu_table(report), page, "gpu")


def _publish(file: Path, report: dict[str, Any], shown: str, page: Path | None, mark: str) -> None:
    _write(file, report, shown, page, mark)
    print(f"\n{shown}\n\nreport   {file}", flush=True)


def _write(file: Path, report: dict[str, Any], shown: str, page: Path | None, mark: str) -> None:
    report |= provenance.provenance()
    report["machine"]["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, report)
    if page is not None:
        between_markers(page, mark, f"{shown}\n\n{origin(report)}")
