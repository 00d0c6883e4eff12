"""Files of a teacher's answers: both formats, what is refused, and which image has which answer."""

import json
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_class_folders

from toolkit.data import answer_file
from toolkit.data.answer_file import AnswerFile, read_answers, read_classes, require_answer_file, write_answers
from toolkit.data.answered_images import hash_images, match_answers
from toolkit.data.dataset import Dataset, Images
from toolkit.data.sources import load_dataset
from toolkit.errors import UsageError, WeightsError
from toolkit.files import sha256_file
from toolkit.settings import DataRecipe

FORMATS = ["npz", "parquet"]
LOGITS = np.array([[1, 2, 3], [-4, 5, 0.5]], np.float32)
NAMES = ("a/1.png", "b/2.png")
CLASSES = ("red", "grün", "blue")


def save(path: Path, **columns: Any) -> Path:
    """Columns as other programs write them; `classes` are metadata of a Parquet file."""
    if path.suffix == ".npz":
        np.savez(path, **{name: np.array(values) for name, values in columns.items()})
        return path
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    words = {"classes": json.dumps(columns.pop("classes"))} if "classes" in columns else None
    table = pyarrow.table({name: list(values) for name, values in columns.items()})
    parquet.write_table(table.replace_schema_metadata(words), path)
    return path


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"soft.{request.param}"


