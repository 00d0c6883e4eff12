"""The keyboard can do all that a mouse can, in a sensible order, and the focus is visible."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.samples import save_picture
from browser.visitor import expect_answers, open_tab, upload

pytestmark = pytest.mark.browser

UPLOAD = "where a picture is dropped"
MOST_STOPS = 60
FOCUSED = """upload => {
    const element = document.activeElement, style = getComputedStyle(element);
    const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
    return {
        name: element.hasAttribute("aria-dropeffect") ? upload : element.innerText.trim(),
        id: element.id,
        seen: outlined || style.boxShadow !== "none",
        body: element === document.body,
    };
}"""


def walk(page: Page) -> list[dict[str, str]]:
    """The elements that Tab reaches from the top of the page to its end; each stop must be seen."""
    stops = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED, UPLOAD)
        if stop["body"]:
            return stops
        assert stop["seen"], f"focus is invisible on {stop}"
        stops.append(stop)
    raise AssertionError(f"Tab does not leave the page: {stops}")


def tab_to(page: Page, name: str) -> None:
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED, UPLOAD)
        if name in (stop["name"], stop["id"]):
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_tab_reaches_everything_in_the_order_of_the_page(page: Page) -> None:
    names = [stop["name"] for stop in walk(page)]
    expected = ["English", "中文", "Compare", UPLOAD, "red", "green", "blue"]
    assert [name for name in names if name in expected] == expected


def test_a_tab_an_example_and_the_slider_without_a_mouse(page: Page) -> None:
    tab_to(page, "green")
    page.keyboard.press("Enter")
    try:
        expect(page.locator("#answers [data-role=student] .kd-bar")).to_have_count(5, timeout=5000)
    except AssertionError:  # a page that is just there may not listen yet
        page.keyboard.press("Enter")
    expect_answers(page)
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    slider = page.locator("#temperature")
    expect(slider).to_be_visible()
    tab_to(page, "temperature")
    expect(slider).to_be_focused()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "T = 1.0")
    cold = page.locator("#knowledge .kd-value").all_inner_texts()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(slider).not_to_have_attribute("aria-valuetext", "T = 1.0")
    assert page.locator("#knowledge .kd-value").all_inner_texts() != cold
    expect(slider).to_be_focused()  # drawing the bars again does not take the slider away
    page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "T = 20.0")


def test_the_upload_opens_with_enter(page: Page, tmp_path: Path) -> None:
    tab_to(page, UPLOAD)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(save_picture(tmp_path, "red"))
    expect_answers(page)


def test_a_disagreement_and_a_precision_without_a_mouse(page: Page) -> None:
    open_tab(page, "disagreements")
    page.locator("#disagreements button").first.focus()
    page.keyboard.press("Space")
    expect_answers(page)
    page.get_by_role("radio", name="fp16").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("radio", name="fp16")).to_be_checked()


def test_the_language_without_a_mouse(page: Page) -> None:
    tab_to(page, "中文")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab").first).to_have_text("对比")


def test_the_focus_is_seen_on_every_tab(page: Page, tmp_path: Path) -> None:
    upload(page, save_picture(tmp_path, "red"))
    for key in ("knowledge", "disagreements", "benchmark"):
        open_tab(page, key)
        page.locator("#language button").first.focus()
        walk(page)
