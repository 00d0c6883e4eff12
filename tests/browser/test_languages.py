"""English and Chinese: the browser's by default, the other by a switch that is remembered."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.samples import save_picture
from browser.visitor import TABS, OpenPage, open_tab, upload
from toolkit.demo.texts import TEXTS, Language

pytestmark = pytest.mark.browser

NAMES: dict[Language, tuple[str, ...]] = {
    "en": ("Compare", "Dark knowledge", "Disagreements", "Benchmark"),
    "zh": ("对比", "暗知识", "分歧", "基准测试"),
}
CHINESE = re.compile("[\u4e00-\u9fff]")
ENGLISH_WORDS = re.compile(r"\b(?:the|and|of|picture|image|teacher|student|upload|drop|click|latency)\b", re.IGNORECASE)


def expect_language(page: Page, language: Language) -> None:
    expect(page.locator("html")).to_have_attribute("lang", re.compile(f"^{language}"))
    expect(page.get_by_role("tab")).to_have_text(NAMES[language])
    expect(page.get_by_role("heading", level=1)).to_have_text(TEXTS[language]["title"])
    expect(page.locator("#language [aria-current=true]")).to_have_attribute("lang", re.compile(f"^{language}"))


@pytest.mark.parametrize(("locale", "language"), [("en-US", "en"), ("zh-CN", "zh"), ("zh-TW", "zh"), ("fr-FR", "en")])
def test_the_browsers_language_is_spoken(open_page: OpenPage, locale: str, language: Language) -> None:
    expect_language(open_page(locale=locale), language)


@pytest.mark.parametrize(("locale", "language"), [("zh-CN", "en"), ("en-US", "zh")])
def test_a_switch_changes_it_and_is_remembered(open_page: OpenPage, locale: str, language: Language) -> None:
    page = open_page(locale=locale)
    page.locator(f"#language [lang^={language}]").click()
    expect_language(page, language)
    page.reload()
    expect_language(page, language)


@pytest.mark.parametrize(("locale", "language"), [("zh-CN", "zh"), ("en-US", "en")])
def test_nothing_on_the_page_is_in_the_other_language(
    open_page: OpenPage, tmp_path: Path, locale: str, language: Language
) -> None:
    page = open_page(locale=locale)
    foreign = CHINESE if language == "en" else ENGLISH_WORDS
    texts = [page.locator("#picture").inner_text()]
    upload(page, save_picture(tmp_path, "red"))
    for key in TABS:
        open_tab(page, key, language)
        texts.append(
            page.locator("main").evaluate(
                """main => {
                    const copy = main.cloneNode(true);
                    // The switch, names of classes, commands, and what says that it is in another language.
                    copy.querySelectorAll(
                        "#language, .kd-name, .kd-truth, .kd-said, code, style, script, #verdict b, [lang=en] "
                    ).forEach(part => part.remove());
                    return copy.innerText;
                }"""
            )
        )
    assert sorted({word for text in texts for word in foreign.findall(text)}) == []
