#!/usr/bin/env bash
# datasets 5.2.0: a CSV cell that says None, null, NA or nan is read as a missing value, and a text column of nothing else becomes float64. Replies
# such as "None" are lost before a trainer sees them. A JSON-lines file of zero bytes raises a bare StopIteration.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
venv/bin/python - <<'PYTHON'
import datasets
datasets.disable_progress_bars()
open("some.csv", "w").write("reply\nNone\nnull\nNA\nnan\nfine\n")
open("all.csv", "w").write("reply\nNone\nNA\n")
open("empty.jsonl", "w").close()
some, every = (datasets.load_dataset("csv", data_files=name, split="train") for name in ("some.csv", "all.csv"))
try:
    raised = str(datasets.load_dataset("json", data_files="empty.jsonl", split="train"))
except StopIteration as error:
    raised = repr(error)
print(some["reply"][:], every.features, raised)
assert some["reply"][:] == [None] * 4 + ["fine"] and every.features["reply"].dtype == "float64" and raised == "StopIteration()"
PYTHON
