"""Columns to roles to checked messages, on rows with the schemas of real datasets and with every defect we name."""

import pytest

from rlhf.data import contract
from rlhf.data.contract import BadRow
from rlhf.data.sources import Row

U, A = "user", "assistant"


def _chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def _dataset(compose_stage, name):
    return compose_stage(f"dataset={name}").dataset


# the real schemas, one row each
REAL = {
    "ultrachat": {"prompt": "p", "prompt_id": "0", "messages": _chat((U, "p"), (A, "a"), (U, "q"), (A, "b"))},
    "ultrafeedback": {
        "prompt": "p",
        "prompt_id": "0",
        "chosen": _chat((U, "p"), (A, "good")),
        "rejected": _chat((U, "p"), (A, "bad")),
        "messages": _chat((U, "p"), (A, "good")),
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
    "hh_rlhf": {
        "chosen": "\n\nHuman: p\n\nAssistant: a\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: p\n\nAssistant: a\n\nHuman: q\n\nAssistant: bad",
    },
    "tldr": {"prompt": "SUBREDDIT: r/x\n\nPOST: body\n\nTL;DR:", "completion": " summary"},
    "tldr_preference": {"prompt": "POST: body\n\nTL;DR:", "chosen": " good", "rejected": " bad"},
    "guanaco": {"text": "### Human: p### Assistant: a### Human: q### Assistant: b"},
    "tulu3": {"id": "x", "messages": _chat(("system", ""), (U, "p"), (A, "a")), "source": "s"},
    "tulu3_preference": {
        "id": "x",
        "prompt": "p",
        "chosen": _chat((U, "p"), (A, "good")),
        "rejected": _chat((U, "p"), (A, "bad")),
        "source": "s",
    },
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_schemas(compose_stage, name):
    dataset, row = _dataset(compose_stage, name), Row("here:1", REAL[name])
    if "chosen" in dataset.columns:
        (pair,) = contract.pairs(dataset, row)
        assert [m[0]["content"].strip() for m in (pair.chosen, pair.rejected)] == ["good", "bad"]
        assert pair.prompt.messages[-1]["role"] == U
    else:
        messages = contract.dialogue(dataset, row).messages
        assert messages[-1]["role"] == A and messages[-1]["content"]
    assert contract.prompt(dataset, row).messages[-1]["role"] == U


def test_a_ranking_gives_all_strict_pairs_and_no_ties(compose_stage):
    dataset = _dataset(compose_stage, "support_rankings")
    row = Row(
        "here:1", {"prompt": "p", "replies": list("abcd"), "ranks": [1, 0, 1, 3], "true_scores": [1.0, 2.0, 0.5, -1.0]}
    )
    pairs = list(contract.pairs(dataset, row))
    assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in pairs] == [
        ("b", "a"),
        ("a", "d"),
        ("b", "c"),
        ("b", "d"),
        ("c", "d"),
    ]
    assert [p.true_margin for p in pairs] == [1.0, 2.0, 1.5, 3.0, 1.5]


def _pair(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    "name, values, reason",
    [
        ("ultrafeedback", _pair(_chat((U, "p"), (A, "x")), _chat((U, "p"), (A, "x"))), "chosen equals rejected"),
        ("ultrafeedback", _pair(_chat((U, "p"), (A, "x")), _chat((U, "other"), (A, "y"))), "prompts differ"),
        ("ultrafeedback", _pair(_chat((A, "x")), _chat((A, "y"))), "wrong role order"),
        ("ultrafeedback", _pair(_chat((U, "p")), _chat((U, "p"))), "wrong role order"),
        ("ultrafeedback", _pair(None, _chat((U, "p"), (A, "y"))), "not messages"),
        ("hh_rlhf", _pair("no marker", "\n\nHuman: p\n\nAssistant: b"), "not a transcript"),
        (
            "hh_rlhf",
            _pair("\n\nHuman: p\n\nAssistant: a\n\nHuman: x\n\nAssistant: c", "\n\nHuman: p\n\nAssistant: b"),
            "prompts differ",
        ),
        ("ultrachat", {"messages": []}, "wrong role order"),
        ("ultrachat", {"messages": _chat((U, "a"), (U, "b"), (A, "c"))}, "wrong role order"),
        ("ultrachat", {"messages": _chat((U, "a"), (A, ""))}, "empty text"),
        ("ultrachat", {"messages": _chat((U, "a"), (A, 5))}, "not messages"),
        ("ultrachat", {"messages": "a"}, "wrong role order"),
        ("tldr", {"prompt": "p", "completion": 5}, "not text"),
        ("tldr", {"prompt": "p", "completion": "  "}, "empty text"),
        ("support_rankings", {"prompt": "p", "replies": ["a"], "ranks": [0], "true_scores": [1]}, "not a ranking"),
        (
            "support_rankings",
            {"prompt": "p", "replies": ["a", "b"], "ranks": [0], "true_scores": [1, 2]},
            "not a ranking",
        ),
        (
            "support_rankings",
            {"prompt": "p", "replies": ["a", "a"], "ranks": [0, 1], "true_scores": [1, 2]},
            "chosen equals rejected",
        ),
    ],
)
def test_a_row_that_breaks_the_contract_is_refused_by_reason(compose_stage, name, values, reason):
    dataset = _dataset(compose_stage, name)
    with pytest.raises(BadRow) as caught:
        if {"chosen", "ranking"} & set(dataset.columns):
            list(contract.pairs(dataset, Row("here:1", values)))
        else:
            contract.dialogue(dataset, Row("here:1", values))
    assert caught.value.reason == reason


def test_a_system_message_is_inserted_where_there_is_none(compose_stage):
    dataset = compose_stage("dataset=ultrachat", "dataset.system=''").dataset
    assert contract.dialogue(dataset, Row("h:1", REAL["ultrachat"])).messages[0] == {"role": "system", "content": ""}
