"""What a thousand tokens cost: every method at a length, and rankings of a size, really trained."""

from pathlib import Path

from rlhf.benchmark import costs
from rlhf.benchmark.updates import measure
from rlhf.benchmark.workload import SIZES, Size, Task, Workload, make


def test_every_method_is_measured_at_each_length(tmp_path, monkeypatch):
    asked = []

    def here(folder, what, threads):  # without a process of its own, which only memory needs
        if "size" in what:
            make(Path(folder), Size(**what["size"]), "cpu")
            return {}
        asked.append(Task(**what))
        return measure(Workload.read(Path(folder)), asked[-1])

    monkeypatch.setattr(costs, "worker", here)
    for name, value in {"LENGTHS": (32,), "RANKINGS": (3,), "LENGTH": 32, "TOKENS": 128, "MICRO": 64}.items():
        monkeypatch.setattr(costs, name, value)
    report = costs.measure_costs(SIZES["tiny"], device="cpu", repeats=1, threads=1)
    assert [(task.contender, task.prompts) for task in asked] == [
        *((contender, 4) for contender in costs.METHODS.values()),
        ("reward-3/ours", 2),
        ("dpo-3/ours", 2),
    ]
    assert all(value > 0 for of in ("lengths", "rankings") for found in report[of].values() for value in found.values())
    assert costs.costs_table(report).count("32 tokens") == 2
    costs.draw_costs(report, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").stat().st_size > 5000
