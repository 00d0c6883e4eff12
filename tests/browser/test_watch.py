"""Every fault that the pages of these tests are watched for is noticed."""

import time

import pytest
from playwright.sync_api import Page

from browser.conftest import WAIT_MS, Watched

pytestmark = pytest.mark.browser


def expect_noticed(page: Page, watched: Watched, message: str) -> None:
    end = time.monotonic() + WAIT_MS / 1000
    while not any(message in problem for problem in watched.problems):
        assert time.monotonic() < end, watched.problems
        page.wait_for_timeout(10)  # meanwhile, events are reported
    watched.problems.clear()


def test_another_host_is_noticed(page: Page, watched: Watched) -> None:
    """The page's own policy forbids to ask one; a page without it is caught by the browser's lack of a network."""
    asking = "() => fetch('http://kd-toolkit.test/').catch(() => null)"
    page.evaluate(asking)
    expect_noticed(page, watched, "kd-toolkit.test")
    page.goto("about:blank")
    page.evaluate(asking)
    expect_noticed(page, watched, "another host was asked: http://kd-toolkit.test/")


def test_an_error_in_a_script_is_noticed(page: Page, watched: Watched) -> None:
    page.evaluate("() => { setTimeout(() => { throw new Error('a bug'); }); }")
    expect_noticed(page, watched, "uncaught: a bug")
    page.evaluate("() => console.error('a complaint')")
    expect_noticed(page, watched, "console: a complaint")


def test_a_failed_request_is_noticed(page: Page, watched: Watched) -> None:
    page.evaluate("() => fetch('/nothing-is-here')")
    expect_noticed(page, watched, "404")
