"""RLHF recipes on TRL: SFT, reward model, PPO and DPO on a 4-bit base.

Importing this package loads neither torch nor trl, so that the doors answer `--help` at once. It does switch telemetry off
before anything that would send it is imported: TRL 1.12 reports each trainer it builds, transformers each download. And a door
that was started with a Python that lacks the libraries goes on in the checkout's .venv.
"""

import importlib.util
import os
import sys

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages for large tensors: rlhf.process.return_freed_memory
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")


def _in_environment(script):  # without annotations: an old Python reads this too
    """Start `script` again with the Python of .venv, or leave with 2 and what to type where there is none."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = os.path.join(checkout, ".venv", "bin", "python")
    if not os.path.isfile(python) or os.environ.get("RLHF_ENVIRONMENT") == python:
        sys.stderr.write(
            "error: this Python lacks hydra, and there is no working " + python + "\n  fix: make install\n"
        )
        sys.exit(2)
    os.environ["RLHF_ENVIRONMENT"] = python  # once, so that a broken .venv ends in words
    os.execv(python, [python, script] + sys.argv[1:])


if importlib.util.find_spec("hydra") is None and os.path.dirname(os.path.abspath(sys.argv[0])) == os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))
):
    _in_environment(sys.argv[0])
