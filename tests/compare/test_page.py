"""The pages of a comparison: everything in one file, every number in it, and no text of a model that acts as markup."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from rlhf.compare.page import write_pages
from tests.compare.helpers import synthetic_report

HOSTILE = '<script>alert(1)</script> | "a" ![x](http://evil.example/x.png) [y]: http://evil.example\n# no heading `'


class Page(HTMLParser):
    """Tags with their attributes, the cells of each table, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.tables, self.text, self.inside = [], [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def found(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder, synthetic_report())
    return folder, (folder / "report.md").read_text("utf-8"), Page((folder / "report.html").read_text("utf-8"))


def test_the_html_needs_no_other_file_and_describes_each_picture(pages):
    folder, _, page = pages
    images = page.found("img")
    assert len(images) == len(page.found("figcaption")) == 5
    for image, name in zip(images, ("frontier", "win_rates", "overoptimization", "behaviours", "costs"), strict=True):
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data) == (folder / f"{name}.png").read_bytes()
        assert Image.open(BytesIO(base64.b64decode(data))).width >= 900 and len(image["alt"]) > 20
    assert not [
        attrs for _, attrs in page.tags for key in ("href", "src") if not attrs.get(key, "#").startswith(("#", "data:"))
    ]
    assert not page.found("script") and not page.found("link")
    anchors, ids = [a["href"][1:] for a in page.found("a")], [attrs.get("id") for _, attrs in page.tags]
    assert len(anchors) == 12 and all(ids.count(anchor) == 1 for anchor in anchors)


def test_the_markdown_shows_the_pictures_beside_it(pages):
    folder, markdown, _ = pages
    images = re.findall(r"!\[([^\]]{20,})\]\(([^)]+)\)", markdown)
    assert len(images) == 5 and all((folder / file).is_file() for _, file in images)


def test_both_pages_hold_every_number(pages):
    _, markdown, page = pages
    cells = [[cell for row in table for cell in row] for table in page.tables]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in markdown.splitlines()
        if line.startswith("| ")
    ]
    first = [
        "PPO over DPO",
        "0.61 [0.55, 0.66]",
        "0.004",
        "0.58 [0.53, 0.64]",
        "0.4",
        "356 / 20 / 224",
        "0",
        "0",
        "PPO is better than DPO",
    ]
    last = "DPO and best-of-16 are not distinguishable; about 1,900 prompts would settle a difference of this size"
    for row in (
        first,
        ["4", "2.62", "3.2", "0.58", "0.33", "0.8"],
        ["PPO", "9", "620", "90", "5,670", "1,850,000", "2,100,000", "1,500"],
    ):
        assert row in rows and any(row == table_row for table in page.tables for table_row in table), row
    for cell in (last, "none", "d (1.10 - 0.61 log d)", "d (0.90 - 0.20 d)", "5.22", "0.883", "0.1, step 200", "2.60 [2.45, 2.75]",
                 "step 24: warn: kl 11.2 > 10", "support/sft 3fe1a2b4", "9,600 replies a trial", "0.02, 0.1, 0.3", "setting 0.1, step 150"):  # fmt: skip
        assert any(cell in table for table in cells) and any(cell.replace(">", "&gt;") in row for row in rows), cell
    assert sum(len(table) - 1 == 90 for table in page.tables) == 1 and len(page.found("details")) == 1
    for text in (
        "PPO is preferred to DPO: its win rate is 61.0%",
        "python src/compare.py recipe=support at commit 98ddafb1",
        "4.1 times as long",
    ):
        assert text in markdown and text in page.text, text
    assert "Failed trials" not in page.text and "ppo: i am sorry to hear that." in page.text


def test_text_of_a_model_is_shown_and_does_nothing(tmp_path):
    report = synthetic_report()
    report["replies"] = report["replies"][:1]
    report["replies"][0] |= {"prompt": HOSTILE}
    report["replies"][0]["replies"]["ppo"]["text"] = HOSTILE
    report["alerts"][0]["text"] = HOSTILE
    report["failed"] = [{"trial": "ppo-seed1", "why": HOSTILE}]
    report["fairness"]["shared"][0]["value"] = HOSTILE
    report["recipe"] = report["dpo_with_ppo_time"] = "<img src=x onerror=alert(1)>"
    write_pages(tmp_path, report)
    html, markdown = ((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    page = Page(html)
    assert not page.found("script") and len(page.found("img")) == 5 and html.count("default-src 'none'") == 1
    assert sum(cell == HOSTILE for table in page.tables for row in table for cell in row) == 4  # shown as written
    assert "Failed trials" in page.text and page.found("h1") == [{}]
    assert "<script" not in markdown and "<img" not in markdown and "\n# no heading" not in markdown
    assert len(re.findall(r"(?<!\\)!\[[^\]]*\](?!\\)\(", markdown)) == 5
    tables = [line for line in markdown.splitlines() if "alert(1)" in line and line.startswith("|")]
    counts = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert counts == [7, 3, 3, 5], "a bar in a cell would break its table"


def test_parts_without_numbers_are_left_out_or_say_why(tmp_path):
    report = synthetic_report() | {"behaviours": {}, "costs": [], "alerts": [], "replies": [], "win_rates": []}
    report |= {"equal_kl": [], "equal_kl_note": "their KLs do not overlap", "overoptimization": {}}
    report["frontier"] = [row for row in report["frontier"] if row["arm"] == "sft"]
    write_pages(tmp_path, report)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    for absent in ("By behaviour", "Costs", "Replies side by side", "Win rates", "Over-optimization"):
        assert absent not in page.text
    for present in (
        "Not compared: their KLs do not overlap",
        "The monitor of reward hacking raised none.",
        "What the arms share",
    ):
        assert present in page.text
    assert len(page.found("img")) == 1