class TestReading:
    def test_what_was_written(self, path: Path) -> None:
        write_answers(path, {"name": NAMES, "sha256": ["AB", "cd"]}, LOGITS, CLASSES)
        found = read_answers(path)
        assert (found.names, found.sha256, found.classes) == (NAMES, ("ab", "cd"), CLASSES)
        np.testing.assert_array_equal(found.logits, LOGITS)
        assert found.logits.dtype == np.float32
        assert read_classes(path) == CLASSES

    def test_files_of_other_programs(self, path: Path) -> None:
        save(path, name=[r"a\1.png", "./b/2.png"], logits=LOGITS.astype(np.float64), more=[1, 2])
        found = read_answers(path)
        assert (found.names, found.classes, read_classes(path)) == (NAMES, None, None)
        np.testing.assert_array_equal(found.logits, LOGITS)

    def test_names_as_bytes(self, tmp_path: Path) -> None:
        found = read_answers(save(tmp_path / "a.npz", name=[b"a/1.png", b"b/2.png"], logits=LOGITS))
        assert found.names == NAMES

    def test_probabilities_become_their_logarithms(self, path: Path) -> None:
        save(path, sha256=["ab", "cd"], probabilities=[[0.25, 0.75], [1.0, 0.0]])
        found = read_answers(path)
        assert (found.names, found.sha256, found.keys) == (None, ("ab", "cd"), ("ab", "cd"))
        np.testing.assert_allclose(np.exp(found.logits), [[0.25, 0.75], [1, 1e-10]], rtol=1e-5)

    @pytest.mark.parametrize("wrong", [[1.5, -0.5], [0.5, 0.4]])
    def test_what_are_no_probabilities(self, path: Path, wrong: list[float]) -> None:
        save(path, name=NAMES, probabilities=[[0.5, 0.5], wrong])
        with pytest.raises(
            WeightsError, match=r"the probabilities of b/2\.png are below 0, or do not sum to 1; give probabilities, or"
        ):
            read_answers(path)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_answers_that_are_not_finite(self, path: Path, wrong: float) -> None:
        save(path, name=NAMES, logits=[[1.0, 2.0], [wrong, 0.0]])
        with pytest.raises(WeightsError, match=r"the answer for b/2\.png is not finite; compute it again"):
            read_answers(path)

    @pytest.mark.parametrize("columns", [{"name": NAMES}, {"logits": LOGITS}, {"key": NAMES, "scores": LOGITS}])
    def test_missing_columns(self, path: Path, columns: dict[str, Any]) -> None:
        with pytest.raises(WeightsError, match=r"has the columns .*; it needs name or sha256 \(text\), and logits or"):
            read_answers(save(path, **columns))

    @pytest.mark.parametrize(
        "columns",
        [
            {"name": NAMES, "logits": LOGITS[:1]},
            {"name": NAMES, "logits": [1.0, 2.0]},
            {"name": [1, 2], "logits": LOGITS},
            {"name": NAMES, "logits": [["a", "b"], ["c", "d"]]},
            {"name": np.empty(0, np.str_), "logits": np.empty((0, 3))},
        ],
    )
    def test_columns_of_another_form(self, tmp_path: Path, columns: dict[str, Any]) -> None:
        with pytest.raises(WeightsError, match=r"name is .*, logits is .*; it needs one text and one row of numbers"):
            read_answers(save(tmp_path / "a.npz", **columns))

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"name": NAMES, "logits": [[1.0], [1.0, 2.0]]}, "logits holds lists of 1 and of 2 numbers"),
            ({"name": NAMES, "logits": [1.0, 2.0]}, "logits holds double, not lists of numbers"),
            ({"name": [None, "b"], "logits": [[1.0, 2.0]] * 2}, "name is empty in 1 rows"),
        ],
    )
    def test_columns_of_another_form_in_parquet(self, tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
        with pytest.raises(WeightsError, match=rf"cannot read .*: {reason}; give a Parquet file, or an .npz file"):
            read_answers(save(tmp_path / "a.parquet", **columns))

    def test_a_name_that_is_there_twice(self, path: Path) -> None:
        save(path, name=["a/1.png", r"a\1.png"], logits=LOGITS)
        with pytest.raises(WeightsError, match=r"has two answers for a/1\.png; keep one"):
            read_answers(path)


class TestHostileFiles:
    def test_what_is_no_such_file(self, path: Path) -> None:
        with pytest.raises(WeightsError, match=r"cannot read .*No such file or directory"):
            read_answers(path)
        path.write_bytes(b"neither of them")
        with pytest.raises(WeightsError, match=r"cannot read .*soft\."):
            read_answers(path)

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return pytest.fail, ("it was unpickled",)

        path = tmp_path / "a.npz"
        np.savez(path, name=np.array(NAMES, dtype=object), logits=LOGITS)
        with pytest.raises(WeightsError, match=r"cannot read .*Object arrays cannot be loaded"):
            read_answers(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("name.npy", pickle.dumps(Bomb()))
        with pytest.raises(
            WeightsError, match=r"cannot read .*: name is no array; give what numpy\.savez wrote, without objects"
        ):
            read_answers(path)

    def test_a_file_that_unpacks_to_more_than_fits(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_answers(path, {"name": [str(i) for i in range(1000)]}, np.zeros((1000, 100), np.float32), None)
        assert path.stat().st_size < 20_000
        monkeypatch.setattr(answer_file, "LARGEST_BYTES", 100_000)
        with pytest.raises(WeightsError, match=r"unpacks to 0\.0 GiB, at most 0\.0 are read; store the answers in"):
            read_answers(path)

    def test_a_header_that_lies(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000, 4000)}"
        header += b" " * (118 - len(header) - 1) + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("logits.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(WeightsError, match="cannot read"):
            read_answers(path)


class TestWriting:
    def test_whole_or_not_at_all(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any, **columns: Any) -> None:
            raise OSError(28, "No space left on device", str(path))

        write_answers(path, {"name": NAMES}, LOGITS, None)
        before = path.read_bytes()
        monkeypatch.setattr(np, "savez_compressed", fail)
        monkeypatch.setattr(answer_file, "_write_parquet", fail)
        with pytest.raises(Exception, match=r"cannot write .*No space left on device"):
            write_answers(path, {"name": NAMES}, LOGITS * 2, None)
        assert path.read_bytes() == before
        assert [one.name for one in path.parent.iterdir()] == [path.name]

    def test_another_ending(self) -> None:
        with pytest.raises(UsageError, match=r"save_answers soft\.csv is not one of \.npz, \.parquet; choose one of"):
            require_answer_file(Path("soft.csv"), "save_answers")
        require_answer_file(Path("soft.NPZ"), "save_answers")

    def test_a_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(
            WeightsError, match=r"soft\.parquet needs the package pyarrow, which is not .*kd-toolkit\[parquet\]"
        ):
            require_answer_file(Path("soft.parquet"), "--save-answers")
        with pytest.raises(WeightsError, match="needs the package pyarrow"):
            read_answers(Path("soft.parquet"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """36 training, 12 validation and 12 test images, whose file names are not unique."""
    return load_dataset(DataRecipe(source=str(make_class_folders(tmp_path_factory.mktemp("folders")))))


def answers_for(names: list[str] | None, sha256: list[str] | None = None) -> AnswerFile:
    count = len(names or sha256 or ())
    keys = [None if one is None else tuple(one) for one in (names, sha256)]
    return AnswerFile(Path("soft.npz"), keys[0], keys[1], np.zeros((count, 3), np.float32), None)


class TestMatching:
    def test_by_the_names_of_the_data_set_in_any_order(self, dataset: Dataset) -> None:
        names = [*dataset.valid.names, *reversed(dataset.train.names), "train/x.png"]
        found = match_answers(answers_for(names), dataset)
        assert [names[row] for row in found.train] == list(dataset.train.names)
        assert [names[row] for row in found.valid] == list(dataset.valid.names)
        assert found.describe() == (
            "answers for 36 of 36 training and 12 of 12 validation images; 1 more are of no such image"
        )

    def test_by_file_names_that_are_unique(self, dataset: Dataset) -> None:
        def rename(images: Images, prefix: str) -> Images:
            return replace(images, names=tuple(f"{prefix}/{prefix}{i}.png" for i in range(len(images))))

        renamed = replace(dataset, train=rename(dataset.train, "train"), valid=rename(dataset.valid, "val"))
        names = [f"elsewhere/train{i}.png" for i in range(36)] + ["val0.png", "x/val1.png", "y/val1.png"]
        found = match_answers(answers_for(names), renamed)
        assert found.train.tolist() == list(range(36))
        assert found.valid.tolist() == [36, *[-1] * 11]
        with pytest.raises(WeightsError, match="has no answer for 36 of 36 training images"):
            match_answers(answers_for([f"x/{i}.png" for i in range(12)]), dataset)  # each is there three times

    @pytest.mark.parametrize("above", ["data/", "/home/me/data/", "C:/me/data/"])
    def test_folders_before_the_data_do_not_count(self, dataset: Dataset, above: str) -> None:
        names = [above + name for name in (*dataset.valid.names, *dataset.train.names)]
        found = match_answers(answers_for(names), dataset)
        assert found.train.tolist() == list(range(12, 48))
        assert found.valid.tolist() == list(range(12))

    def test_accents_have_two_encodings(self, dataset: Dataset) -> None:
        here = replace(dataset.train, names=tuple(f"train/cr\u00e8me/{i}.png" for i in range(36)))
        names = [f"train/cre\u0300me/{i}.png" for i in range(36)]
        assert match_answers(answers_for(names), replace(dataset, train=here)).train.tolist() == list(range(36))

    def test_by_the_content_of_the_files(self, dataset: Dataset) -> None:
        train, valid = dataset.train, dataset.valid
        assert train.root is not None
        assert (hash_images(train) or [])[3] == sha256_file(train.root / train.files[3])
        hashes = [*(hash_images(valid) or []), *(hash_images(train) or [])]
        found = match_answers(answers_for(None, hashes), dataset)
        assert found.train.tolist() == list(range(12, 48))
        both = match_answers(answers_for([f"other/{i}" for i in range(48)], hashes), dataset)
        assert both.train.tolist() == found.train.tolist(), "images were renamed"

    def test_of_copies_the_first_counts(self, dataset: Dataset) -> None:
        hashes = hash_images(dataset.train) or []
        assert match_answers(answers_for(None, hashes * 2), dataset).train.tolist() == list(range(36))

    def test_a_tenth_may_be_missing(self, dataset: Dataset) -> None:
        names = list(dataset.train.names)
        found = match_answers(answers_for(names[3:]), dataset)
        assert found.train.tolist() == [-1, -1, -1, *range(33)]
        assert found.describe() == "answers for 33 of 36 training and 0 of 12 validation images"
        with pytest.raises(
            WeightsError,
            match=r"soft\.npz has no answer for 4 of 36 training images, such as train/blue/0\.png \(its own are like"
            r" .*\); at most a tenth may be missing; compute these too",
        ):
            match_answers(answers_for(names[4:]), dataset)

    def test_sets_that_are_no_files(self, dataset: Dataset) -> None:
        arrays = Images.from_array("train", np.zeros((9, 4, 4), np.uint8), np.arange(9) % 3)
        plain = replace(dataset, train=arrays, valid=arrays, name="arrays")
        with pytest.raises(
            WeightsError, match="knows images by the SHA-256 of their files, and those of arrays are no files; give a"
        ):
            match_answers(answers_for(None, ["ab"]), plain)
        names = list(arrays.names)[1:]
        with pytest.raises(WeightsError, match="has no answer for 1 of 9 training images"):
            match_answers(answers_for(names, ["ab"] * 8), plain)
