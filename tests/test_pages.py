"""What is made from the code stands in docs/ as the code says it now, and what docs/ quote exists."""

import re

import pytest

from docs import make as pages
from rlhf.config import GROUPS, REPO, options


def between(page: str, mark: str) -> str:
    return (REPO / page).read_text().partition(f"<!-- {mark} -->\n")[2].partition(f"\n<!-- /{mark} -->")[0]


@pytest.mark.parametrize(
    ("page", "mark", "make"),
    [("docs/architecture.md", "rooms", pages.rooms), ("docs/configuration.md", "options", pages.configuration)],
)
def test_the_made_parts_are_up_to_date(page, mark, make):
    assert between(page, mark) == make(), "python docs/make.py writes them again"


def test_every_option_has_a_purpose():
    rows = re.findall(r"^\| `(\w+)=([^`]+)` \| (.+) \|$", pages.configuration(), re.MULTILINE)
    assert {(group, name) for group, name, _ in rows} == {(group, name) for group in GROUPS for name in options(group)}
    assert len(rows) >= 55
    assert all(len(purpose) > 10 for *_, purpose in rows)


def test_every_room_is_in_the_picture_and_has_a_sentence():
    made = pages.rooms()
    arrows = re.findall(r'^  (\w+)(?:\["[^"]+"\])? --> (\w+)', made, re.MULTILINE)
    named = {"table": "methods", "pages": "methods.*"}
    assert {named.get(room, room) for arrow in arrows for room in arrow} == set(pages.ROOMS)
    assert len(re.findall(r"^- `\S+(?:/|\.py)`: .{20,}$", made, re.MULTILINE)) == len(pages.ROOMS)


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    """The first column of its tables below the exit codes."""
    quoted = re.findall(r"^\| `([^`]+)` \|", (REPO / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    source = " ".join(file.read_text() for file in (REPO / "src").rglob("*.py"))

    def written(message: str) -> bool:
        """In one piece, or in two, the second of which begins a string that an f-string puts in."""
        words = message.split(" ")
        cuts = [(" ".join(words[:at]), " ".join(words[at:])) for at in range(1, len(words) - 1)]
        return message in source or any(f"{head} {{" in source and f'"{tail}' in source for head, tail in cuts)

    assert len(quoted) >= 14
    assert [message for message in quoted if not written(message)] == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (REPO / "docs").glob("*.md"))]
)
def test_every_link_leads_somewhere(page):
    file = REPO / page
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", file.read_text())
    for link in {a or b for a, b in links}:
        assert link.startswith("https://") or (file.parent / link).exists(), f"{file.name} links to {link}"
