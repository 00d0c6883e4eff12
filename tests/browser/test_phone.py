"""A phone's width: nothing sticks out, and controls are large enough to touch."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from browser.conftest import Demo
from browser.samples import save_picture
from browser.visitor import TABS, OpenPage, choose_model, open_tab, upload
from toolkit.demo.texts import Language

pytestmark = pytest.mark.browser

WIDTH = 390
"""px"""

STICKING_OUT = """() => [...document.querySelectorAll("body *")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !element.closest(".kd-scroll") && element.checkVisibility();
}).map(element => `${element.tagName}#${element.id}.${element.className}`)"""


def expect_no_overflow(page: Page, where: str) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= WIDTH, f"{where}: {width} px wide; sticking out: {page.evaluate(STICKING_OUT)}"


@pytest.mark.parametrize(("locale", "language"), [("en-US", "en"), ("zh-CN", "zh")])
def test_nothing_is_wider_than_a_phone(
    open_page: OpenPage, demo: Demo, tmp_path: Path, locale: str, language: Language
) -> None:
    page = open_page(locale=locale, width=WIDTH)
    expect_no_overflow(page, "empty page")
    upload(page, save_picture(tmp_path, "blue"))
    for directory in (demo.full, demo.bare):
        choose_model(page, directory)
        for key in TABS:
            open_tab(page, key, language)
            expect_no_overflow(page, f"{directory.name}, {key}")
