"""docs/ppo.md links each detail to its line: the name that a link shows stands there."""

import re
from pathlib import Path

from rlhf.config import REPO

PAGE = REPO / "docs/ppo.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([\w./]+\.py)#L(\d+)\)")


def line_of(name: str, file: Path, patterns: tuple[str, ...]) -> int:
    """The first line, from 1, of the first pattern that has one; 0 for none."""
    lines = file.read_text().splitlines() if file.is_file() else []
    matches = ((i, re.match(what.format(name), line)) for what in patterns for i, line in enumerate(lines, 1))
    return next((i for i, match in matches if match), 0)


def renewed(text: str) -> str:
    """The page with the file and the line where each name is now; what left its file is looked for by its definition."""
    defined = r"\s*(def|class) {}\b"
    everywhere = [*sorted(REPO.glob("src/rlhf/**/*.py")), *sorted(REPO.glob("tests/**/*.py"))]

    def link(match: re.Match[str]) -> str:
        name, place, _ = match.groups()
        number = line_of(name, file := REPO / place, (defined, r"\s*{}\b[^=(]*[:=] ", r".*\b{}\b"))
        places = [(other, line_of(name, other, (defined,))) for other in ([] if number else everywhere)]
        file, number = next((found for found in places if found[1]), (file, number))
        return f"[`{name}`](../{file.relative_to(REPO).as_posix()}#L{number})"

    return LINK.sub(link, text)


def test_each_link_shows_the_name_that_stands_on_its_line():
    text = PAGE.read_text()
    links = LINK.findall(text)
    assert len(links) >= 100 and len(links) == text.count("](../")
    for name, place, number in links:
        line = (REPO / place).read_text().splitlines()[int(number) - 1]
        assert re.search(rf"\b{name}\b", line), f"{place}#L{number} is {line!r}, without {name}"
    assert text == renewed(text), "PYTHONPATH=src python tests/ppo/test_page.py"


def test_a_link_that_went_stale_is_renewed():
    text = PAGE.read_text()
    moved = LINK.sub(lambda match: match[0].replace("#L", "#L9"), text)
    gone = text.replace("../src/rlhf/ppo/objective.py", "../src/rlhf/ppo/advantages.py")
    assert moved != text != gone
    assert renewed(moved) == renewed(gone) == text


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
