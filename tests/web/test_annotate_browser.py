"""The page that ranks, in a browser: two people at once, a server that dies in the middle, and replies that would like to be a page."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Route, expect

from rlhf.feedback.schema import Reply
from rlhf.feedback.store import Store
from rlhf.people.desk import Desk
from tests.web.browsers import browser, found
from tests.web.servers import TOKEN, Server

ITEMS, SHARED, PATIENCE = 20, 0.3, 60_000
PLANTED = ("<img src=x onerror='window.struck=1'>", "<script>window.struck=1</script>", "w" * 400)


@pytest.fixture
def root(tmp_path):
    with Store(tmp_path / "mine/feedback.sqlite") as store, store.transaction():
        for number in range(ITEMS):
            replies = [Reply(f"{planted} {number}", f"mine/run-{at}") for at, planted in enumerate(PLANTED)]
            ask = [{"role": "user", "content": f"<b onclick='window.struck=1'>question</b> {number}"}]
            store.add(ask, None, "one", [*replies, Reply("We open at nine.", "mine/run-9")])
    return tmp_path


@dataclass
class Person:
    """Somebody with a page of their own; `told` are the judgements that the server acknowledged, with what was sent."""

    name: str
    page: Page
    told: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)  # the replies of the first item, as they were seen

    @classmethod
    def come(cls, name: str, context: BrowserContext, server: Server) -> "Person":
        person = cls(name, context.new_page())
        person.page.set_default_timeout(PATIENCE)
        person.page.on("requestfinished", person.note)
        person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
        person.page.on("console", person.heard)
        person.page.goto(f"http://127.0.0.1:{server.port}/?token={TOKEN}")
        person.page.get_by_label("Your name").fill(name)
        person.page.get_by_role("button", name="Start").click()
        expect(person.page.locator(".reply")).to_have_count(4, timeout=PATIENCE)
        return person

    def heard(self, said: ConsoleMessage) -> None:
        if "Content Security" in said.text:
            self.complaints.append(said.text)

    def note(self, request) -> None:
        if request.url.endswith("/api/judge") and request.response().status == 200:
            self.told.append((request.post_data_json, request.response().json()["judgement"]))

    @property
    def working(self) -> bool:
        return self.page.locator("#work").is_visible()

    @property
    def down(self):
        return self.page.locator("#down")

    def has(self, done: int) -> None:
        """Waits until the server has taken so many judgements and the page is on to the next item."""
        expect(self.page.locator("#counts")).to_have_text(re.compile(f"^{done} done,"), timeout=PATIENCE)
        expect(self.page.locator("body")).not_to_have_class("busy", timeout=PATIENCE)

    def types(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def clicks(self, places: list[int]) -> None:
        for letter, place in zip("ABCD", places, strict=True):
            self.page.get_by_role("group", name=f"Place of reply {letter}").get_by_label(f"Place {place}").click()

    def ranks(self) -> None:
        """In this person's way."""
        done = int(self.page.locator("#counts").inner_text().split()[0])
        if self.name == "ann":
            self.types(["1", "2", "3", "4", "Enter"])
        else:
            self.clicks([2, 1, 1, 2])
            self.page.locator("#send").click()
        self.has(done + 1)

    def pressed(self) -> list[str]:
        return self.page.locator(".place[aria-pressed=true]").all_text_contents()


def serve(root, port=0) -> Server:
    return Server.start("src/annotate.py", "recipe=mine", f"port={port}", f"shared={SHARED}", f"run.root={root}")


def test_two_people_rank_at_once_and_a_killed_server_loses_nothing(root):
    found()
    server = serve(root)
    try:
        with browser() as chromium:
            ann = Person.come("ann", chromium.new_context(viewport={"width": 1280, "height": 900}), server)
            bob = Person.come("bob", chromium.new_context(viewport={"width": 400, "height": 800}), server)
            both_look(ann, bob)
            ann_undoes_and_writes(ann)
            an_answer_is_lost(bob)
            server = the_server_dies(root, server, ann, bob)
            while ann.working or bob.working:
                for person in filter(lambda person: person.working, (ann, bob)):
                    person.ranks()
            for person in (ann, bob):
                assert person.page.evaluate("window.struck") is None and person.complaints == []
                expect(person.page.locator("#done-title")).to_have_text("All done")
            figures(ann, server)
    finally:
        server.kill()
    all_of_it_is_there(root, ann, bob)


def both_look(ann: Person, bob: Person) -> None:
    for person in (ann, bob):
        texts = person.first = person.page.locator(".reply .text").all_text_contents()
        assert [any(text.startswith(planted) for text in texts) for planted in PLANTED] == [True] * 3  # as text
        assert person.page.locator("#work img, #work script, #work b").count() == 0
        assert "mine/run" not in person.page.content()
        assert person.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert ann.page.locator("#turns").text_content() != bob.page.locator("#turns").text_content()


