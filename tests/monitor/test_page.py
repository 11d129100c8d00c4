"""docs/monitor.md says of each rule what conf/monitor/default.yaml says."""

from rlhf.config import REPO, compose_config, to_stage

RULES = to_stage(compose_config([])).monitor.rules


def test_the_page_has_every_rule_with_its_conditions_and_advice():
    intro, *sections = (REPO / "docs/monitor.md").read_text().split("\n### ")
    assert len(sections) == len(RULES) == 23 and f"## The {len(RULES)} rules" in intro
    for section, (name, rule) in zip(sections, RULES.items(), strict=True):
        points = "1 point" if rule.patience == 1 else f"{rule.patience} points"
        conditions = ", ".join(f"`{condition}`" for condition in rule.when)
        heading, first, meaning, advice = section.strip().split("\n\n")
        assert (heading, first) == (name, f"{rule.level} after {points}: {conditions}")
        assert meaning and advice == f"Advice: {rule.advice}."
