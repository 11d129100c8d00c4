"""Every option and recipe composes, validates and is counted; typos are refused with a hint."""

import copy
import dataclasses
import functools
import re
import subprocess
import sys
import typing
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf.config import GROUPS, REPO, compose_config, needs, options, split_batch, to_stage
from rlhf.errors import ConfigError, StageError
from rlhf.methods import METHODS
from rlhf.methods.arguments import COMPUTED, check_arguments, config_class, training_arguments
from rlhf.models.adapters import lora_config
from rlhf.models.base import quantization_config
from rlhf.preflight.settings import check_settings
from tests.doors import HEAVY, imported

DATA = {"pairs": "support_rankings", "prompts": "support_prompts", "thumbs": "support_thumbs"}
DATA |= {"demonstrations": "support_demonstrations"}
STAGES = ["base", "sft", "reward", "judge", "dpo", "ppo"]


def test_every_option_composes_and_validates(tmp_path):
    """Each option of each group, with a method that can use it; the count guards against a glob that finds nothing."""
    visited = 0
    for group in GROUPS:
        for option in options(group):
            stage = to_stage(compose_config([f"{group}={option}", *_company(group, option), f"run.root={tmp_path}"]))
            if group not in ("hardware", "logging"):  # those need a GPU or a package that is not here
                check_settings(stage, planned=STAGES)
            training_arguments(_on_this_machine(stage))
            quantization_config(stage)
            lora_config(stage, "CAUSAL_LM")
            visited += 1
    assert visited == sum(len(list((REPO / "conf" / group).glob("*.yaml"))) for group in GROUPS)
    assert visited >= 45


def _company(group: str, option: str) -> list[str]:
    """What else an option needs to make sense."""
    if (group, option) in (("adapter", "none"), ("model", "support_scratch")):
        return ["quantization=none", "adapter=none"]
    if (group, option) == ("quantization", "int8"):
        return ["hardware=gpu_24gb"]
    if group == "dataset":
        kinds = {
            "label": "kto",
            "ranking": "dpo",
            "chosen": "dpo",
            "prompt": "ppo",
            "messages": "sft",
            "text": "sft",
            "completion": "sft",
        }
        columns = re.findall(
            r"(\w+):", (REPO / f"conf/dataset/{option}.yaml").read_text().partition("columns: {")[2].split("}")[0]
        )
        method = next(
            kinds[c] for c in ("label", "ranking", "chosen", "completion", "messages", "text", "prompt") if c in columns
        )
        more = ["method.args.response_length=16"] if method == "ppo" else []
        return [f"method={method}", *more, *(["dataset.path=my.jsonl"] if option.startswith("local_") else [])]
    if (group, option) == ("method", "ppo"):
        return ["dataset=support_prompts", "method.args.response_length=48"]
    return []


def _on_this_machine(stage):
    stage.hardware.device, stage.hardware.precision, stage.logging.report_to = "cpu", "fp32", "none"
    return stage


def test_every_recipe_composes(tmp_path):
    recipes = options("recipes")
    assert len(recipes) == len(list((REPO / "recipes").rglob("*.yaml"))) >= 5
    for recipe in recipes:
        cfg = compose_config([f"recipes={recipe}", f"run.root={tmp_path}"])
        stage = to_stage(cfg)
        assert f"{stage.run.recipe}/{stage.run.stage}" == recipe, "a recipe's path is its name"
        check_settings(stage, planned=STAGES)
        training_arguments(_on_this_machine(stage))
        stages = [r.partition("/")[2] for r in recipes if r.startswith(stage.run.recipe + "/")]
        assert set(needs(cfg)) <= set(stages)
        first = (REPO / f"recipes/{recipe}.yaml").read_text().splitlines()
        assert first[0] == "# @package _global_" and f"recipe={recipe}" in first[2]


