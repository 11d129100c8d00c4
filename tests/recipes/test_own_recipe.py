"""A model or a dataset is one YAML file, a recipe one folder; and a recipe that can't work is refused before anything trains."""

import json
import shutil

import pytest

from rlhf import config
from rlhf.config import REPO, compose_config, options, to_stage
from rlhf.errors import ConfigError, DataError
from rlhf.preflight import hub
from rlhf.preflight.settings import check_settings
from rlhf.runs.pipeline import Pipeline
from rlhf.runs.stage import run_stage
from tests.recipes.helpers import save
from tests.recipes.rows import ROWS


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A copy of conf/ and recipes/ that a test may add to."""
    for folder in ("conf", "recipes"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    monkeypatch.setattr(config, "REPO", tmp_path)
    return tmp_path


def _recipe(home, name, **stages):
    (home / "recipes" / name).mkdir(exist_ok=True)
    for stage, text in stages.items():
        (home / f"recipes/{name}/{stage}.yaml").write_text(
            f"# @package _global_\n{text}\nrun: {{recipe: {name}, stage: {stage}}}\n"
        )


def test_a_model_and_a_dataset_are_one_file_each_and_a_recipe_is_a_folder(home, models):
    rows = ROWS["HuggingFaceH4/ultrafeedback_binarized"][0]
    (home / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save("qwen2", models)
    (home / "conf/model/mine.yaml").write_text(f'path: {model}\nchat_template: chatml\neos_token: "<|im_end|>"\n')
    (home / "conf/dataset/mine.yaml").write_text(
        f"path: {home}/mine.jsonl\ncolumns: {{messages: messages, chosen: chosen, rejected: rejected}}\nsplits: {{eval: null}}\n"
    )
    defaults = "defaults:\n  - override /model: mine\n  - override /dataset: mine\n"
    _recipe(home, "mine", sft=defaults, dpo=f"{defaults}  - override /method: dpo")
    assert {"mine"} <= set(options("model")) & set(options("dataset")) and {"mine/sft", "mine/dpo"} <= set(
        options("recipes")
    )
    settings = [f"run.root={home}/runs", "debug=smoke", "evaluation.prompts=0"]
    assert Pipeline("mine", settings).order == ["sft", "dpo"]
    for name in ("sft", "dpo"):
        run_stage(compose_config([f"recipes=mine/{name}", *settings]), [])
        assert (home / f"runs/mine/{name}/final/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "text, message",
    [
        ("method: {start_from: '${stage:sftt}'}", "reads ${stage:sftt}, which is not a stage; did you mean sft"),
        ("method: {start_from: '${stage:dpo}'}", "recipes/broken: these stages wait for each other: dpo"),
        ("expect: {eval_los: {published: 1, low: 0, high: 2, band: ours, source: x}}", "did you mean eval_loss"),
        (
            "expect: {mt_bench: {published: 7, low: 6, high: 8, band: ours, source: x}}",
            "fix: a metric that the stage logs, or",
        ),
        ("expect: {eval_loss: {published: 3, low: 0, high: 2, band: ours, source: x}}", "must hold the published 3.0"),
        ("expect: {eval_loss: {published: 1, low: 0, high: 2, source: x}}", "say whose band it is"),
        ("expect: {mt_bench: {published: 7, low: 6, high: 8, needs: a judge, source: x}}", "leave them out"),
        (
            "expect: {mmlu: {published: 7, needs: a judge, source: x, benchmark: {task: mmlu, metric: acc}}}",
            "leave one of them out",
        ),
        (
            "expect: {mmlu: {published: 7, source: x, benchmark: {task: mmlu, metric: acc}}}",
            "the band [None, None] must hold the published 7.0",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_it_trains(home, text, message):
    _recipe(
        home,
        "broken",
        sft="",
        dpo=f"defaults:\n  - override /dataset: ultrafeedback\n  - override /method: dpo\n{text}",
    )
    with pytest.raises(ConfigError) as caught:
        Pipeline("broken", [f"run.root={home}/runs", "model=qwen3_0.6b"])
    assert message in str(caught.value)


def test_two_stages_that_wait_for_each_other_are_refused(home):
    _recipe(home, "round", sft="method: {start_from: '${stage:tail}'}", tail="method: {start_from: '${stage:sft}'}")
    with pytest.raises(ConfigError, match="recipes/round: these stages wait for each other: sft, tail"):
        Pipeline("round", [f"run.root={home}/runs", "model=qwen3_0.6b"])


def test_an_expectation_has_a_typed_form(home):
    _recipe(home, "typed", sft="expect: {eval_loss: {publishd: 1}}")
    with pytest.raises(Exception, match="publishd"):
        compose_config(["recipes=typed/sft"])


def _stage(tmp_path):
    return to_stage(compose_config(["recipes=zephyr-7b/sft", f"run.root={tmp_path}"]))


def test_offline_with_nothing_cached_is_refused_with_both_repositories(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        hub.check_repositories([_stage(tmp_path)])
    lines = str(caught.value).splitlines()
    assert (
        lines[0].startswith("model.path=mistralai/Mistral-7B-v0.1 is not cached")
        and "fix: HF_HUB_OFFLINE=0" in lines[1]
    )
    assert lines[2].startswith("dataset.path=HuggingFaceH4/ultrachat_200k is not cached")
    (tmp_path / "models--mistralai--Mistral-7B-v0.1/snapshots").mkdir(parents=True)
    (tmp_path / "HuggingFaceH4___ultrachat_200k").mkdir()
    hub.check_repositories([_stage(tmp_path)])


@pytest.mark.parametrize(
    "of, kind, message",
    [
        (
            "model",
            "GatedRepoError",
            "is gated\n  fix: accept its licence at https://huggingface.co/mistralai/Mistral-7B-v0.1, then `hf auth",
        ),
        ("model", "RepositoryNotFoundError", "there is no such model on the hub"),
        (
            "dataset",
            "GatedRepoError",
            "is gated\n  fix: accept its licence at https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k, then `hf",
        ),
        ("dataset", "RepositoryNotFoundError", "there is no such dataset on the hub"),
        ("model", "ConnectionError", "the hub can't be reached (ConnectionError)"),
    ],
)
def test_a_gated_an_absent_and_an_unreachable_repository(tmp_path, monkeypatch, of, kind, message):
    from huggingface_hub import errors

    def refuse(self, repo_id, repo_type=None, **_):
        if kind == "ConnectionError":
            raise ConnectionError("no route to host")
        if repo_type == of:
            refusal = getattr(errors, kind)
            raise refusal.__new__(refusal)

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        hub.check_repositories([_stage(tmp_path)])
    assert message in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "door_and_recipe", [("train.py", "recipes=zephyr-7b/sft"), ("pipeline.py", "recipe=zephyr-7b")]
)
def test_the_doors_refuse_before_they_train(door, tmp_path, door_and_recipe):
    settings = ("hardware=cpu", f"run.root={tmp_path}/runs")
    refused = door(*door_and_recipe, *settings, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert refused.returncode == 2 and "model.path=mistralai/Mistral-7B-v0.1 is not cached" in refused.stderr, (
        refused.stderr
    )
    assert "fix: HF_HUB_OFFLINE=0, or in model.path a local folder" in refused.stderr
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_what_is_no_repository_may_be_a_file_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("rows.jsonl", "mistral-7b"):
        (tmp_path / name).touch()
    stage = _stage(tmp_path)
    stage.model.path, stage.dataset.path = "mistral", "rows"
    with pytest.raises(ConfigError) as caught:
        hub.check_repositories([stage])
    for line in ("forbids to fetch it; did you mean mistral-7b?", "forbids to fetch it; did you mean rows.jsonl?"):
        assert line in str(caught.value)


def test_rows_that_are_not_there_are_refused_before_the_first_stage(tmp_path):
    stages = [_stage(tmp_path), _stage(tmp_path)]
    stages[0].dataset.path = f"{tmp_path}/zephyr-7b/sft/later.jsonl"  # what a stage of this recipe may write
    stages[1].dataset.path = f"{tmp_path}/nowhere.jsonl"
    with pytest.raises(DataError, match="dataset.path=.*/nowhere.jsonl: no such file or folder"):
        hub.check_repositories(stages)


def test_what_a_stage_writes_or_a_local_file_is_no_repository(tmp_path):
    stages = [to_stage(compose_config([f"recipes=support/{name}", f"run.root={tmp_path}"])) for name in ("base", "sft")]
    assert not [entry for stage in stages for entry in hub.repositories(stage)]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["recipes=imdb-gpt2-large/ppo", "method.reward_model=null"], "ppo needs somebody who scores replies"),
        (["recipes=imdb-gpt2-large/ppo", "dataset.prompt_tokens=[8,2]"], "must be two numbers, fewest and most"),
        (["recipes=zephyr-7b/dpo", "method.learn=all"], "method.learn=all is about method=sft"),
        (["recipes=zephyr-7b/sft", "method.learn=al"], "did you mean all"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError) as caught:
        check_settings(to_stage(compose_config(overrides)), planned=["sft", "reward"])
    assert message in str(caught.value)
