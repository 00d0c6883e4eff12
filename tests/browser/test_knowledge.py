"""Dark knowledge: the slider softens both distributions at once, and asks nobody."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from browser.conftest import Demo, Watched
from browser.samples import CLASSES, MANY_CLASSES, save_picture
from browser.visitor import ROLES, choose_model, open_tab, read_bars, read_probabilities, upload
from toolkit.demo.texts import TEXTS
from toolkit.modeldir import ModelDir, Role
from toolkit.runtimes.onnxruntime import OnnxPredictor

pytestmark = pytest.mark.browser

ASK_NOBODY_MS = 500


def logits(directory: ModelDir, role: Role, picture: Path) -> NDArray[np.float64]:
    """(C,)"""
    predictor = OnnxPredictor(directory.onnx(role), "cpu")
    with Image.open(picture) as image:
        return predictor.logits(predictor.preprocess(image)[None])[0].astype(np.float64)


def soften(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    powers = np.exp((logits - logits.max()) / temperature)
    return powers / powers.sum()


def move(page: Page, position: float) -> None:
    """Move the slider as a mouse does; position is 0 to 1."""
    page.locator("#temperature").evaluate(
        "(slider, at) => { slider.value = Number(slider.min) + at * (slider.max - slider.min);"
        " slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        position,
    )


@pytest.fixture
def picture(page: Page, tmp_path: Path) -> Path:
    picture = save_picture(tmp_path, "blue")
    upload(page, picture)
    open_tab(page, "knowledge")
    return picture


def test_bars_follow_the_slider_and_no_request_is_sent(page: Page, picture: Path, demo: Demo, watched: Watched) -> None:
    before = len(watched.requests)
    divergences = []
    for position in (0, 0.25, 0.5, 0.75, 1):
        move(page, position)
        temperature = 20**position  # the scale is a logarithm's
        expect(page.locator("#temperature")).to_have_attribute("aria-valuetext", f"T = {temperature:.1f}")
        softened = []
        for role in ROLES:
            column = page.locator(f"#knowledge [data-role={role}]")
            expected = soften(logits(demo.full, role, picture), temperature)
            softened.append(expected)
            by_class = dict(zip(CLASSES, expected, strict=True))
            shown = read_probabilities(column)
            assert shown.keys() == by_class.keys()
            for name, probability in shown.items():
                assert probability == pytest.approx(by_class[name], rel=1e-9)
            assert dict(read_bars(column)) == {name: f"{100 * p:.2f} %" for name, p in by_class.items()}
        divergences.append(float(np.sum(softened[0] * np.log(softened[0] / softened[1]))))
        divergence = page.locator("#knowledge .kd-divergence").inner_text()
        assert float(divergence.split(":")[1].split("·")[0]) == pytest.approx(divergences[-1], rel=0.006)
    assert divergences == sorted(divergences, reverse=True)  # softer is more alike
    page.wait_for_timeout(ASK_NOBODY_MS)
    assert watched.requests[before:] == []


def test_both_columns_have_one_order(page: Page, picture: Path) -> None:
    teacher, student = (read_bars(page.locator(f"#knowledge [data-role={role}]")) for role in ROLES)
    assert [name for name, _ in teacher] == [name for name, _ in student]


def test_the_paragraph_says_why(page: Page, picture: Path) -> None:
    expect(page.locator("#knowledge .kd-why")).to_have_text(TEXTS["en"]["why"])


def test_the_temperature_stays_for_the_next_picture(page: Page, picture: Path) -> None:
    move(page, 1)
    hot = read_probabilities(page.locator("#knowledge [data-role=teacher]"))
    open_tab(page, "compare")
    page.locator("#examples button").first.click()
    expect(page.locator("#verdict")).to_contain_text("red")
    open_tab(page, "knowledge")
    expect(page.locator("#temperature")).to_have_attribute("aria-valuetext", "T = 20.0")
    for _ in range(100):  # the tab follows the verdict, on a busy machine a moment later
        if read_probabilities(page.locator("#knowledge [data-role=teacher]")) != hot:
            break
        page.wait_for_timeout(100)
    assert read_probabilities(page.locator("#knowledge [data-role=teacher]")) != hot


def test_without_a_picture_it_says_what_to_do(page: Page) -> None:
    open_tab(page, "knowledge")
    expect(page.locator("#knowledge")).to_contain_text(TEXTS["en"]["knowledge_hint"])
    expect(page.locator("#temperature")).to_have_count(0)
    expect(page.locator("#knowledge .kd-why")).to_be_visible()


def test_of_many_classes_the_likeliest_are_drawn(page: Page, demo: Demo, tmp_path: Path) -> None:
    picture = save_picture(tmp_path, "red")
    choose_model(page, demo.bare)
    upload(page, picture)
    open_tab(page, "knowledge")
    column = page.locator("#knowledge [data-role=teacher]")
    expect(column.locator(".kd-bar")).to_have_count(12)
    likeliest = np.argsort(-logits(demo.bare, "teacher", picture))[:12]
    assert [name for name, _ in read_bars(column)] == [MANY_CLASSES[i] for i in likeliest]
    expect(page.locator("#knowledge .kd-note")).to_have_text(TEXTS["en"]["more_classes"].format(shown=12, all=14))