def ann_undoes_and_writes(ann: Person) -> None:
    """By keyboard alone."""
    ann.types(["Enter"])
    expect(ann.page.locator("#error")).to_contain_text("Each reply needs a place")
    ann.types(["2", "1", "1", "3", "Enter"])
    ann.has(1)
    ann.types("u")
    ann.has(0)
    assert ann.pressed() == ["2", "1", "1", "3"]  # what was said
    ann.types(["ArrowDown", "ArrowUp", "1", "k", "b", "w"])
    ann.page.keyboard.type("At nine, xnu 123. Ask me more.")  # which are no commands here
    ann.types(["Control+Enter"])
    ann.has(1)
    ann.types(["x"])
    ann.has(2)


def an_answer_is_lost(bob: Person) -> None:
    """The server keeps a judgement and the page does not hear of it: it sends it again, and nobody sees an error. By mouse alone."""

    def lose(route: Route) -> None:
        assert route.fetch().status == 200
        route.abort()

    bob.page.route("**/api/judge", lose, times=1)
    bob.clicks([4, 3, 2, 1])
    bob.page.get_by_role("group", name="Tags of reply B").get_by_text("honest").click()
    bob.page.locator("#send").click()
    bob.has(1)
    assert bob.page.locator("#error").is_hidden()
    bob.page.locator("#skip").click()
    bob.has(2)


def the_server_dies(root, server: Server, ann: Person, bob: Person) -> Server:
    ann.types("4321")
    bob.clicks([1, 2, 3, 3])
    bob.page.get_by_label("A better reply").fill("half a sent")
    asked = [person.page.locator("#turns").text_content() for person in (ann, bob)]
    server.kill()
    ann.types(["Enter"])  # into the void
    for person in (ann, bob):  # bob's page finds out by itself
        expect(person.down).to_contain_text("What you wrote is kept", timeout=PATIENCE)
    bob.page.get_by_label("A better reply").press_sequentially("ence")
    again = serve(root, server.port)
    ann.has(3)
    for person in (ann, bob):
        expect(person.down).to_be_hidden(timeout=PATIENCE)
    assert ann.page.locator("#turns").text_content() != asked[0]
    bob.page.reload()
    expect(bob.page.locator(".reply")).to_have_count(4, timeout=PATIENCE)
    assert bob.page.locator("#turns").text_content() == asked[1]  # still his
    assert bob.page.get_by_label("A better reply").input_value() == "half a sentence" and bob.pressed() == list("1233")
    return again


def figures(ann: Person, server: Server) -> None:
    for width in (1280, 400):
        ann.page.set_viewport_size({"width": width, "height": 900})
        ann.page.goto(f"http://127.0.0.1:{server.port}/figures")
        expect(ann.page.get_by_role("rowheader", name="ann and bob")).to_be_visible(timeout=PATIENCE)
        assert ann.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert ann.page.locator("svg rect.bar").count() >= 10 and ann.complaints == []


def all_of_it_is_there(root, ann: Person, bob: Person) -> None:
    """Every judgement that was acknowledged stands in the store once, as it was sent; each unshared item has one of them."""
    with Store(root / "mine/feedback.sqlite") as store:
        shared = {item.id for item in store.items() if Desk(store, SHARED).shared(item.id)}
        said = {one.id: one for one in store.judgements()}
        texts = {reply.id: reply.text for item in store.items() for reply in item.replies}
    told = [entry for person in (ann, bob) for entry in person.told]
    assert {number for _, number in told} == set(said) and len(told) == len(
        said
    )  # a lost answer is no second judgement
    for sent, number in told:
        one = said[number]
        assert (one.annotator, one.item, one.outcome) == (sent["annotator"], sent["item"], sent["outcome"])
        assert (list(one.ranks), one.better, one.milliseconds) == (sent["ranks"], sent["better"], sent["milliseconds"])
    stands = [one for one in said.values() if one.undone is None]
    assert len({(one.item, one.annotator) for one in stands}) == len(stands) == len(said) - 1
    judged = sorted(one.item for one in stands if one.outcome != "skipped")
    (skipped,) = (one.item for one in stands if one.outcome == "skipped")
    both = shared - {skipped}
    assert judged == sorted([*range(1, ITEMS + 1), *both]) and 3 <= len(both) < ITEMS
    assert min(sum(one.annotator == name for one in stands) for name in ("ann", "bob")) >= ITEMS // 2 - 2
    for person in (ann, bob):
        one = said[min(number for _, number in person.told)]
        assert [texts[reply] for reply in one.shown] == person.first
    first, second = (one for one in said.values() if one.annotator == "ann" and one.item == said[1].item)
    assert first.undone and list(first.ranks) == [1, 0, 0, 2] and list(second.ranks) == [0, 0, 0, 1]
    assert second.better == "At nine, xnu 123. Ask me more." and ["brief", "kind"] in second.tags.values()
    assert "half a sentence" in {one.better for one in stands if one.annotator == "bob"}


def test_without_a_browser_it_is_said_how_to_get_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match="apt-get install chromium"):
            found()