@pytest.mark.parametrize("recipe", options("recipes"))
def test_each_line_of_a_recipe_matters(recipe, tmp_path):
    """A recipe says only what differs: without any one of its settings the composed config changes."""
    content: Any = OmegaConf.to_container(OmegaConf.load(REPO / f"recipes/{recipe}.yaml"))
    defaults = [entry if isinstance(entry, str) else next(iter(entry.items())) for entry in content.pop("defaults", [])]
    groups = [
        f"recipes={d.removeprefix('/recipes/')}" if isinstance(d, str) else f"{d[0][10:]}={d[1]}" for d in defaults
    ]
    leaves = list(_leaves(content))
    whole = _together(groups, leaves)
    assert leaves and whole == OmegaConf.to_container(compose_config([f"recipes={recipe}"]), resolve=False)
    for skipped in groups:
        assert _together([g for g in groups if g != skipped], leaves) != whole, f"{recipe}: {skipped} changes nothing"
    without = _together(groups, [])
    for key, _ in leaves:  # each sets what no other does
        assert _at(without, key) != _at(whole, key), f"{recipe}: {key} changes nothing"


@functools.cache
def _composed(groups: tuple[str, ...]) -> Any:
    return compose_config(groups)


def _together(groups: list[str], leaves: list[tuple[str, Any]]) -> Any:
    """What a recipe with these defaults and settings would compose to."""
    cfg = copy.deepcopy(_composed(tuple(groups)))
    OmegaConf.set_struct(cfg, False)
    for key, value in leaves:
        section, _, metric = key.partition(".")
        if section == "expect":  # typed, so it comes whole
            cfg = OmegaConf.merge(cfg, {section: {metric: value}})
        else:
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return OmegaConf.to_container(cfg, resolve=False)


def _at(config: Any, key: str) -> Any:
    section, _, metric = key.partition(".")
    for part in (section, metric) if section == "expect" else key.split("."):
        config = config.get(part, "nothing") if isinstance(config, dict) else "nothing"
    return config


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value and not key.endswith("_kwargs") and prefix != "expect.":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys(file):
    """The paths of the keys that have a line of their own and a value, and of those with a comment above them."""
    lines = re.sub(r"\{[^{}]*\}", "{}", file.read_text().partition("\nhydra:")[0]).splitlines()
    above, keys, commented = [], set(), set()
    for before, line in zip(["", *lines], lines, strict=False):
        if key := re.match(r"( *)([\w.]+):( *)(.*)", line):
            above = [(depth, name) for depth, name in above if depth < len(key[1])] + [(len(key[1]), key[2])]
            path = ".".join(name for _, name in above)
            keys |= {path} if key[4] else set()
            commented |= {path} if before.lstrip().startswith("#") else set()
    return keys, commented


def test_each_key_has_a_sentence():
    """In conf/ a comment stands above each key, in its own file or in train.yaml; the monitor's rules are explained where they begin."""
    train, explained = _keys(REPO / "conf/train.yaml")
    assert train <= explained and len(train) > 60
    visited = 0
    for file in (REPO / "conf").rglob("*.yaml"):
        text = file.read_text()
        assert text.startswith("#"), f"{file} does not say what it is"
        group = "" if file.name == "train.yaml" or "@package _global_" in text else f"{file.parent.name}."
        keys, own = _keys(file)
        for key in (key for key in keys if not f"{group}{key}".startswith("monitor.rules.")):
            below = any(name.startswith(f"{group}{key}.") for name in explained)  # {train: ...} of `splits`
            assert key in own or group + key in explained or below, f"{file}: {key}"
            visited += 1
    assert visited > 300


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["modle=support"], "modle is not a key; did you mean model"),
        (["model=qwen3_8bb"], "did you mean qwen3_8b"),
        (["recipes=support/dppo"], "did you mean support/"),
        (["method.arg.beta=1"], "did you mean args"),
        (["seed=abc"], "seed: Value 'abc'"),
        (["batch_sise=3"], "did you mean batch_size"),
        (["quantization=nf5"], "did you mean nf4"),
    ],
)
def test_a_typo_is_refused_with_the_nearest(door, overrides, message):
    done = door("train.py", *overrides)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) <= 6, done.stderr


