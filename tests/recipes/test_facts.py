"""Every published hyperparameter is what the composed stage says, and what TRL, PEFT and bitsandbytes are given."""

import copy
import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf.config import REPO, Stage, compose_config, options, split_batch, to_stage
from rlhf.methods.arguments import training_arguments
from rlhf.models.adapters import lora_config
from rlhf.models.base import quantization_config

FACTS: Any = OmegaConf.to_container(OmegaConf.load(REPO / "tests/recipes/facts.yaml"))
HYPERPARAMETERS = ("seed", "batch_size", "method.args.", "adapter.args.", "quantization.args.", "dataset.system")
PUBLISHED, NOT_FOLLOWED = 636, 50
RECIPES = [option for option in options("recipes") if not option.startswith("support")]


def _composed(recipe: str) -> Stage:
    return to_stage(compose_config([f"recipes={recipe}"]))


class Built:
    """A stage with the argument objects that are built from it."""

    def __init__(self, recipe: str) -> None:
        self.stage = _composed(recipe)
        here = copy.deepcopy(self.stage)
        here.hardware.device, here.hardware.precision = "cpu", "fp32"
        self.args = training_arguments(here)
        self.lora, self.quantization = lora_config(here, "CAUSAL_LM"), quantization_config(here)

    def value(self, key: str) -> Any:
        for prefix, built in (
            ("method.args.", self.args),
            ("adapter.args.", self.lora),
            ("quantization.args.", self.quantization),
        ):
            if key.startswith(prefix):
                found = getattr(built, key.removeprefix(prefix))
                return sorted(found) if isinstance(found, set) else getattr(found, "value", found)
        found = self.stage
        for part in key.split("."):
            found = getattr(found, part)
        return found


def test_the_table_has_every_stage_of_every_recipe_and_says_how_much():
    assert sorted(FACTS) == RECIPES
    values = sum(len(facts["published"]) for facts in FACTS.values())
    differing = sum(len(facts.get("differs", {})) for facts in FACTS.values())
    recipes = {name.partition("/")[0] for name in FACTS}
    print(f"{len(recipes)} recipes, {len(FACTS)} stages, {values} published values, {differing} not followed")
    # who adds or drops a published value says so here
    assert (len(recipes), len(FACTS), values, differing) == (13, 37, PUBLISHED, NOT_FOLLOWED)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_composed_stage_says_what_the_source_says(recipe):
    facts, built = FACTS[recipe], Built(recipe)
    for key, published in facts["published"].items():
        assert built.value(key) == published, (
            f"{recipe}: {key}={built.value(key)!r}, {facts['source']} says {published!r}"
        )
    if "batch_size" in facts["published"]:
        micro, passes = split_batch(built.stage)
        assert micro * passes * built.stage.hardware.devices == facts["published"]["batch_size"]
    readme = (REPO / "recipes" / recipe.partition("/")[0] / "README.md").read_text()
    for key, fact in facts.get("differs", {}).items():
        assert built.value(key) != fact["published"], f"{recipe}: {key} does not differ from the source any more"
        assert f"`{key}`" in readme, f"recipes/{recipe}: the README does not say that {key} differs ({fact['why']})"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_hyperparameter_of_a_recipe_is_published_or_said_to_be_ours(recipe):
    facts = FACTS[recipe]
    accounted = {*facts["published"], *facts.get("differs", {}), *facts.get("ours", [])}
    own = [key for key in _leaves(OmegaConf.to_container(OmegaConf.load(REPO / f"recipes/{recipe}.yaml")))]
    assert not [key for key in own if key.startswith(HYPERPARAMETERS) and key not in accounted]


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict) or prefix.endswith("_kwargs."):
        return [prefix[:-1]]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}{key}.")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_expectation_has_a_source_and_stands_in_the_readme(recipe):
    stage = _composed(recipe)
    readme = (REPO / "recipes" / recipe.partition("/")[0] / "README.md").read_text()
    for metric, expected in stage.expect.items():
        assert len(expected.source) > 8
        assert re.search(rf"(?<![\d.]){re.escape(f'{expected.published:g}')}(?!\d)", readme), (
            metric,
            expected.published,
        )
    assert stage.source.name and stage.source.name.split()[0] in readme
