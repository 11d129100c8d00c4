"""A process with a GPU that is not there: `python -m tests.benchmark.on_card <folder>` runs the tiny recipe of six stages on it."""

import sys
import time
from pathlib import Path

from tests.faults.tiny import STAGES, settings

CARD = ("hardware.device=cuda", "hardware.precision=bf16", "hardware.gradient_checkpointing=true")


def main(root: Path, *more: str) -> None:
    from rlhf.benchmark import fake_gpu
    from rlhf.config import compose_config
    from rlhf.process import quiet
    from rlhf.runs.stage import run_stage

    quiet()
    fake_gpu.install()
    for name in STAGES:
        began = time.time()
        given = [*settings(name, root), *CARD, *more]
        if name == "base":
            given = [one for one in given if "gradient_checkpointing" not in one]
        run_stage(compose_config(given), given)
        print(f"{name} {time.time() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
