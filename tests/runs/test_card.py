"""The card says the licence that the weights have, and none where nobody knows; it may be written on."""

import json

import pytest
import yaml

from rlhf import files
from rlhf.runs.card import card, licence


@pytest.mark.parametrize(
    ("settings", "own", "known"),
    [
        (["model=qwen3_8b"], None, "apache-2.0"),
        (["model=llama3.1_8b"], None, "llama3.1"),
        (["model=qwen3_8b", "model.path={}"], None, None),  # other weights than the option's
        (["model=qwen3_8b", "model.path={}"], "license: 'cc-by-nc-4.0'\nbase_model: x\n", "cc-by-nc-4.0"),
        (["model=qwen3_8b", "model.path={}"], "no front matter", None),
        (["model=qwen3_8b", "model.path={}", "model.licence=mit"], "license: gemma", "mit"),
        (["model=qwen3_8b", "model.path=org/other"], None, None),
        (["model=support_scratch"], None, "apache-2.0"),
    ],
)
def test_a_licence_is_that_of_the_weights(compose_stage, tmp_path, settings, own, known):
    weights = tmp_path / "weights"
    weights.mkdir()
    if own is not None:
        (weights / "README.md").write_text(f"---\n{own}---\n")
    settings = [setting.format(weights) for setting in settings]
    stage = compose_stage(
        "run.recipe=mine", "run.stage=x", "dataset=local_demonstrations", "dataset.path=org/rows", *settings
    )
    assert licence(stage, settings) == known
    head = yaml.safe_load(
        card(stage, settings, {"loss": 0.51234, "table": {}}, {"command": ["python", "x"]}).split("---\n")[1]
    )
    assert head.get("license") == known and head["datasets"] == ["org/rows"]
    hub = stage.model.path if stage.model.path and not own and str(tmp_path) not in stage.model.path else None
    assert head.get("base_model") == hub


def test_a_card_may_be_written_on(tmp_path):
    (tmp_path / "adapter.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("as it was")
    listed = json.loads(json.dumps(files.listing(tmp_path)))
    assert list(listed) == ["adapter.safetensors"]
    (tmp_path / "README.md").write_text("with what people should know")
    assert not files.differing(tmp_path, listed | {"README.md": [9, "0" * 64]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_the_code_on_a_card_loads_the_run_as_it_was_trained(chain, name):
    """Pasted as it stands: the same logits, or scores; and on the base in another form they are others."""
    import re

    import torch

    from rlhf.config import read_stage
    from rlhf.export.check import as_trained, logits, prompts_of
    from rlhf.models.layers import plain_4bit_kernels
    from rlhf.models.tokenizer import saved_tokenizer

    folder = chain / "support" / name
    text = (folder / "final/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code.count("PATH/TO/THIS/FOLDER") == 1 and "in nf4" in text
    stage, tokenizer = read_stage(folder), saved_tokenizer(folder / "final")
    trained = as_trained(stage, tokenizer, prompts_of(stage, tokenizer, 4))

    def loaded(code):
        space = {}
        exec(code.replace("PATH/TO/THIS/FOLDER", str(folder / "final")), space)
        plain_4bit_kernels(space["model"])  # the CPU's own kernels of 4 bit round to bf16
        model = space["model"].eval()
        if name == "reward":
            rows = [torch.tensor([p + r]) for p, r in zip(trained.prompts, trained.replies, strict=True)]
            with torch.no_grad():
                found = [model(input_ids=row).logits[0] for row in rows]
        else:
            found = logits(model, trained.prompts, trained.replies)
        pairs = zip(found, trained.logits, strict=True)
        return max(float((ours - theirs[..., : ours.shape[-1]]).abs().max()) for theirs, ours in pairs)

    assert loaded(code) < 1e-4
    unquantized = re.sub(r", quantization_config=BitsAndBytesConfig\(.*?\)(?=[,)])", "", code)
    assert unquantized != code and loaded(unquantized) > 1e-3
    assert 'dtype="float32"' in code and "bnb_4bit_compute_dtype='float32'" in code, "whatever the base is stored in"
    said = re.search(r"`(python src/export.py .*?)`", text)
    assert said and said[1] == f"python src/export.py run=support/{name} run.root={chain}"


@pytest.mark.parametrize("root", ["runs", "some where/runs"])
def test_the_end_of_a_stage_tells_how_to_take_it_out(compose_stage, capsys, root):
    import shlex

    from rlhf import door
    from rlhf.output.console import closing
    from tests.helpers import door_module

    stage = compose_stage("recipes=support/ppo", f"run.root='{root}'")
    closing(stage, {"gold_score": 1.0}, {"seconds": 2, "peak_memory_mb": 3})
    lines = capsys.readouterr().out.splitlines()
    python, script, *given = shlex.split(lines[-1].removeprefix("export   "))
    assert (python, script) == ("python", "src/export.py")
    own = door.arguments(door_module("export").Arguments, given, "")
    assert (own.run, own.run_root, own.to) == ("support/ppo", root, ["hf"])
