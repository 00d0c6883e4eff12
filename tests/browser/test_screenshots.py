"""Pictures of the page for the README.

KD_TOOLKIT_DOCS=MODEL_DIR takes them of a real model directory and writes docs/demo-*.webp; else they are only tried.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from browser.conftest import Demo, serve
from browser.visitor import OpenPage, expect_answers, open_tab
from toolkit.demo.texts import Language
from toolkit.modeldir import ModelDir

pytestmark = pytest.mark.browser

DOCS = Path(__file__).resolve().parents[2] / "docs"
MOST_BYTES = 200_000
DRAWN = """() => [...document.images].every(image => { image.loading = "eager"; return image.complete; })"""
SHOTS: dict[str, tuple[str, Language, str, int]] = {
    # file: tab, language, colour scheme, width in px
    "compare": ("compare", "en", "light", 1280),
    "knowledge": ("knowledge", "en", "light", 1280),
    "disagreements": ("disagreements", "en", "light", 1280),
    "benchmark": ("benchmark", "en", "light", 1280),
    "dark": ("compare", "en", "dark", 1280),
    "chinese": ("knowledge", "zh", "light", 1280),
    "phone": ("compare", "en", "light", 390),
}


@pytest.fixture(scope="module")
def shown(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the demo that is shown."""
    if real := os.environ.get("KD_TOOLKIT_DOCS"):
        with serve(ModelDir(Path(real)), log=tmp_path_factory.mktemp("log") / "stderr") as url:
            yield url
    else:
        yield demo.url


@pytest.mark.parametrize("name", SHOTS)
def test_screenshot(open_page: OpenPage, shown: str, tmp_path: Path, name: str) -> None:
    tab, language, scheme, width = SHOTS[name]
    page = open_page(locale=language, width=width, scheme=scheme, url=shown)
    show_a_disagreement(page, language)
    open_tab(page, tab, language)
    page.mouse.move(0, 0)
    page.wait_for_function(DRAWN)
    file = (DOCS if os.environ.get("KD_TOOLKIT_DOCS") else tmp_path) / f"demo-{name}.webp"
    shot = tmp_path / "shot.png"
    page.screenshot(path=shot, full_page=True, animations="disabled")
    with Image.open(shot) as image:
        image.save(file, quality=85, method=6)
    assert file.stat().st_size < MOST_BYTES


def show_a_disagreement(page: Page, language: Language) -> None:
    """The surest one, by a click as a visitor would."""
    open_tab(page, "disagreements", language)
    page.locator("#disagreements button").first.click()
    expect_answers(page)
    expect(page.locator("#seen img")).to_be_visible()
