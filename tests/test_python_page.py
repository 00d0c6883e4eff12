"""docs/python.md: every block of code runs, one after another, in one namespace and on small images."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import make_class_folders

import toolkit
import toolkit.api.workspace

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SMALL = {
    "data.image_size": 32,
    "data.resize": 36,
    "teacher.architecture": "depthwise",
    "teacher.epochs": 2,
    "teacher.batch_size": 12,
    "student.base": 4,
    "distill.epochs": 2,
    "distill.batch_size": 12,
    "training.precision": "fp32",
    "bench.samples": 10,
    "bench.seconds": 0.2,
    "bench.batch_sizes": [1],
    "bench.runtimes": ["onnxruntime"],
}
"""Below the settings that the page gives, so that it is done in seconds."""


class Run:
    """The result of wandb.init, as far as the page uses it."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.finished = False

    def log(self, values: dict[str, Any]) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    stub = Run()
    wandb = types.ModuleType("wandb")
    wandb.init = lambda project: stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return stub


@pytest.mark.slow
def test_every_block_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_class_folders(tmp_path / "photos" / "shapes")
    monkeypatch.chdir(tmp_path)
    real = toolkit.open

    def open_small(path: str, *, settings: dict[str, Any] | None = None, **options: Any) -> toolkit.Workspace:
        flat = SMALL | toolkit.api.workspace.flatten(settings or {})
        if "student.architecture" in flat:
            del flat["student.base"]
        return real(path, settings=flat, device="cpu", **options)

    monkeypatch.setattr(toolkit, "open", open_small, raising=False)
    namespace: dict[str, Any] = {}
    for block in BLOCK.findall(PAGE):
        exec(block, namespace)
    printed = capsys.readouterr().out
    shown = re.search(r"^prints\n\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1] in printed
    assert len(namespace["student"].epochs) == 3
    assert namespace["report"].dataset.images == 12
    assert namespace["logits"].shape == (2, 3)
    assert run.finished
    assert [line["epoch"] for line in run.lines] == [0, 1, 0, 1]
    assert "student/valid_loss" in run.lines[-1]
    assert namespace["tiny"].recipe.student.settings == {"channels": 32}
    assert namespace["pets"].recipe.data.source.endswith("pets")


def test_the_page_names_every_keyword_and_every_public_name() -> None:
    for name in toolkit.Options.__annotations__:
        assert f"| `{name}=" in PAGE
    for name in toolkit.__all__:
        if name not in ("Options", "Model", "Prediction", "UsageError", "Workspace"):
            assert name in PAGE, name
