"""Disagreements and Benchmark: the files that `toolkit bench` left, or the command that makes them."""

import json

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Demo
from browser.samples import KEPT_DISAGREEMENTS, TEST_IMAGES
from browser.visitor import choose_model, expect_answers, open_tab, read_bars
from toolkit.bench.report.examples import Examples
from toolkit.demo.contents import PLOTS
from toolkit.demo.texts import TEXTS

pytestmark = pytest.mark.browser


def test_the_table_is_the_reports(page: Page, demo: Demo) -> None:
    open_tab(page, "benchmark")
    report = json.loads(demo.full.report_json.read_text(encoding="utf-8"))
    rows = page.locator("#report tbody tr")
    expect(rows).to_have_count(len(report["rows"]))
    for shown, row in zip(rows.all(), report["rows"], strict=True):
        cells = [text.replace("\xa0", " ") for text in shown.locator("th, td").all_inner_texts()]
        assert cells[0] == f"{row['model'].capitalize()} {row['precision']}"
        assert cells[1] == "onnxruntime · cpu"
        assert cells[2] == (
            f"{row['size_bytes'] / 1e6:.1f} MB" if row["size_bytes"] >= 1e6 else f"{row['size_bytes'] / 1e3:.1f} kB"
        )
        assert cells[3] == f"{100 * row['accuracy_top1']:.2f} %"
        assert cells[4] == f"{100 * row['teacher_agreement']:.2f} %"
        assert cells[5] == f"{row['latency_ms']['p50']:.2f} ms"
        assert cells[6] == f"{row['throughput_img_s']['32']:,.0f} at batch 32"
        if better := row.get("vs_teacher"):
            assert f"{better['times_smaller']:.1f}×" in cells[7]
            assert f"{better['times_faster']:.1f}×" in cells[7]
    expect(page.locator("#report")).to_contain_text(report["verdict"])
    expect(page.locator("#report")).to_contain_text("AMD EPYC")


def test_the_plots_are_drawn(page: Page) -> None:
    open_tab(page, "benchmark")
    plots = page.locator("#plots img")
    expect(plots).to_have_count(len(PLOTS))
    for plot, name in zip(plots.all(), PLOTS, strict=True):
        plot.scroll_into_view_if_needed()
        expect(plot).to_have_attribute("alt", TEXTS["en"][name])
        expect(plot).to_be_visible()
        page.wait_for_function("plot => plot.complete && plot.naturalWidth > 0", arg=plot.element_handle())
        assert plot.evaluate("plot => [plot.naturalWidth, plot.naturalHeight]") == [640, 480]


def test_disagreements_the_most_confident_first_with_labels(page: Page, demo: Demo) -> None:
    kept = Examples.read(demo.full.examples)
    open_tab(page, "disagreements")
    tiles = page.locator("#disagreements button")
    expect(tiles).to_have_count(KEPT_DISAGREEMENTS)
    confidences = [example.teacher_confidence + example.student_confidence for example in kept.disagreements]
    assert confidences == sorted(confidences, reverse=True)
    for tile, example in zip(tiles.all(), kept.disagreements, strict=True):
        assert example.teacher != example.student
        for said in (
            example.label,
            f"{example.teacher} {100 * example.teacher_confidence:.0f} %",
            f"{example.student} {100 * example.student_confidence:.0f} %",
        ):
            expect(tile).to_contain_text(said)
    share = f"{100 * kept.differing / TEST_IMAGES:.1f} %"
    expect(page.locator("#disagreements")).to_contain_text(f"{kept.differing} of {TEST_IMAGES} test images")
    expect(page.locator("#disagreements")).to_contain_text(share)


def test_a_disagreement_opens_under_compare(page: Page, demo: Demo) -> None:
    chosen = Examples.read(demo.full.examples).disagreements[1]
    open_tab(page, "disagreements")
    page.locator("#disagreements button").nth(1).click()
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    expect_answers(page)
    expect(page.locator("#verdict")).to_have_attribute("data-agree", "false")
    for role, confidence in (("teacher", chosen.teacher_confidence), ("student", chosen.student_confidence)):
        best = read_bars(page.locator(f"#answers [data-role={role}]"))[0]
        assert best == (getattr(chosen, role), f"{100 * confidence:.1f} %")


def test_each_missing_part_names_its_command(page: Page, demo: Demo) -> None:
    choose_model(page, demo.bare)
    command = f"toolkit bench {demo.bare.path}"
    for tab, where in (
        ("compare", "#examples"), ("disagreements", "#disagreements"),
        ("benchmark", "#report"), ("benchmark", "#plots"),
    ):  # fmt: skip
        open_tab(page, tab)
        expect(page.locator(f"{where} code")).to_have_text(command)
        expect(page.locator(f"{where} code")).to_be_visible()
    expect(page.locator("#report table")).to_have_count(0)
