"""axe-core finds nothing serious on any tab, in either language, in light and in dark."""

import re
import sys
from pathlib import Path
from typing import Literal

import pytest
from conftest import make_png
from playwright.sync_api import Browser, Page, expect

from browser.conftest import Demo, serve
from browser.samples import make_bare_dir, save_picture
from browser.visitor import TABS, OpenPage, choose_model, open_tab, upload
from toolkit.demo.texts import Language

pytestmark = pytest.mark.browser

AXE = Path(sys.prefix, "axe-core", "node_modules", "axe-core", "axe.min.js")
GRAVE = ("serious", "critical")
CHECK = "() => axe.run(document, {resultTypes: ['violations'], elementRef: false})"


@pytest.fixture(scope="package")
def axe() -> str:
    if not AXE.is_file():
        pytest.skip("axe-core IS NOT HERE (make test-browser installs it where npm is): accessibility was NOT checked")
    return AXE.read_text(encoding="utf-8")


def find_violations(page: Page, axe: str, where: str) -> list[str]:
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(axe)
    expect(page.locator(".pending")).to_have_count(0)  # faint while it is drawn again
    return [
        f"{where}: {violation['id']} ({violation['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for violation in page.evaluate(CHECK)["violations"]
        if violation["impact"] in GRAVE
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "language"), [("en-US", "en"), ("zh-CN", "zh")])
def test_every_tab(open_page: OpenPage, axe: str, tmp_path: Path, locale: str, language: Language, scheme: str) -> None:
    page = open_page(locale=locale, scheme=scheme)
    found = find_violations(page, axe, "empty page")
    upload(page, save_picture(tmp_path, "blue"))
    for key in TABS:
        open_tab(page, key, language)
        found += find_violations(page, axe, key)
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_messages_and_hints(open_page: OpenPage, demo: Demo, axe: str, tmp_path: Path, scheme: str) -> None:
    page = open_page(scheme=scheme, width=390)
    (tmp_path / "bomb.png").write_bytes(make_png(60_000, 60_000))
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "bomb.png")
    page.get_by_role("alert").first.wait_for()
    found = find_violations(page, axe, "message")
    choose_model(page, demo.bare)
    for key in TABS:
        open_tab(page, key)
        found += find_violations(page, axe, f"{key} of a bare directory")
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_signing_in(browser: Browser, axe: str, tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    login = {"KD_TOOLKIT_USER": "guest", "KD_TOOLKIT_PASSWORD": "a word"}
    with serve(make_bare_dir(tmp_path / "bare"), log=tmp_path / "log", environment=login) as url:
        page = browser.new_page(color_scheme=scheme)
        page.goto(url)
        expect(page.locator("button")).to_be_visible()
        assert page.title() == "kd-toolkit"
        found = find_violations(page, axe, "login")
        for field, value in zip(page.locator("input").all(), login.values(), strict=True):
            field.fill(value)
        page.locator("button").click()
        expect(page.get_by_role("tab").first).to_be_visible()
        assert page.title() == "kd-toolkit: teacher and student"
        page.close()
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_chosen_tab_can_be_read(open_page: OpenPage, scheme: str) -> None:
    """axe-core cannot judge the ground below tabs that may wrap: Gradio draws a gradient there."""
    colours = (
        open_page(scheme=scheme)
        .get_by_role("tab", selected=True)
        .evaluate("tab => [getComputedStyle(tab).color, getComputedStyle(document.body).backgroundColor]")
    )
    darker, lighter = sorted(map(luminance, colours))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(0, 0, 0)`, as WCAG 2 defines it."""
    shares = (int(part) / 255 for part in re.findall(r"\d+", colour))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
