"""The chat page in a browser: text that streams, thumbs, two replies, what goes wrong, and both widths."""

import pytest

from rlhf.feedback.store import Store
from tests.web.browsers import browser
from tests.web.servers import REPO, TOKEN, Server

SCRIPT = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def page_of(chromium, tmp_path):
    """`page_of(compare, width)`: the page of a server of its own; nothing in it may complain."""
    servers, complaints = [], []

    def open_page(compare, width=1280):
        words = (f"store={tmp_path / 'a.sqlite'}", f"compare={compare}")
        servers.append(Server.start(str(REPO / "tests/web/scripted.py"), *words))
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{servers[-1].port}/?token={TOKEN}")
        page.server, page.complaints = servers[-1], complaints
        return page

    yield open_page
    for server in servers:
        server.kill()


def ask(page, text):
    from playwright.sync_api import expect

    page.fill("#text", text)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_have_text("Send")
    return page.locator(".answer").last


def test_a_reply_is_text_whatever_is_in_it_and_gets_a_thumb(page_of, tmp_path):
    page = page_of(compare=0)
    assert TOKEN not in page.url
    answer = ask(page, SCRIPT)
    assert SCRIPT in answer.locator(".choice").inner_text() and page.locator(".own").inner_text() == SCRIPT
    assert page.locator("main img, main script").count() == 0 and page.title() == "Chat"
    answer.get_by_text("Bad reply").click()
    answer.get_by_text("Kept.").wait_for()
    answer = ask(page, "and then?")
    answer.get_by_text("Good reply").click()
    answer.get_by_text("Kept.").wait_for()
    with Store(tmp_path / "a.sqlite", write=False) as store:
        assert [up for _, _, up in store.thumbs()] == [False, True]
        turns = store.items()[-1].messages
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"] and SCRIPT in turns[1]["content"]
    assert page.complaints == []


@pytest.mark.parametrize("width", [1280, 400])
def test_two_replies_are_compared_and_the_better_one_goes_on(page_of, tmp_path, width):
    page = page_of(compare=1, width=width)
    answer = ask(page, "when do you open?")
    first, second = answer.locator(".choice").all()
    boxes = [one.bounding_box() for one in (first, second)]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width == 1280)  # side by side, or one below the other
    texts = [one.inner_text().partition("\n")[2].strip() or one.inner_text() for one in (first, second)]
    answer.get_by_text("B is better").click()
    answer.get_by_text("Kept.").wait_for()
    for label in ("About the same", "Neither is good"):
        last = ask(page, "and on Sundays?")
        last.get_by_text(label).click()
        last.get_by_text("Kept.").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with Store(tmp_path / "a.sqlite", write=False) as store:
        told, items = store.judgements(), store.items()
    assert [(one.outcome, list(one.ranks)) for one in told] == [
        ("ranked", [1, 0]),
        ("ranked", [0, 0]),
        ("all bad", []),
    ]
    assert told[0].milliseconds is not None and items[0].replies[1].text == items[1].messages[1]["content"] in texts[1]
    assert page.complaints == []


def test_what_goes_wrong_is_told_and_nothing_that_was_written_is_lost(page_of):
    page = page_of(compare=0)
    answer = ask(page, "well BREAK")
    assert "a/one broke off" in answer.locator(".error").inner_text()
    assert page.input_value("#text") == "well BREAK" and page.locator(".own").count() == 0
    page.fill("#text", "SLOW down")
    page.keyboard.press("Enter")
    page.locator(".choice").last.get_by_text("SLOW").wait_for()
    page.get_by_text("Stop", exact=True).click()
    page.get_by_text("Stopped.").wait_for()
    assert "hi" in ask(page, "hi").inner_text()
    page.server.kill()
    answer = ask(page, "is anybody there?")
    answer.locator(".error").wait_for()
    assert page.input_value("#text") == "is anybody there?"
    page.get_by_text("New conversation").click()
    assert page.locator(".answer").count() == 0 and page.locator("#hint").is_visible()
