"""RLHF recipes on TRL: SFT, reward model, PPO and DPO on a 4-bit base.

Importing this package loads neither torch nor trl, so that the doors answer `--help` at once. It does switch telemetry off
before anything that would send it is imported: TRL 1.12 reports each trainer it builds, transformers each download.
"""

import os

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
