"""Ours in place of TRL's PPO: arguments, fields, metrics and card, held against TRL's own where the installed release has them."""

import dataclasses
import inspect
from pathlib import Path

import yaml

from rlhf.ppo.base import BaseConfig, OnlineTrainerState
from rlhf.ppo.trainer import PPOConfig, PPOTrainer
from tests.helpers import needs_stock
from tests.ppo.defects.helpers import Ours, Stock


@needs_stock
def test_the_fields_are_those_of_trl():
    from trl.experimental.ppo import PPOConfig as Theirs

    def fields(cls):
        return {one.name: (one.type, one.default, one.init) for one in dataclasses.fields(cls)}

    assert list(fields(BaseConfig)) == list(fields(Theirs)) and fields(BaseConfig) == fields(Theirs)
    added = fields(PPOConfig).keys() - fields(Theirs).keys()
    assert {"value_learning_rate", "max_update_kl"} <= added and len(added) < 20


@needs_stock
def test_the_trainer_is_built_and_used_as_trls():
    from trl.experimental.ppo import PPOTrainer as Theirs
    from trl.experimental.ppo.ppo_trainer import OnlineTrainerState as State

    def arguments(cls):
        found = inspect.signature(cls.__init__).parameters.values()
        return [(one.name, one.kind, one.default) for one in found]

    assert arguments(PPOTrainer) == arguments(Theirs)
    assert {name for name in vars(Theirs) if not name.startswith("__")} <= set(dir(PPOTrainer))
    assert dataclasses.asdict(OnlineTrainerState()) == dataclasses.asdict(State())
    assert issubclass(PPOTrainer, Theirs.__bases__)


@needs_stock
def test_an_update_logs_what_trls_does(tmp_path, monkeypatch):
    kinds = []
    for side in (Stock, Ours):
        trainer = side(tmp_path / side.__name__, monkeypatch).build()
        trainer.train()
        kinds.append({key for row in trainer.state.log_history for key in row})
    assert {"objective/kl", "loss/policy_avg", "val/ratio_var", "episode", "eps"} <= kinds[0] <= kinds[1]


@needs_stock
def test_the_card_is_that_of_trl(tmp_path, monkeypatch):
    """Letter by letter; the tags are a set, in no order of their own."""
    cards = []
    for side in (Stock, Ours):
        trainer = side(tmp_path / side.__name__, monkeypatch).build()
        trainer.create_model_card(model_name="one")
        head, text = (tmp_path / side.__name__ / "README.md").read_text().split("---\n")[1:]
        known = yaml.safe_load(head)
        cards.append((known | {"tags": set(known["tags"])}, text))
    assert cards[0] == cards[1] and {"trl", "ppo"} <= cards[0][0]["tags"] and "Ziegler" in cards[0][1]


def test_the_card_names_ppo_and_its_paper_on_every_trl(make_trainer):
    trainer = make_trainer()
    trainer.create_model_card(model_name="one")
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "- ppo" in card and "Fine-Tuning Language Models from Human Preferences" in card and "1909.08593" in card


def test_episodes_are_kept_with_the_state(tmp_path):
    state = OnlineTrainerState(episode=12)
    state.save_to_json(str(tmp_path / "state.json"))
    assert OnlineTrainerState.load_from_json(str(tmp_path / "state.json")).episode == 12


def test_the_reference_is_on_within_its_context(make_trainer):
    trainer = make_trainer()
    with trainer.null_ref_context():
        assert trainer.reference.peft.active_adapter == trainer.reference.adapter
    assert trainer.policy.peft.active_adapter != trainer.reference.adapter
