"""The browser of this machine, without a window, for tests of our pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable", "chrome")


def found() -> str:
    """Its path; without one the test is skipped, and fails where CI runs it."""
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        why = "no browser: apt-get install chromium, or any of " + ", ".join(NAMES) + " on the PATH"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    return path


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=found(), args=["--no-sandbox"])
        yield started
        started.close()
