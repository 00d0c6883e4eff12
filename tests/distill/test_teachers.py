"""The store of teacher logits: replayed answers are those of a live teacher, other settings make another store."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import DATA, Splits, load_splits, make_student, make_views, open_store
from torch import Tensor

from toolkit.data.batches import TrainingViews
from toolkit.distill import logit_store
from toolkit.distill.logit_store import LogitStore, StoredTeacher
from toolkit.distill.teachers import LiveTeacher
from toolkit.errors import DataError
from toolkit.recipe import NEWER_SETTINGS
from toolkit.settings import DataRecipe

INDICES = np.array([5, 30, 0, 17])
NO_IMAGES = torch.empty(0, 3, 0, 0)


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    return load_splits(class_folders)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "logits"


def store(splits: Splits, views: TrainingViews | None = None, **settings: Any) -> StoredTeacher:
    given = {"teacher_sha256": "t", "dataset_sha256": "d", "num_views": 2, "precision": "fp32"} | settings
    precision = given.pop("precision")
    found = LogitStore(views=views or make_views(splits[0]), valid=splits[1], **given)
    return open_store(found, make_student(seed=5), precision)


def live_logits(splits: Splits, views: TrainingViews, view: int) -> Tensor:
    live = LiveTeacher(make_student(seed=5), views, splits[1], "fp32")
    return live.answer(INDICES, view, NO_IMAGES).logits


@pytest.mark.parametrize("strong", [{}, {"crop_scale": (0.3, 1.0), "augment": "trivialaugment", "erasing": 0.5}])
@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_replayed_logits_are_those_of_a_live_teacher_on_the_same_view(
    splits: Splits, mixup: float, strong: dict[str, Any]
) -> None:
    data = DATA.model_copy(update={"rotation_degrees": 10.0, "crop_padding": 2, **strong})
    views = make_views(splits[0], data, mixup=mixup, cutmix=2 * mixup)
    stored = store(splits, views, num_views=3)
    for view in range(6):  # view v is stored view v mod K
        replayed = stored.answer(INDICES, view, NO_IMAGES)
        assert replayed.features == ()
        torch.testing.assert_close(replayed.logits, live_logits(splits, views, view % 3), rtol=1e-5, atol=1e-5)
    assert not torch.equal(stored.answer(INDICES, 0, NO_IMAGES).logits, stored.answer(INDICES, 1, NO_IMAGES).logits)
    live = LiveTeacher(make_student(seed=5), views, splits[1], "fp32")
    torch.testing.assert_close(stored.valid_logits(), live.valid_logits(), rtol=1e-5, atol=1e-5)


def test_a_live_teacher_sees_full_size_if_the_student_s_images_are_smaller(splits: Splits) -> None:
    views = make_views(splits[0])
    live = LiveTeacher(make_student(seed=5), views, splits[1], "fp32")
    small = views.render(INDICES, 1, side=16)
    torch.testing.assert_close(live.answer(INDICES, 1, small).logits, live_logits(splits, views, 1))
    assert not live.answer(INDICES, 1, small).logits.requires_grad


def test_logits_gather_before_they_are_written(splits: Splits, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = logit_store._write
    monkeypatch.setattr(logit_store, "_write", lambda file, waiting: (sizes.append(len(waiting)), write(file, waiting)))
    store(splits, num_views=3)
    assert sizes == [4]
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(logit_store, "WRITE_BYTES", 12 * 12)
    store(splits, num_views=3)
    assert sizes == [4, 2, 1, 1, 0]
    assert path.read_bytes() == whole


def test_a_second_run_asks_no_teacher(splits: Splits, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = store(splits)
    (path,) = cache.iterdir()
    assert path.stat().st_size == (len(splits[1]) + 2 * len(splits[0])) * 3 * 4
    before = path.stat().st_mtime_ns
    second = store(splits)
    assert path.stat().st_mtime_ns == before
    assert torch.equal(first.answer(INDICES, 1, NO_IMAGES).logits, second.answer(INDICES, 1, NO_IMAGES).logits)
    printed = capsys.readouterr().err
    assert "2 views of 36 images to compute once" in printed
    assert "2 views of 36 images from the store" in printed


CHANGES: dict[str, dict[str, Any]] = {
    "teacher": {"teacher_sha256": "another"},
    "data": {"dataset_sha256": "another"},
    "number of views": {"num_views": 3},
    "precision": {"precision": "bf16"},
}
CHANGED_DATA: dict[str, Any] = {
    **{"image_size": 24, "resize": 40, "crop_padding": 1, "padding_mode": "constant", "flip": False},
    **{"rotation_degrees": 5.0, "crop_scale": (0.5, 1.0), "crop_ratio": (0.9, 1.1), "color_jitter": (0.1, 0, 0, 0)},
    **{"grey": 0.1, "blur": 0.1, "blur_sigma": (0.01, 0.02), "erasing": 0.1},
    **{"augment": "trivialaugment", "augment_operations": 1, "augment_magnitude": 5},
}


@pytest.mark.parametrize("change", [*CHANGES, *CHANGED_DATA, "seed", "mixup", "cutmix", "fewer images"])
def test_every_setting_that_decides_the_logits_makes_another_store(splits: Splits, cache: Path, change: str) -> None:
    store(splits)
    views = make_views(splits[0])
    if change in CHANGED_DATA:
        views = make_views(splits[0], DATA.model_copy(update={change: CHANGED_DATA[change]}))
    elif change == "seed":
        views = make_views(splits[0], seed=1)
    elif change == "mixup":
        views = make_views(splits[0], mixup=0.2)
    elif change == "cutmix":
        views = make_views(splits[0], cutmix=0.2)
    if change == "fewer images":
        open_store(LogitStore("t", "d", views, splits[0], 2), make_student(5))
    else:
        store(splits, views, **CHANGES.get(change, {}))
    assert len(list(cache.iterdir())) == 2


def test_every_setting_of_the_data_is_decided_on() -> None:
    """A new key of [data] belongs into the tests here, or is left out of the store's key on purpose."""
    assert set(CHANGED_DATA) | logit_store.NOT_IN_VIEWS == set(DataRecipe.model_fields)


