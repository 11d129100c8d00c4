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
