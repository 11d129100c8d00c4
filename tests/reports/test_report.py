"""What a model wrote is text in the report and in the terminal: it loads no picture, breaks no table, moves no cursor."""

import pytest

from rlhf.output.tables import plain, printable
from rlhf.reports.recipe import _replies

HOSTILE = [
    ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
    ("![a](http://x/y.png)", "\\![a\\](http://x/y.png)"),
    ("[click](javascript:x)", "[click\\](javascript:x)"),
    ("a | b\n\n# heading\n```", "a \\| b # heading \\`\\`\\`"),
    ("\x1b[2Jgone\rover", "\\x1b[2Jgone\\rover"),
    ("\u202eright to left", "\\u202eright to left"),
    ("\x00\x07", "\\x00\\x07"),
    ("plain é 漢字 🙂", "plain é 漢字 🙂"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_text_of_a_model_is_text_in_the_report(text, shown):
    (page,) = _replies({"sft": [{"prompt": text, "reply": text}], "ppo": [{"prompt": text, "reply": ""}]})
    assert page.splitlines() == [f"**{shown}** ", "", f"- sft: {shown}", "- ppo: (nothing)"]
    assert plain(text) == shown


def test_a_terminal_is_shown_no_control_characters():
    assert printable("a\n\tb\x1b]0;title\x07\x9b\u2066c") == "a\n\tb\\x1b]0;title\\x07\\x9b\\u2066c"
