"""A file that is no picture gets a clear message on the page, in its language, and the next picture is answered."""

from pathlib import Path

import pytest
from conftest import make_png
from playwright.sync_api import expect

from browser.samples import make_damaged, save_picture
from browser.visitor import OpenPage, expect_answers
from toolkit.demo.texts import Language

pytestmark = pytest.mark.browser

LOCALES: dict[Language, str] = {"en": "en-GB", "zh": "zh-CN"}
BAD_FILES = {
    "text.jpg": (b"this is no picture", "cannot read text.jpg as an image", "无法读取这张图片"),
    "notes.txt": (b"this is no picture", "notes.txt", "无法读取这张图片"),
    "empty.png": (b"", "the file is empty", "这个文件是空的"),
    "bomb.png": (make_png(60_000, 60_000), "bomb.png is too large", "图片太大"),
    "damaged.jpg": (make_damaged(), "cannot read damaged.jpg as an image", "无法读取这张图片"),
    "big.png": (b"\x89PNG" + bytes(10_500_000), "10 MB", "10 MB"),
}


@pytest.mark.parametrize("language", LOCALES)
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_has_its_message(open_page: OpenPage, name: str, language: Language, tmp_path: Path) -> None:
    content, *messages = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    page = open_page(locale=LOCALES[language])
    chosen = page.locator("#picture input[type=file]")
    chosen.set_input_files(tmp_path / name)
    alert = page.locator("#answers [role=alert]")
    expect(alert).to_contain_text(messages[language == "zh"])
    expect(page.locator("#answers .kd-bar")).to_have_count(0)
    expect(page.locator("#seen img")).to_have_count(0)
    assert "Traceback" not in page.content()
    assert str(tmp_path) not in alert.inner_text()
    assert "gradio" not in alert.inner_text()  # and no path of the server's uploads
    chosen.set_input_files(save_picture(tmp_path, "green"))
    expect_answers(page)
    expect(alert).to_have_count(0)
