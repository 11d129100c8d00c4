"""What is typed or pasted arrives as it was meant: through bash, through Hydra's grammar, in the stage."""

import os
import re
import shlex
import subprocess
from dataclasses import asdict

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rlhf import shell
from rlhf.config import compose_config, grouped
from rlhf.door import hydra_arguments
from rlhf.errors import Refusal
from rlhf.runs import sweep

TEXTS = ["train[-5%:]", "train[300:]", "a b", " a ", "~/x", "$HOME", "${stage:sft}", "it's", 'say "x"', "a\\", 'a\\"', "räume",
         "数据", "a=b", "a:b", "{x}", "[x]", "x (1)", "a,b", "null", "True", "1e-4", "12e4567", "007", "-1", "", "#x", "a\nb", "x\ty",
         "<|im_end|>", "`ls`", "!x", "*", "C:\\dir", "a/b-c_d.e+f@g%h", "; rm", "a&b", "\\", "inf", "~dataset.columns.x"]  # fmt: skip
VALUES = [
    *TEXTS,
    1,
    1.5,
    1e-05,
    float("inf"),
    float("-inf"),
    True,
    None,
    ["a b", 1, [None]],
    {"a": "b c", "d e": ["x:y"]},
]


def test_a_setting_survives_bash_and_hydra():
    """Each word is given to a real bash; what it hands on is read by Hydra's parser as the value of the same type."""
    words = [shell.setting("dataset.x", value) for value in VALUES]
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, text=True, check=True
    )
    handed = said.stdout.split("\0")[:-1]
    assert handed == [word for line in words for word in shlex.split(line)] and len(handed) == len(VALUES) > 40
    parser = OverridesParser.create()
    for word, value in zip(handed, VALUES, strict=True):
        read = parser.parse_override(word).value()
        assert read == value and type(read) is type(value), word


def test_a_key_that_the_grammar_cannot_write_is_no_setting():
    with pytest.raises(ValueError, match="can't be a key"):
        shell.setting("dataset.columns", {"größe": "x"})


