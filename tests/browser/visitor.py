"""A visitor's acts on the page, and the texts that the visitor reads there."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from toolkit.demo.texts import TEXTS, Language
from toolkit.modeldir import ModelDir

ROLES = ("teacher", "student")
TABS = ("compare", "knowledge", "disagreements", "benchmark")
"""Keys of their texts, in the order of the page."""

OpenPage = Callable[..., Page]
"""The fixture `open_page`: OpenPage(locale=, width=, scheme=, url=)."""


def upload(page: Page, picture: Path) -> None:
    """Choose a file as the button's dialogue does, and wait for the answers."""
    choose_file(page, picture)
    expect_answers(page)


def choose_file(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#picture button[aria-dropeffect]").click()
    chooser.value.set_files(path)


def expect_answers(page: Page) -> None:
    for role in ROLES:
        expect(page.locator(f"#answers [data-role={role}] .kd-bar")).to_have_count(5)


def open_tab(page: Page, key: str, language: Language = "en") -> None:
    tab = page.get_by_role("tab", name=TEXTS[language][key], exact=True)
    tab.click()
    expect(tab).to_have_attribute("aria-selected", "true")


def read_bars(column: Locator) -> list[tuple[str, str]]:
    """Names and values of a column's bars, as they are written."""
    bars = column.locator(".kd-bar")
    names, values = (bars.locator(f".kd-{part}").all_inner_texts() for part in ("name", "value"))
    return [(name, value.replace("\xa0", " ")) for name, value in zip(names, values, strict=True)]


def read_probabilities(column: Locator) -> dict[str, float]:
    """Class → probability with all its digits."""
    names = column.locator(".kd-bar .kd-name").all_inner_texts()
    values = column.locator(".kd-bar").evaluate_all("bars => bars.map(bar => Number(bar.dataset.probability))")
    return dict(zip(names, values, strict=True))


def choose_model(page: Page, directory: ModelDir) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=directory.name).click()
    precisions = len(list(directory.path.glob("student*.onnx")))
    expect(page.get_by_role("radio")).to_have_count(precisions if precisions > 1 else 0)  # and nothing moves any more
