#!/usr/bin/env bash
# TRL 1.12.0: pack_dataset with strategy="wrapped" packs the first thousand rows again and again: rows are mapped in slices of a thousand, and the
# offset of an Arrow slice is left out. No error; the number of packed rows is right. Seen: of 3,000 rows 1,000 are in the result.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2 trl==1.12.0 datasets==5.2.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
from datasets import Dataset
from trl.data_utils import pack_dataset
rows = Dataset.from_dict({"input_ids": [[i] * 10 for i in range(3000)]})
packed = pack_dataset(rows, seq_length=40, strategy="wrapped")
seen = {token for row in packed["input_ids"] for token in row}
print("rows given:", len(rows), "rows in the result:", len(seen), "packed rows:", len(packed))
assert len(packed) == 750 and len(seen) == 1000
PYTHON