def test_settings_that_do_not_change_a_view_keep_the_store(splits: Splits, cache: Path) -> None:
    store(splits)
    same = DataRecipe.model_validate(
        DATA.model_dump() | {"source": "elsewhere", "workers": 3, "mean": (0.1, 0.2, 0.3), "std": (0.9, 0.9, 0.9)}
    )
    store(splits, make_views(splits[0], same))
    assert len(list(cache.iterdir())) == 1


def test_what_is_erased_gets_the_mean_so_that_the_mean_counts_there(splits: Splits, cache: Path) -> None:
    for mean in ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)):
        store(splits, make_views(splits[0], DATA.model_copy(update={"erasing": 0.5, "mean": mean})))
    assert len(list(cache.iterdir())) == 2


def test_newer_settings_at_their_defaults_keep_the_stores_of_earlier_versions(
    splits: Splits, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(splits)
    dump = DataRecipe.model_dump

    def dump_as_before(self: DataRecipe, **options: Any) -> dict[str, Any]:
        values = dump(self, **options)
        return {key: value for key, value in values.items() if f"data.{key}" not in NEWER_SETTINGS or key == "share"}

    monkeypatch.setattr(DataRecipe, "model_dump", dump_as_before)
    store(splits)
    assert len(list(cache.iterdir())) == 1


def test_a_store_that_is_not_whole_is_computed_again(splits: Splits, cache: Path) -> None:
    whole = store(splits).answer(INDICES, 1, NO_IMAGES).logits
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(store(splits).answer(INDICES, 1, NO_IMAGES).logits, whole)


def test_filling_that_is_broken_off_leaves_nothing(
    splits: Splits, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = LiveTeacher.answer

    def stop_at_the_second_view(self: LiveTeacher, indices: np.ndarray, view: int, images: Tensor) -> Any:
        if view == 1:
            raise KeyboardInterrupt
        return answer(self, indices, view, images)

    monkeypatch.setattr(LiveTeacher, "answer", stop_at_the_second_view)
    with pytest.raises(KeyboardInterrupt):
        store(splits)
    assert list(cache.iterdir()) == []


def test_two_that_fill_one_store_at_once_do_not_disturb_each_other(splits: Splits, cache: Path) -> None:
    teachers, start = [make_student(seed=5), make_student(seed=5)], threading.Barrier(2)
    results: list[Tensor] = []

    def fill(number: int) -> None:
        start.wait()
        stored = open_store(LogitStore("t", "d", make_views(splits[0]), splits[1], 8), teachers[number])
        results.append(torch.stack([stored.answer(INDICES, view, NO_IMAGES).logits for view in range(8)]))

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert torch.equal(*results)
    assert [path.stat().st_size for path in cache.iterdir()] == [(12 + 8 * 36) * 3 * 4]


def test_a_cache_that_cannot_be_written_is_one_line(
    splits: Splits, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=r"cannot keep the teacher's logits in the cache, .*No space left.*KD_TOOLKIT_CACHE"
    ):
        store(splits)
    assert list(cache.iterdir()) == []


def test_a_store_is_found_in_whichever_arithmetic_it_was_filled(splits: Splits) -> None:
    views = make_views(splits[0], seed=77)
    found = LogitStore("teacher 77", "data", views, splits[1], 2)
    assert found.find(("bf16", "fp32")) is None
    open_store(found, make_student(seed=5))
    assert found.find(("bf16", "fp32")) == "fp32"
    assert found.find(("bf16",)) is None
    assert replace(found, num_views=3).find(("fp32",)) is None
