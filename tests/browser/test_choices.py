"""The precision's switch and the picker of models."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from browser.conftest import Demo, Watched, serve
from browser.samples import make_bare_dir, save_picture
from browser.visitor import ROLES, OpenPage, choose_model, open_tab, read_bars, upload
from toolkit.predict import predict_files

pytestmark = pytest.mark.browser


def percentages(file: Path, picture: Path) -> list[tuple[str, str]]:
    (prediction,) = predict_files(file, [picture], provider="cpu")
    assert prediction.answer is not None
    return [(name, f"{100 * p:.1f} %") for name, p in prediction.answer.top]


def test_a_precision_changes_the_answer(page: Page, demo: Demo, tmp_path: Path) -> None:
    picture = save_picture(tmp_path, "green")
    upload(page, picture)
    student = page.locator("#answers [data-role=student]")
    seen = [read_bars(student)]
    for precision in ("int8", "fp16", "fp32"):
        with page.expect_response("**/queue/data*"):
            page.get_by_role("radio", name=precision).check()
        expected = percentages(demo.full.onnx("student", precision), picture)  # type: ignore[arg-type]
        expect(student.locator(".kd-value").first).to_have_text(expected[0][1])
        assert read_bars(student) == expected
        expect(student.locator(".kd-facts")).to_contain_text(" ms on this picture")
        seen.append(expected)
    assert seen[0] == seen[-1]
    assert len({str(answer) for answer in seen}) == 3
    teacher = read_bars(page.locator("#answers [data-role=teacher]"))
    assert teacher == percentages(demo.full.onnx("teacher"), picture)


def test_another_model_answers_and_brings_its_own_tabs(page: Page, demo: Demo, tmp_path: Path) -> None:
    picture = save_picture(tmp_path, "red")
    upload(page, picture)
    for directory in (demo.bare, demo.full):
        choose_model(page, directory)
        for role in ROLES:
            expected = percentages(directory.onnx(role), picture)
            column = page.locator(f"#answers [data-role={role}]")
            expect(column.locator(".kd-name").first).to_have_text(expected[0][0])
            assert read_bars(column) == expected
        open_tab(page, "benchmark")
        expect(page.locator("#report table")).to_have_count(int(directory is demo.full))
        open_tab(page, "compare")
        expect(page.get_by_role("radio", name="int8")).to_have_count(int(directory is demo.full))


def test_one_directory_with_one_precision_has_no_switch_and_no_picker(
    open_page: OpenPage, watched: Watched, tmp_path: Path
) -> None:
    with serve(make_bare_dir(tmp_path / "only"), log=tmp_path / "log") as url:
        page = open_page(url=url)
        expect(page.locator("#model")).to_be_hidden()
        expect(page.locator("#precision")).to_be_hidden()
        upload(page, save_picture(tmp_path, "red"))
        page.context.close()


def test_a_choice_while_a_request_runs_is_answered_in_the_end(page: Page, demo: Demo, tmp_path: Path) -> None:
    Image.new("RGB", (6000, 5000), "red").save(tmp_path / "slow.png")
    upload(page, tmp_path / "slow.png")
    for precision in ("fp16", "int8"):
        page.get_by_role("radio", name=precision).click()
    expect(page.locator("#answers [data-role=student] .kd-facts")).to_contain_text("int8")
    choose_model(page, demo.bare)
    choose_model(page, demo.full)
    expect(page.locator("#verdict")).to_contain_text("red")
