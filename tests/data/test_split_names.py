"""Names of folders that mean a split: plain ones, those of downloads and scripts, and classes that only sound so."""

import pytest

from toolkit.data.split_names import called_like_splits, likely_splits, split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Training TRAIN training_set train-images TrainSet trainset train1 train_2 images_train seg_train",
        ),
        ("valid", "val valid Validation val_images valset validation-set imgs.val valImages val01"),
        ("test", "test testing eval test_set test1 Test-Images test_data testImages seg_test test (1)"),
    ],
)
def test_a_name_may_be_that_of_a_split_alone(split: str, names: str) -> None:
    for name in names.replace(" (", "_(").split():
        assert split_of(name) == split, name


@pytest.mark.parametrize(
    "name",
    [
        *("", "1", "trains", "tester", "contest", "trainer", "invalid", "value", "valley", "latest", "dataset", "cat"),
        *("bullet_train", "crash-test", "train_station", "train_val", "train-test-split", "dev", "holdout", "fold1"),
    ],
)
def test_other_names_are_not(name: str) -> None:
    assert split_of(name) is None


def test_names_that_differ_in_the_word_of_the_split_only() -> None:
    assert likely_splits(["birds-train", "birds-val", "birds_test"]) == {
        "birds-train": "train",
        "birds-val": "valid",
        "birds_test": "test",
    }
    assert likely_splits(["bullet-train", "crash-test", "cat"]) == {}
    assert likely_splits(["trainA", "testA", "testB"]) == {"trainA": "train", "testA": "test"}


def test_words_that_only_hint() -> None:
    assert called_like_splits(["dev", "holdout", "cat"]) == ["dev", "holdout"]
    assert called_like_splits(["train", "test", "cat"]) == [], "plain names are judged by the structure"
    assert called_like_splits(["cat", "dog", "test1"]) == ["test1"]
