"""Rows with the schema of each dataset that the recipes read, good ones and the awkward ones that really occur in them.

`ROWS[hub id, or folder that recipes/reviews/fetch.py writes]` is `(rows, awkward)`: 24 good rows, and awkward ones with what must become of them: kept, or a reason of the ledger.
"""

from typing import Any

U, A, S = "user", "assistant", "system"
Row = dict[str, Any]
LONG = "very long " * 200


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"content": content, "role": role} for role, content in turns]


def _ultrachat(i: int) -> Row:
    turns = [(U, f"Question {i}?"), (A, f"Answer {i}."), (U, "And then?"), (A, f"Then {i} more.")]
    return {"prompt": f"Question {i}?", "prompt_id": str(i), "messages": chat(*turns)}


def _uf(i: int, chosen: str = "a good answer", rejected: str = "a bad one", score: float = 3.0, **more: Any) -> Row:
    asked = more.pop("asked", chat((U, f"Question {i}?")))
    return {
        "prompt": asked[-1]["content"], "prompt_id": str(i), "messages": [*asked, *chat((A, chosen))],
        "chosen": [*asked, *chat((A, chosen))], "rejected": [*asked, *chat((A, rejected))],
        "score_chosen": 8.5, "score_rejected": score,
    } | more  # fmt: skip


def _without(row: Row, *columns: str) -> Row:
    return {key: value for key, value in row.items() if key not in columns}


def _trl_uf(*args: Any, **more: Any) -> Row:
    return _without(_uf(*args, **more), "prompt", "prompt_id", "messages")


def _tulu_pair(*args: Any, **more: Any) -> Row:
    row = _without(_uf(*args, **more), "prompt_id", "messages", "score_chosen", "score_rejected")
    return row | {"id": f"personas_IF_{args[0]}", "source": "ultrafeedback"}


def _hh(i: int, chosen: str = " A kind answer.", rejected: str = " A rude one.", asked: str | None = None) -> Row:
    asked = asked or f"\n\nHuman: Question {i}?\n\nAssistant: What do you mean?\n\nHuman: This."
    return {"chosen": f"{asked}\n\nAssistant:{chosen}", "rejected": f"{asked}\n\nAssistant:{rejected}"}


def _post(i: int) -> str:
    return f"SUBREDDIT: r/advice\n\nTITLE: Title {i}\n\nPOST: Body {i}.\n\nTL;DR:"


def _pair_awkward(make: Any) -> list[tuple[Row, str]]:
    system = chat((S, ""), (U, "Question?"))
    other = make(93) | {"rejected": chat((U, "Another question?"), (A, "a bad one"))}
    multi = chat((U, "One?"), (A, "One."), (U, "Two?"))
    return [
        (make(90, asked=system), "kept"),  # an empty system turn comes first
        (make(91, asked=multi), "kept"),
        (make(92, chosen="the same", rejected="the same"), "chosen equals rejected"),
        (other, "prompts differ"),
        (make(94, score=8.5), "kept"),  # equal scores, and yet one was chosen
        (make(95) | {"chosen": chat((U, "Alone?")), "rejected": chat((U, "Alone?"))}, "wrong role order"),
        (make(96, asked=chat((U, LONG))), "too long"),
        (make(97, chosen=""), "empty text"),
    ]


def _message(i: int, parent: str | None, role: str, rank: int | None, text: str, **more: Any) -> Row:
    return {
        "message_id": f"m{i}", "parent_id": parent, "user_id": "u", "created_date": "2023-01-01", "text": text, "role": role,
        "lang": "en", "review_count": 3, "review_result": True, "deleted": False, "rank": rank, "synthetic": False,
        "model_name": None, "detoxify": {"toxicity": 0.0}, "message_tree_id": "m0", "tree_state": "ready_for_export",
        "emojis": {"name": [], "count": []}, "labels": {"name": [], "value": [], "count": []},
    } | more  # fmt: skip


def _tree(i: int, ranks: tuple[int | None, ...] = (1, 0, 2)) -> list[Row]:
    """A question with three ranked replies, one of which is asked about again and gets two more."""
    at = 100 * i
    rows = [_message(at, None, "prompter", None, f"Question {i}?")]
    rows += [_message(at + 1 + k, f"m{at}", "assistant", rank, f"Reply {k} to {i}.") for k, rank in enumerate(ranks)]
    rows += [_message(at + 10, f"m{at + 2}", "prompter", None, "And then?")]
    return rows + [_message(at + 11 + k, f"m{at + 10}", "assistant", k, f"Second reply {k} to {i}.") for k in range(2)]


TREES: list[Row] = [message for i in range(24) for message in _tree(i)]
TREES += _tree(90, ranks=(0, None, None))  # nobody ranked two of the three: one ranked reply is no ranking
TREES += [_message(9999, "m9998", "assistant", 0, "an orphan"), _message(9997, "m9998", "assistant", 1, "another")]

_SMOL = [({"messages": chat((S, "Be brief."), (U, "Question?"), (A, "Yes.")), "source": "s"}, "kept")]
_DIALOGUES = [
    (chat((U, "Question?")), "wrong role order"),  # a single message
    (chat((U, "a"), (U, "b"), (A, "c")), "wrong role order"),
    (chat((U, "Question?"), (A, "")), "empty text"),
    (chat((S, ""), (U, "Question?"), (A, "Yes.")), "kept"),
    (chat((U, "Question?"), (A, LONG)), "truncated"),
]