@pytest.mark.parametrize(
    "text",
    ["/data/my rows/pairs.jsonl", "/data/pairs (1).jsonl", "/data/räume/x", "/data/数据/x", "train[:90%]", "train[300:]", "üñí",
     "it's.jsonl", "a#b", "a&b;c", "foo(1).jsonl", "<|end|>", "50% off!", "1_2", "12e4567", "007", "true"],
)  # fmt: skip
def test_a_text_works_as_typed(compose_stage, text):
    """Numbers too: the commit 12e4567 is not infinity, and the folder 1_2 not 12."""
    keys = (
        "dataset.path",
        "dataset.splits.train",
        "model.path",
        "run.stage",
        "model.revision",
        "dataset.columns.prompt",
    )
    found = OmegaConf.create(asdict(compose_stage(*(f"{key}={text}" for key in keys))))
    assert {key: OmegaConf.select(found, key) for key in keys} == dict.fromkeys(keys, text)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["dataset.markers={user: '### Human: ', assistant: b}"], "dataset.markers", {"user": "### Human: ", "assistant": "b"}),
        (["dataset.markers.user=a b", "dataset.markers.assistant=ü"], "dataset.markers", {"user": "a b", "assistant": "ü"}),
        (["dataset.markers={user: Künstlich, assistant: b}"], "dataset.markers", {"user": "Künstlich", "assistant": "b"}),
        (["dataset=hh_rlhf", "dataset.markers.user=b"], "dataset.markers", {"user": "b", "assistant": "\n\nAssistant: "}),
        (["model.init.model_type=llama", "model.init.x.y=2", "model.init.x.z=3"], "model.init",
         {"model_type": "llama", "x": {"y": 2, "z": 3}}),
        (["model.init={model_type: llama, hidden_size: 8}"], "model.init", {"model_type": "llama", "hidden_size": 8}),
        (["dataset.prompt_tokens=[2,8]"], "dataset.prompt_tokens", [2, 8]),
        (["method.reward_model=[/ä/b,function:length]"], "method.reward_model", ["/ä/b", "function:length"]),
        (["dataset.columns={prompt: Frage, reply: Größe (cm)}"], "dataset.columns.reply", "Größe (cm)"),
        (["dataset.columns.prompt=Größe (cm)"], "dataset.columns.prompt", "Größe (cm)"),
        (["dataset.system=Be kind, be brief"], "dataset.system", "Be kind, be brief"),
        (["method.args.run_name=ä (b)"], "method.args.run_name", "ä (b)"),
        (["method.args.learning_rate=1e-4"], "method.args.learning_rate", 1e-4),
        (["model.path=null"], "model.path", None),
        (["dataset.path=\"/data/it's\""], "dataset.path", "/data/it's"),
    ],
)  # fmt: skip
def test_mappings_lists_and_texts_in_them(words, key, value):
    """Also for keys whose default is null, into which OmegaConf alone can't merge."""
    found = OmegaConf.select(compose_config(words), key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


@pytest.mark.parametrize("given", ["~/räume/x", "'~/räume/x'"])
def test_tilde_is_the_home_folder_in_every_path(compose_stage, monkeypatch, given):
    monkeypatch.setenv("HOME", "/somewhere")
    keys = ("model.path", "model.chat_template", "dataset.path", "method.start_from", "run.root")
    stage = compose_stage(*(f"{key}={given}" for key in keys), "method.reward_model=[~/a,function:length,b/c]")
    found = OmegaConf.create(asdict(stage))
    assert {key: OmegaConf.select(found, key) for key in keys} == dict.fromkeys(keys, "/somewhere/räume/x")
    assert stage.method.reward_model == ["/somewhere/a", "function:length", "b/c"]


def test_tilde_in_the_root_reaches_what_is_read_from_it(compose_stage, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert (
        compose_stage("recipe=support/dpo", "run.root=~/runs").method.start_from == "/somewhere/runs/support/sft/final"
    )
    assert shell.home("reward:~/a") == "reward:/somewhere/a" and shell.home("a~b") == "a~b"


def test_several_values_are_a_sweep_or_one_text(tmp_path):
    """A comma is refused without -m, with both ways out; the name of a file that is there needs no quotes."""
    for word, fix in (
        ("seed=1,2", "train.py ... -m"),
        ("dataset.path=a,b", "-m, or 'dataset.path=\"a,b\"' for that one text"),
    ):
        with pytest.raises(Refusal, match=re.escape(fix)):
            grouped([word])
        assert grouped([word], sweep=True) == [word]
    (tmp_path / "a,b.jsonl").touch()
    assert grouped([f"dataset.path={tmp_path}/a,b.jsonl"]) == [f'dataset.path="{tmp_path}/a,b.jsonl"']
    assert grouped(["dataset.path=/ä,/b (1)"], sweep=True) == ['dataset.path="/ä","/b (1)"']


def test_the_word_for_a_sweep_names_what_is_swept():
    words = hydra_arguments(["recipe=support/dpo", "-m", "seed=1,2", "method.args.beta=0.1", "adapter=lora,none"], "")
    assert words[:2] == ["-m", "hydra.sweep.subdir=${trial:seed,adapter}"] and "seed=1,2" in words
    assert "hydra.sweep.subdir=x" in hydra_arguments(["-m", "seed=1,2", "hydra.sweep.subdir=x"], "")


def test_a_trial_has_a_short_name_of_its_own():
    dozen = [f"method.args.a{i}=0.5" for i in range(12)]
    assert (
        sweep.name(["recipes=support/dpo", "run.root=/x", "seed=1", "method.args.beta=0.05"])
        == "method.args.beta-0.05+seed-1"
    )
    given = [
        ["seed=1"], ["seed=2"], ["seed=-1"], [], ["dataset.path=/data/a/rows.jsonl"], ["dataset.path=/data/b/rows.jsonl"],
        ["dataset.path=/more/a/rows.jsonl"], [*dozen, "seed=1"], [*dozen, "seed=2"], ["x=a_b"], ["x=a", "y=b"], ["x=a+y-b"],
        ["model.path=数据" * 40], ["+seed=1"], ["~seed"], ["a.seed=1"], ["run.stage=ü"], ["method.args.loss_type=[sft,ipo]"],
    ]  # fmt: skip
    names = [sweep.name(overrides, ["seed", "dataset.path"]) for overrides in given]
    assert len(set(names)) == len(names), names
    for one, overrides in zip(names, given, strict=True):
        assert len(os.fsencode(one)) <= 60 and not set(one) & set("/,=[]~ '\"$()")
        assert one == sweep.name(overrides[::-1], ["dataset.path", "seed"]), "the same trial in another order"
    assert names[7].startswith("seed-1-") and names[4].startswith("path-a-rows.jsonl-")


def test_the_table_of_a_sweep(tmp_path, monkeypatch):
    done = tmp_path / "seed-1"
    done.mkdir()
    (done / "results.json").write_text('{"accuracy": 0.81, "train_loss": 0.5, "name": "x"}')
    trials = [
        sweep.Trial(["batch_size=8", "seed=1"], done),
        sweep.Trial(["batch_size=8", "seed=2"], tmp_path / "seed-2", 3, "no such file"),
    ]
    monkeypatch.setattr(sweep, "trials", trials)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sweep.table().splitlines()]
    assert lines[0] == ["trial", "differs in", "folder", "exit", "result"]
    assert lines[2] == ["0", "seed=1", str(done), "0", "accuracy 0.81"]
    assert lines[3] == ["1", "seed=2", str(tmp_path / "seed-2"), "3", "no such file"]