@pytest.mark.parametrize(
    "key, message",
    [
        ("lerning_rate", "did you mean learning_rate"),
        ("warmup_ratio", "did you mean warmup_steps"),
        ("output_dir", "it follows from run.root"),
        ("per_device_train_batch_size", "it follows from batch_size"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_trl_fields_are_checked_against_the_installed_class(compose_stage, method, key, message):
    stage = compose_stage(f"method={method}", f"dataset={DATA[METHODS[method].rows]}", f"method.args.{key}=0.1")
    with pytest.raises(ConfigError, match=message):
        training_arguments(stage)


def test_a_wrong_type_is_refused_and_all_problems_are_told_at_once(compose_stage):
    stage = compose_stage("method.args.learning_rate=fast", "method.args.max_grad_nrom=1")
    with pytest.raises(ConfigError) as caught:
        training_arguments(stage)
    assert "max_grad_nrom" in str(caught.value) and "learning_rate='fast' is not a number" in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_null_is_the_default_of_a_field_that_cannot_be_null(compose_stage, method):
    data = DATA[METHODS[method].rows]
    kind = config_class(method)
    hints = typing.get_type_hints(kind)
    names = [
        field.name
        for field in dataclasses.fields(kind)
        if type(None) not in typing.get_args(hints[field.name]) and field.name not in COMPUTED and field.init
    ]
    assert len(names) > 60
    plain = compose_stage(f"method={method}", f"dataset={data}")
    plain.method.args = {}
    nulls = compose_stage(f"method={method}", f"dataset={data}")
    nulls.method.args = dict.fromkeys(names)
    assert training_arguments(nulls).to_dict() == training_arguments(plain).to_dict()


def test_batches_split_exactly_or_say_what_would(compose_stage):
    assert split_batch(compose_stage("batch_size=64", "hardware.micro_batch_size=16")) == (16, 4)
    assert split_batch(compose_stage("batch_size=8", "hardware.micro_batch_size=16")) == (8, 1)
    assert split_batch(compose_stage("batch_size=64", "hardware.micro_batch_size=4", "hardware.devices=8")) == (4, 2)
    with pytest.raises(ConfigError, match="batch_size=48 or batch_size=72"):
        split_batch(compose_stage("batch_size=64", "hardware.micro_batch_size=3", "hardware.devices=8"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["adapter=none"], "fix: adapter=lora, or quantization=none"),
        (["quantization=int8"], "needs a GPU"),
        (["dataset=ultrafeedback", "method=dpo", "dataset.long_rows=truncate"], "would cut"),
        (["method.args.packing_strategy=wrapped"], "bfd_split"),
        (["method=dpo", "method.args.label_smoothing=0.1"], "is ignored by loss_type=sigmoid"),
        (["method=dpo", "method.args.label_smoothing=0.1", "method.args.loss_type=[ipo,sft]"], "by loss_type=ipo,sft"),
        (["logging.report_to=wandbb"], "did you mean wandb"),
        (["run.recipe=../../evil"], "plain folder name"),
        (["batch_size=0"], "at least 1"),
        (["model.chat_template=chatmll"], "did you mean chatml"),
        (["method=ppo", "dataset=support_prompts"], "fix: dataset.max_length=192"),
        (["recipes=support/ppo"], "stage `reward` of `support` has not finished"),
    ],
)
def test_contradictions_are_refused_before_anything_heavy(compose_stage, overrides, message):
    with pytest.raises(StageError, match=re.escape(message)):
        check_settings(compose_stage(*overrides))


@pytest.mark.parametrize(
    ("override", "limits"),
    [
        ("seed=-1", "at least 0 and at most 4294967295"),
        ("seed=4294967296", "at most 4294967295"),
        ("evaluation.prompts=-1", "at least 0"),
        ("debug.max_steps=0", "at least 1"),
        ("debug.rows=0", "at least 1"),
        ("hardware.memory_gb=0", "above 0"),
        ("hardware.memory_gb=nan", "above 0"),
        ("method.args.learning_rate=nan", "at least 0"),
        ("method.args.learning_rate=inf", "at least 0"),
        ("method.args.learning_rate=-1", "at least 0"),
        ("method.args.num_train_epochs=0", "above 0"),
        ("method.args.weight_decay=-0.1", "at least 0"),
        ("method.args.adam_beta2=1", "at least 0 and below 1"),
        ("method.args.max_grad_norm=nan", "at least 0"),
        ("method.args.max_steps=-2", "at least -1"),
        ("method.args.save_steps=0", "above 0"),
        ("adapter.args.r=0", "at least 1"),
        ("adapter.args.rank_pattern={q_proj: 0}", "at least 1"),
        ("adapter.args.lora_dropout=1", "at least 0 and below 1"),
        ("adapter.args.lora_alpha=-1", "above 0"),
        ("method=ppo,method.args.temperature=0", "above 0"),
        ("method=ppo,method.args.gamma=1.1", "at least 0 and at most 1"),
        ("method=ppo,method.args.response_length=0", "above 0"),
        ("method=ppo,method.args.missing_eos_penalty=nan", "finite"),
        ("method=dpo,method.args.label_smoothing=2", "at least 0 and at most 1"),
        ("method=dpo,method.args.loss_weights=[1,nan]", "finite"),
        ("method=ppo,method.args.response_length=nan", "above 0"),
        ("debug.reply_tokens=0", "at least 1"),
    ],
)
def test_a_number_that_no_trainer_takes_is_refused(compose_stage, override, limits):
    *method, last = override.split(",", 1) if override.startswith("method=") else [override]
    key = last.partition("=")[0]  # of a mapping's value the key goes on
    stage = compose_stage("recipes=support/sft", *method, last)
    with pytest.raises(ConfigError) as refused:
        check_settings(stage, planned=STAGES)
    said = next(line for line in str(refused.value).splitlines() if line.startswith(key))
    assert limits in said.partition("must be ")[2], said


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("method.args.eos_token_ids=2", "a list"),
        ("method.args.fsdp_config=[a]", "a mapping or a text"),
        ("adapter.args.rank_pattern=[a]", "a mapping"),
        ("adapter.args.target_modules=3", "a list or a text"),
    ],
)
def test_a_field_of_several_types_takes_one_of_them(compose_stage, setting, what):
    stage = compose_stage("recipes=support/ppo", setting)
    with pytest.raises(ConfigError, match=f"is not {what}"):
        check_arguments(stage)


