"""The paragraph of a comparison: every claim follows its numbers, and turns when they turn."""

import pytest

from rlhf.compare.conclusion import conclusion
from tests.compare.helpers import synthetic_report


def said(**changes):
    """The paragraph of the synthetic report after `changes`: dotted_path=value, __ between keys and places of lists."""
    report = synthetic_report()
    for path, value in changes.items():
        *way, last = (int(key) if key.isdigit() else key for key in path.split("__"))
        node = report
        for key in way:
            node = node[key]
        node[last] = value
    return conclusion(report)


UNDECIDED = {"win_rates__0__low": 0.49, "win_rates__0__p_corrected": 0.2, "win_rates__0__prompts_to_settle": 1234}
LENGTH = "win_rates__0__length_controlled__"
KL = "equal_kl__"


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, "PPO is preferred to DPO: its win rate is 61.0% (95% interval 55.0% to 66.0%, p = 0.004 corrected for 6 pairs)."),
        (
            {"win_rates__0__rate": 0.4, "win_rates__0__low": 0.36, "win_rates__0__high": 0.45},
            "DPO is preferred to PPO: its win rate is 60.0% (95% interval 55.0% to 64.0%,",
        ),
        (UNDECIDED, "These data do not tell PPO and DPO apart: the win rate of PPO is 61.0% (95% interval 49.0% to 66.0%"),
        (UNDECIDED, "About 1,234 prompts would settle it."),
        (UNDECIDED | {"win_rates__0__prompts_to_settle": None}, "More prompts alone would not settle it."),
        ({"win_rates__0__p_corrected": 0.06}, "do not tell PPO and DPO apart"),  # corrected for the others it is chance
        ({"win_rates": []}, "PPO and DPO were not judged against each other"),
        ({}, "At equal length of the replies its margin survives (58.0%, 53.0% to 64.0%)."),
        ({LENGTH + "low": 0.47}, "its margin is not established (58.0%, 47.0% to 64.0%, which includes one half)."),
        ({LENGTH + "rate": 0.4, LENGTH + "low": 0.35, LENGTH + "high": 0.46}, "the preference is reversed (40.0%"),
        (UNDECIDED | {LENGTH + "low": 0.47}, "Equal length of the replies does not change that (58.0%"),
        (UNDECIDED, "At equal length of the replies PPO would win 58.0%, 53.0% to 64.0%: length hides a difference."),
        ({LENGTH + "overlap": 0.04}, "(overlap 0.04), so this rate is extrapolated."),
        ({"win_rates__0__length_controlled": None}, "Whether length explains it was not measured."),
        ({}, "At equal KL from SFT (2 points from 1 to 4 nats a reply)"),
        ({}, "favours PPO at 2 and DPO at none. The margin survives there."),
        ({KL + "0__low": -0.1}, "favours PPO at 1 and DPO at none. The margin survives there."),
        ({KL + "0__low": -0.5, KL + "0__high": -0.1}, "favours PPO at 1 and DPO at 1. The margin does not survive there."),
        ({KL + "0__low": -0.1, KL + "1__low": -0.1}, "includes 0 everywhere; the margin may come from how far each arm moved."),
        (UNDECIDED | {KL + "0__low": -0.1, KL + "1__low": -0.1}, "includes 0 everywhere. "),
        ({"equal_kl": [], "equal_kl_note": "their KLs do not overlap."}, "could not be compared at equal KL: their KLs do not overlap. "),
        ({"equal_kl": []}, "could not be compared at equal KL: no KL was reached by both arms."),
        (
            {},
            "Against the baselines: DPO is preferred to SFT (70.0%), PPO is preferred to SFT (79.0%), PPO is not told apart from "
            "best-of-16 (54.0%), DPO is not told apart from best-of-16 (49.0%).",
        ),
        (
            {"win_rates__4__rate": 0.4, "win_rates__4__low": 0.35, "win_rates__4__high": 0.45, "win_rates__4__p_corrected": 0.01},
            "best-of-16 is preferred to PPO (60.0%)",
        ),
        ({}, "DPO shows no over-optimization as far as it was trained."),
        ({}, "PPO was over-optimized: from KL 5.4 to its last checkpoint it lost 0.37 points of true preference (95% interval 0.22 to"),
        ({"overoptimization__ppo__fall__low": -0.01}, "PPO may have been over-optimized: the fitted law turns down at KL 5.2"),
        ({"overoptimization__dpo__fall__low": 0.01}, "DPO was over-optimized: from KL"),
        (
            {"overoptimization__dpo__law__peak_kl": 3.0, "overoptimization__dpo__law__turns": True},
            "DPO may have been over-optimized: the fitted law turns down at KL 3 while",
        ),
        ({"overoptimization__ppo__law": None}, "(95% interval 0.22 to 0.52). "),
        (
            {"overoptimization__dpo": {"law": None, "law_note": "only 2 different KLs", "fall": None}},
            "Whether DPO was over-optimized cannot be told: only 2 different KLs.",
        ),
        ({}, "A trial of PPO took 4.1 times as long as one of DPO (620 s against 150 s)."),
        ({"costs__0__seconds_a_trial": 1240.0}, "A trial of DPO took 2.0 times as long as one of PPO (1,240 s against 620 s)."),
        ({}, "With PPO's time: DPO trained 4.1 times as long (beta 0.1) reaches 2.58, not above 2.61 before."),
        ({}, "raised 2 warnings in 2 trials (kl, length)."),
        ({"alerts__1__level": "stop"}, "raised 1 stop and 1 warning in 2 trials (kl, length)."),
        ({"alerts": []}, "The monitor of reward hacking raised no alert."),
        ({"failed": [{"trial": "ppo", "why": "NaN"}]}, "1 trial failed and could not count."),
        ({}, "All this rests on 200 prompts and 3 seeds of support, judged by annotator of support at temperature 1;"),
        ({"setup__seeds": [1, 2]}, "With fewer than 3 seeds the intervals are narrower than they should be. All this rests on 200 prompts and 2 seeds"),
    ],
)  # fmt: skip
def test_the_claim_follows_the_numbers(changes, claim):
    assert claim in said(**changes)


def test_what_the_numbers_do_not_support_is_not_said():
    plain = said()
    for absent in (
        "tell PPO and DPO apart",
        "settle",
        "reversed",
        "extrapolated",
        "fewer than 3 seeds",
        "failed",
        "may have been",
    ):
        assert absent not in plain, absent
    undecided = said(**UNDECIDED)
    for absent in ("PPO is preferred to DPO", "DPO is preferred to PPO", "margin"):
        assert absent not in undecided, absent
    bare = said(costs=[], dpo_with_ppo_time="", win_rates=[])
    for absent in ("took", "PPO's time", "equal KL", "equal length", "baselines"):
        assert absent not in bare, absent


def test_it_is_one_paragraph_without_a_hole():
    for changes in ({}, UNDECIDED, {"win_rates": [], "costs": [], "alerts": [], "overoptimization": {}}):
        text = said(**changes)
        assert "\n" not in text and "None" not in text and "  " not in text and ".." not in text and text.endswith(".")
