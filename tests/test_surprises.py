"""What docs/surprises.md says that the libraries do, where no other test guards us; and that the page names what exists."""

import ast
import re
import stat

from rlhf.config import REPO
from rlhf.data import sources


def rows() -> list[list[str]]:
    lines = (REPO / "docs/surprises.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")][1:]


def test_every_row_names_a_script_or_a_test_that_exists():
    assert len(rows()) >= 15
    scripts = set()
    for behaviour, _, seen, done, guard in rows():
        assert len(behaviour) > 40 and len(done) > 20
        named = [word for word in re.findall(r"`([^`]+)`", f"{seen} {guard}") if "/" in word]
        assert len(named) == 2
        for name in named:
            file, _, test = name.partition("::")
            assert (REPO / file).is_file(), name
            scripts |= {file} if file.startswith("findings/") else set()
            tree = ast.parse((REPO / file).read_text() if test else "")
            assert not test or test in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name
    assert scripts == {f"findings/{file.name}" for file in (REPO / "findings").iterdir()}


def test_words_that_look_missing_stay_words(tmp_path, compose_stage):
    words = ["None", "null", "NA", "nan"]
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n" + "".join(f"{w},{w},x\n" for w in words))
    dataset = compose_stage("dataset=local_pairs", "method=reward", f"dataset.path={tmp_path}/rows.csv").dataset
    assert [row.values["chosen"] for row in sources.read(dataset, "train")] == words


def test_every_base_is_loaded_without_a_cache(workshop, stage_of):
    from rlhf.models.base import load_base

    assert load_base(stage_of(workshop.reward), workshop.tokenizer).config.use_cache is False


def test_a_sweep_of_no_job_is_refused(door, tmp_path):
    done = door("train.py", "recipe=support/sft", f"run.root={tmp_path}/runs", "-m", "seed=glob(*)")
    assert done.returncode == 2 and "no job" in done.stderr, done.stdout + done.stderr


def test_safetensors_are_for_their_owner(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o600


def test_8_bit_optimizers_step_on_the_cpu():
    import torch
    from bitsandbytes.optim import AdamW8bit

    large, small = (torch.nn.Parameter(torch.ones(64, width)) for width in (128, 32))
    optimizer = AdamW8bit([large, small], lr=1e-2)
    (large.sum() + small.sum()).backward()
    optimizer.step()
    assert float(large.max()) < 1 and float(small.max()) < 1
    assert [optimizer.state[p]["state1"].dtype for p in (large, small)] == [torch.uint8, torch.float32]