@pytest.mark.parametrize("value", ["abc", "true", "[16]", "{a: 16}"])
@pytest.mark.parametrize("name", ["response_length", "num_mini_batches", "total_episodes"])
def test_what_is_no_number_is_told_before_it_is_reckoned_with(compose_stage, name, value):
    stage = compose_stage("recipes=support/ppo", f"method.args.{name}={value}")
    with pytest.raises(ConfigError) as refused:
        check_settings(stage, planned=STAGES)
    assert str(refused.value) == f"method.args.{name}={value} is not a number"


@pytest.mark.parametrize("key", METHODS["ppo"].unread)
def test_what_a_loop_has_no_use_for_is_refused(compose_stage, key):
    stage = compose_stage("recipes=support/ppo", f"method.args.{key}=1")
    with pytest.raises(ConfigError, match=f"method.args.{key}=1 is for TRL's trainers"):
        check_settings(stage, planned=STAGES)
    check_settings(compose_stage("recipes=support/ppo", f"method.args.{key}=null"), planned=STAGES)


@pytest.mark.parametrize(("given", "sampled"), [(48, 16), (8, 8)])
def test_smoke_is_short_for_ppo_too(compose_stage, given, sampled):
    from rlhf.methods.arguments import method_arguments
    from rlhf.preflight.memory import argument

    long = ["recipes=support/ppo", f"method.args.response_length={given}"]
    stage = compose_stage(*long, "debug=smoke")
    assert method_arguments(stage)["response_length"] == argument(stage, "response_length") == sampled
    assert method_arguments(compose_stage(*long))["response_length"] == given