def _review(i: int, rest: str = "is good enough.") -> Row:
    return {"prompt": f"Film {i}", "text": f"Film {i} {rest}", "rating": 1.375}


def _reviewed(i: int, *replies: str, ranks: tuple[int, int] | None = None) -> Row:
    said = [*replies] or [" is a good film.", " is not."]
    return {
        "prompt": f"Film {i}",
        "replies": said,
        "ranks": [*(ranks or (i % 2, 1 - i % 2))],
        "true_scores": [1.5, -0.533],
    }


_REVIEWED: list[tuple[Row, str]] = [
    (_reviewed(90, " is a good film.", f" is {LONG}"), "too long"),
    (_reviewed(91, " is a good film", " is a good film."), "kept"),  # but for a full stop they are the same
    (_reviewed(92, ", it's not -- é, ''dull''", " is."), "kept"),
]

ROWS: dict[str, tuple[list[Row], list[tuple[Row, str]]]] = {
    "HuggingFaceH4/ultrachat_200k": (
        [_ultrachat(i) for i in range(24)],
        [({"prompt": "p", "prompt_id": "x", "messages": messages}, what) for messages, what in _DIALOGUES],
    ),
    "HuggingFaceH4/ultrafeedback_binarized": ([_uf(i) for i in range(24)], _pair_awkward(_uf)),
    "trl-lib/ultrafeedback_binarized": ([_trl_uf(i) for i in range(24)], _pair_awkward(_trl_uf)),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": ([_tulu_pair(i) for i in range(24)], _pair_awkward(_tulu_pair)),
    "allenai/tulu-3-sft-mixture": (
        [{"id": str(i), "messages": _ultrachat(i)["messages"], "source": "s"} for i in range(24)],
        [({"id": "x", "messages": messages, "source": "s"}, what) for messages, what in _DIALOGUES],
    ),
    "HuggingFaceTB/smol-smoltalk": (
        [{"messages": _ultrachat(i)["messages"], "source": "s"} for i in range(24)],
        _SMOL + [({"messages": messages, "source": "s"}, what) for messages, what in _DIALOGUES],
    ),
    "Anthropic/hh-rlhf": (
        [_hh(i) for i in range(24)],
        [
            (_hh(90) | {"rejected": "\n\nHuman: Another?\n\nAssistant: a"}, "prompts differ"),  # before the last turn
            (_hh(91, rejected=" A kind answer."), "chosen equals rejected"),
            (_hh(92, chosen=""), "empty text"),
            (_hh(93, asked=f"\n\nHuman: {LONG}"), "too long"),
            (_hh(94) | {"chosen": "\n\nAssistant: I begin.", "rejected": "\n\nAssistant: I too."}, "wrong role order"),
            (_hh(95, asked="\n\nHuman: q?\n\nHuman: q again?"), "wrong role order"),
        ],
    ),
    "trl-lib/tldr": (
        [{"prompt": _post(i), "completion": f" In short, {i}."} for i in range(24)],
        [
            ({"prompt": _post(90), "completion": " "}, "empty text"),
            ({"prompt": LONG, "completion": " short"}, "too long"),
        ],
    ),
    "trl-lib/tldr-preference": (
        [{"prompt": _post(i), "chosen": f" In short, {i}.", "rejected": f" Well, {i}"} for i in range(24)],
        [
            ({"prompt": _post(90), "chosen": " same", "rejected": " same"}, "chosen equals rejected"),
            ({"prompt": LONG, "chosen": " a", "rejected": " b"}, "too long"),
        ],
    ),
    "timdettmers/openassistant-guanaco": (
        [{"text": f"### Human: Question {i}?### Assistant: Answer {i}.### Human: More?### Assistant: No."} for i in range(24)],
        [
            ({"text": "### Human: Question?### Assistant: Yes.### Human: And?"}, "wrong role order"),
            ({"text": "no marker at all"}, "not a transcript"),
            ({"text": f"### Human: q### Assistant: {LONG}"}, "truncated"),
        ],
    ),
    "databricks/databricks-dolly-15k": (
        [
            {"instruction": f"Do {i}.", "context": "A passage." * (i % 3 == 0), "response": f"Done {i}.", "category": "open_qa"}
            for i in range(24)
        ],
        [({"instruction": "Do.", "context": "", "response": "", "category": "open_qa"}, "empty text")],
    ),
    "stanfordnlp/imdb": (
        [{"text": f"This film is number {i}.<br /><br />I saw it.", "label": i % 2} for i in range(24)],
        [({"text": "Bad " * 900, "label": 0}, "truncated"), ({"text": "", "label": 1}, "empty text")],
    ),
    "OpenAssistant/oasst1": (TREES, []),
    "recipes/reviews/fetched/texts": (
        [_review(i) for i in range(24)],
        [(_review(90, LONG), "too long"), (_review(91, "''Dull', it's not -- é, 2½ stars"), "kept")],
    ),
    "recipes/reviews/fetched/pairs": ([_reviewed(i) for i in range(24)], _REVIEWED),
    "recipes/reviews/fetched/judge": ([_reviewed(i) for i in range(24)], _REVIEWED),
}  # fmt: skip


def laid_out(name: str) -> list[tuple[Row, str]]:
    """The rows of a split of dataset `name`, each with what must become of it."""
    good, awkward = ROWS[name]
    return [(row, "kept") for row in good[:2]] + awkward + [(row, "kept") for row in good[2:]]
