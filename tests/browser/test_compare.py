"""Compare: a picture comes in each way there is, and both models' answers are those of `toolkit predict`."""

import base64
import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from PIL import Image
from playwright.sync_api import Page, expect

from browser.conftest import Demo
from browser.samples import CLASSES, save_picture
from browser.visitor import ROLES, OpenPage, choose_file, expect_answers, read_bars, upload
from toolkit.demo.texts import TEXTS
from toolkit.predict import predict_files
from toolkit.runtimes.onnxruntime import OnnxPredictor

pytestmark = pytest.mark.browser


def test_both_answer_an_uploaded_picture(page: Page, demo: Demo, tmp_path: Path) -> None:
    picture = save_picture(tmp_path, "blue")
    start = time.perf_counter()
    choose_file(page, picture)
    expect_answers(page)
    took_ms = 1e3 * (time.perf_counter() - start)
    best = []
    for role in ROLES:
        file = demo.full.onnx(role)
        (expected,) = predict_files(file, [picture], provider="cpu")
        assert expected.answer is not None
        column = page.locator(f"#answers [data-role={role}]")
        assert read_bars(column) == [(name, f"{100 * p:.1f} %") for name, p in expected.answer.top]
        fills = column.locator(".kd-fill").evaluate_all(
            "fills => fills.map(fill => fill.getBoundingClientRect().width)"
        )
        track = column.locator(".kd-track").first.bounding_box()
        assert track is not None
        np.testing.assert_allclose(fills, [track["width"] * p for _, p in expected.answer.top], atol=0.2)
        facts = column.locator(".kd-facts").inner_text().replace("\xa0", " ")
        latency = re.search(r"([\d.]+) ms on this picture", facts)
        assert latency is not None
        assert 0 < float(latency[1]) < took_ms
        assert f"{file.stat().st_size / 1000:.1f} kB" in facts
        best.append(expected.answer.top[0][0])
    verdict = page.locator("#verdict")
    expect(verdict).to_have_attribute("data-agree", "false")
    expect(verdict).to_contain_text(TEXTS["en"]["differ"].format(teacher=best[0], student=best[1]))


def test_agreement_is_marked(page: Page, tmp_path: Path) -> None:
    upload(page, save_picture(tmp_path, "red"))
    expect(page.locator("#verdict")).to_have_attribute("data-agree", "true")
    expect(page.locator("#verdict")).to_contain_text(TEXTS["en"]["agree"].format(answer=CLASSES[0]))


def test_the_picture_is_shown_as_the_network_sees_it(page: Page, demo: Demo, tmp_path: Path) -> None:
    picture = save_picture(tmp_path, "green")
    upload(page, picture)
    source = page.locator("#seen img").get_attribute("src")
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as seen, Image.open(picture) as image:
        expected = OnnxPredictor(demo.full.onnx("student"), "cpu").preprocess(image)
        np.testing.assert_array_equal(np.asarray(seen.convert("RGB")), expected)
    expect(page.locator("#seen")).to_contain_text("32 × 32 px, from 70 × 50 px")


def test_an_example_of_the_test_split_by_click(page: Page) -> None:
    example = page.locator("#examples button").filter(has_text="green")
    expect(example.locator("img")).to_be_visible()
    example.click()
    expect_answers(page)
    assert read_bars(page.locator("#answers [data-role=teacher]"))[0][0] == "green"
    expect(page.locator("#picture img").first).to_be_visible()


PASTE = """async ([content, withKeys]) => {
    const blob = await (await fetch("data:image/png;base64," + content)).blob();
    if (!withKeys) return navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
    const pasted = new DataTransfer();
    pasted.items.add(new File([blob], "image.png", {type: "image/png"}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: pasted, bubbles: true, cancelable: true}));
}"""


def paste(page: Page, picture: Path, with_keys: bool) -> None:
    page.evaluate(PASTE, [base64.b64encode(picture.read_bytes()).decode(), with_keys])
    if not with_keys:
        page.get_by_role("button", name="Paste from clipboard").click()


@pytest.mark.parametrize("with_keys", [True, False], ids=["Ctrl-V", "button"])
def test_a_pasted_picture(page: Page, tmp_path: Path, with_keys: bool) -> None:
    for colour in ("red", "green"):  # the second in place of the first
        paste(page, save_picture(tmp_path, colour), with_keys)
        expect(page.locator("#verdict")).to_contain_text(colour)
        expect_answers(page)
        assert read_bars(page.locator("#answers [data-role=teacher]"))[0][0] == colour


def test_a_picture_from_the_camera(page: Page) -> None:
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_role("button", name="Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#picture video')?.currentTime > 0.5")
    page.get_by_role("button", name="capture photo").click()
    expect_answers(page)
    assert read_bars(page.locator("#answers [data-role=teacher]"))[0][0] == "green"  # as Chromium's stand-in is


def test_another_picture_replaces_the_first_and_removing_it_clears_the_page(page: Page, tmp_path: Path) -> None:
    upload(page, save_picture(tmp_path, "red"))
    page.get_by_role("button", name="Remove Image").click()
    expect(page.locator("#answers")).to_contain_text(TEXTS["en"]["hint"])
    expect(page.locator("#seen img")).to_have_count(0)
    upload(page, save_picture(tmp_path, "green"))
    expect(page.locator("#verdict")).to_contain_text("green")


def test_names_of_classes_are_text_not_markup(page: Page, tmp_path: Path) -> None:
    upload(page, save_picture(tmp_path, "blue"))
    names = page.locator("#answers .kd-name")
    expect(names.filter(has_text="<b>bold</b>").first).to_be_visible()
    expect(names.locator("b")).to_have_count(0)


def save_animation(path: Path) -> Path:
    frames = [make_image(label, 0) for label in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def save_16_bits(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (50, 70), dtype=np.uint16)).save(path)
    return path


def save_dot(path: Path) -> Path:
    make_image(0, 0, (1, 1)).save(path)
    return path


def save_transparent(path: Path) -> Path:
    picture = make_image(0, 0)
    picture.putalpha(128)
    picture.save(path)
    return path


def save_huge(path: Path) -> Path:
    Image.new("L", (12_000, 9_000), 128).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "save", "note"),
    [
        ("animated.gif", save_animation, TEXTS["en"]["animated"].format(frames=3)),
        ("deep.png", save_16_bits, TEXTS["en"]["deep"]),
        ("dot.png", save_dot, TEXTS["en"]["tiny"]),
        ("glass.png", save_transparent, TEXTS["en"]["transparent"]),
        ("huge.png", save_huge, None),
    ],
)
def test_unusual_pictures_are_answered_and_noted(
    page: Page, tmp_path: Path, name: str, save: Callable[[Path], Path], note: str | None
) -> None:
    upload(page, save(tmp_path / name))
    assert page.locator("#answers .kd-note").all_inner_texts() == ([note] if note else [])


def test_the_page_keeps_its_answers_apart(open_page: OpenPage, tmp_path: Path) -> None:
    """Two visitors at once see each their own."""
    pages = [open_page(), open_page()]
    colours = ("red", "green")
    for colour, page in zip(colours, pages, strict=True):
        page.locator("#picture input[type=file]").set_input_files(save_picture(tmp_path, colour))
    for colour, page in zip(colours, pages, strict=True):
        expect_answers(page)
        assert read_bars(page.locator("#answers [data-role=teacher]"))[0][0] == colour
