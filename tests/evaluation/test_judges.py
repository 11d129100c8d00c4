"""Who may judge: names, the annotator and its margin, scores that are no numbers."""

import pytest

from rlhf.errors import ConfigError, DataError, GuardStop
from rlhf.evaluation.judges import finite, load_judge
from rlhf.support import annotator, generator
from rlhf.support.replies import ideal_reply


@pytest.mark.parametrize("name", ["annotater", "rewards:x", "reward:", "openai:", "annotator:x"])
def test_an_unknown_judge_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"judge={name}: is not known.*\n  allowed: annotator, reward:<folder"):
        load_judge(name, None, None, tmp_path)
    with pytest.raises(ConfigError, match="did you mean annotator"):
        load_judge("annotater", None, None, tmp_path)


def test_the_annotator_judges_by_facts_and_its_own_margin(compose_stage, tmp_path):
    true = load_judge("annotator", compose_stage("recipes=support/ppo"), None, tmp_path)
    rows = [{"prompt": p["facts"]["prompt"], "facts": p["facts"]} for p in generator.prompts(20, seed=0)]
    best = [row | {"reply": ideal_reply(row["facts"])} for row in rows]
    bad = [row | {"reply": "no."} for row in rows]
    joined = [row | {"reply": row["reply"].replace(". ", " and ", 1)} for row in best]  # a long sentence costs a little
    assert true.scores(best) == [annotator.score(row["facts"], row["reply"]) for row in best]
    found = true.compare(best, bad)
    assert found.shown_first == found.shown_second == [1.0] * 20 and true.compare(bad, best).outcomes == [0.0] * 20
    outcomes = true.compare(best, joined).outcomes
    gaps = [a - b for a, b in zip(true.scores(best), true.scores(joined), strict=True)]
    assert outcomes == [0.5 if abs(gap) < annotator.MARGIN else float(gap > 0) for gap in gaps]
    assert any(0 < gap < annotator.MARGIN for gap in gaps) and 1.0 in outcomes
    with pytest.raises(DataError, match="prompt 1 has no facts"):
        true.scores([best[0], best[1] | {"facts": None}])


def test_a_dataset_without_an_annotator_says_who_else_could_judge(compose_stage, tmp_path):
    with pytest.raises(
        ConfigError, match=r"of HuggingFaceH4/ultrafeedback_binarized.*\n  fix: judge=reward:.*judge=openai:"
    ):
        load_judge("annotator", compose_stage("method=dpo", "dataset=ultrafeedback"), None, tmp_path)


def test_scores_that_are_no_numbers_name_their_prompt():
    assert finite("reward:x", [1.0, -2.0]) == [1.0, -2.0]
    for odd in (float("nan"), float("inf")):
        with pytest.raises(GuardStop, match=rf"judge=reward:x scored {odd} on prompt 2"):
            finite("reward:x", [1.0, 2.0, odd])
