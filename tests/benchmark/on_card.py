"""What happens in a process with a GPU that is not there: `python -m tests.benchmark.on_card <folder>` prints a line of JSON a case."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CARD = ("hardware.device=cuda", "hardware.precision=bf16", "hardware.gradient_checkpointing=true")
SHORT = ("debug.max_steps=1", "method.args.save_steps=1")


def tell(name: str, value: Any) -> None:
    print(json.dumps({name: value}), flush=True)


def refused(make: Callable[[], Any]) -> str | None:
    try:
        make()
    except (RuntimeError, TypeError) as error:
        return str(error)
    return None


def places() -> None:
    """Where tensors are told to lie, and which may not meet."""
    import torch

    x = torch.ones(3, device="cuda", requires_grad=True)
    here, y = torch.ones(3), x.detach()
    made = {
        "to": here.to("cuda"),
        "to an index": here.to(0),
        "to a tensor": here.to(x),
        "new": x.new_zeros(2),
        "like": torch.zeros_like(x),
        "sum": (x * 2).sum(),
        "with a number of the host": x + torch.tensor(1.0),
        "rows told by the host": x[torch.tensor([0, 2])],
        "as": torch.as_tensor(here, device="cuda"),
        "parameter": torch.nn.Linear(3, 2).to("cuda").weight,
        "in bf16": torch.nn.functional.linear(x, x.detach().unsqueeze(0)),
    }
    tell("on the card", {name: str(one.device) for name, one in made.items()})
    back = {"cpu": x.cpu(), "to": x.to("cpu"), "made of nothing": torch.zeros(2), "as": here}
    tell("on the host", {name: str(one.device) for name, one in back.items()})
    wrong = {
        "sum": lambda: x + here,
        "cat": lambda: torch.cat([x, here]),
        "rows of the host": lambda: here[torch.tensor([1], device="cuda")],
        "values of the host": lambda: y.index_put((torch.tensor([0, 1]),), torch.zeros(2)),
        "numpy": lambda: y.numpy(),
        "generator": lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        "backward": lambda: Forgetful.apply(x).sum().backward(),  # type: ignore[attr-defined]
        "recomputed": lambda: recomputed(x),
    }

    class Forgetful(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Any) -> Any:
            return value * 2

        @staticmethod
        def backward(ctx: Any, *slopes: Any) -> Any:
            return slopes[0] + torch.zeros(3)

    def recomputed(value: Any) -> None:
        from torch.utils.checkpoint import checkpoint

        calls: list[int] = []

        def layer(of: Any) -> Any:
            calls.append(1)
            return of.exp() * (torch.ones(3) if len(calls) > 1 else torch.ones(3, device=of.device))

        checkpoint(layer, value, use_reentrant=False).sum().backward()

    tell("refused", {name: refused(make) for name, make in wrong.items()})
    with torch.autocast("cuda", dtype=torch.bfloat16):
        tell("autocast", [str((x.unsqueeze(0) @ x.unsqueeze(1)).dtype), str(torch.log_softmax(x.bfloat16(), 0).dtype)])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    large = torch.empty(1000, 1000, device="cuda") * 2  # twice its bytes, for a moment
    held = torch.cuda.memory_allocated() - before
    del large
    tell("bytes", [held, torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before])


def stages(root: Path) -> None:
    """Stages on the card, then on the host of a machine that has one, then with a fault of the kind that a CPU never finds."""
    import torch

    from rlhf.config import compose_config, to_stage
    from rlhf.methods.arguments import training_arguments
    from rlhf.ppo import loop
    from rlhf.runs.stage import run_stage
    from tests.faults.tiny import settings

    def run(name: str, *more: str) -> Any:
        given = [*settings(name, root), *SHORT, *more]
        return run_stage(compose_config(given), given)

    for name in ("base", "sft", "reward", "ppo"):
        tell(name, sorted(run(name, *(CARD if name != "base" else CARD[:2]))))
    tell("on the host of it", sorted(run("ppo", "run.stage=host")))
    laid = loop.reply_mask
    loop.reply_mask = lambda replies, device: laid(replies, torch.device("cpu"))
    tell("a fault", refused(lambda: run("ppo", "run.stage=faulty", *CARD)))
    torch.cuda.device_count = lambda: 2
    args = training_arguments(to_stage(compose_config([*settings("sft", root), *CARD])))
    tell("rows of a step where two are seen", args.train_batch_size)


if __name__ == "__main__":
    from rlhf.benchmark import fake_gpu
    from rlhf.process import quiet

    quiet()
    fake_gpu.install()
    places()
    stages(Path(sys.argv[1]))