def test_a_reply_length_that_is_left_to_trl_is_counted_as_trls(compose_stage):
    from rlhf.models.checks import lengths

    stage = compose_stage("recipes=support/ppo", "method.args.response_length=null")
    check_settings(stage, planned=STAGES)
    asked = lengths(stage)["dataset.max_prompt_length + method.args.response_length"]
    assert asked == stage.dataset.max_prompt_length + training_arguments(stage).response_length


@pytest.mark.parametrize(
    "override", ["method.args.max_steps=-1", "method.args.learning_rate=0", "method.args.lr_scheduler_kwargs={x: -1}"]
)
def test_a_number_with_a_meaning_is_taken(compose_stage, override):
    check_settings(compose_stage("recipes=support/sft", override), planned=STAGES)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("+x=1", "x is not a key"),
        ("++modle.path=x", "modle is not a key; did you mean model"),
        ("+run.rot=x", "run.rot is not a key; did you mean run.root"),
        ("+model.a.b=1", "model.a is not a key"),
    ],
)
def test_a_key_that_was_added_and_nobody_reads_is_refused(compose_stage, added, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose_stage("recipes=support/sft", added)


@pytest.mark.parametrize("loss", ["robust", "[sft,exo_pair]", "[aot]", "[aot_unpaired]"])
def test_label_smoothing_goes_with_the_losses_that_read_it(compose_stage, loss):
    rankings = ["method=dpo", "dataset=support_rankings", "method.args.beta=0.1"]
    check_settings(
        compose_stage(*rankings, "method.args.label_smoothing=0.1", f"method.args.loss_type={loss}"),
        planned=["base", "sft"],
    )


def test_composing_is_light():
    """`import rlhf` and composing a config load neither torch nor trl."""
    code = (
        "import sys; sys.path.insert(0, 'src'); import rlhf, rlhf.door, rlhf.runs.pipeline; from rlhf.config import compose_config; "
        "compose_config(['recipes=support/ppo']); heavy = {'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "job"], ["recipes=support/dpo", "--cfg", "job", "--resolve"]]
)
def test_help_is_fast(door, arguments):
    """What takes seconds is not loaded."""
    done = door("train.py", *arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "method" in done.stdout
    assert "hydra" in imported(done) and not HEAVY & imported(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes=support/sft", "modle=x"], "did you mean model"),
        (["recipes=support/base", "seed=-1"], "at least 0"),
        (["recipes=support/base", "hardware.devices=5"], "does not divide by hardware.devices=5"),
        (["recipes=support/sft", "run.root=nowhere"], "has not finished"),
        (["recipes=zephyr-7b/sft", "hardware=cpu", "run.root=nowhere"], "is not cached"),
    ],
)
def test_a_refusal_is_fast(door, tmp_path, arguments, message):
    own = [word.replace("nowhere", str(tmp_path / "nowhere")) for word in arguments]
    own += [f"run.root={tmp_path}/runs"] if "run.root=nowhere" not in arguments else []
    done = door("train.py", *own, PYTHONPROFILEIMPORTTIME="1", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert done.returncode == 2 and message in done.stderr, done.stderr[-2000:]
    assert not HEAVY & imported(done)


OWN = {
    "sft": "packing=true",
    "reward": "center_rewards_coefficient=0.1",
    "dpo": "label_smoothing=0.1",
    "kto": "desirable_weight=1.1",
    "ppo": "kl_coef=0.1",
}


@pytest.mark.parametrize("method", OWN)
def test_a_method_takes_the_settings_of_its_own_trainer(compose_stage, method):
    for owner, setting in OWN.items():
        recipe = "support-thumbs" if method == "kto" else "support"
        stage = compose_stage(f"recipes={recipe}/{method}", f"method.args.{setting}")
        if owner == method:
            key, _, value = setting.partition("=")
            assert str(getattr(training_arguments(stage), key)).lower() == value
        else:
            with pytest.raises(ConfigError, match=f"method.args.{setting.partition('=')[0]} is not a field"):
                training_arguments(stage)
