"""Reading a picture beside other threads: one that finds too little memory is never taken for a damaged one."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from PIL import Image, ImageFile, WebPImagePlugin

from toolkit.data import attempts, picture_file
from toolkit.data.attempts import attempt
from toolkit.data.dataset import Images
from toolkit.data.picture_file import opening_bytes
from toolkit.data.preprocess import NO_MEMORY, decode_first_frame
from toolkit.predict import PictureError, open_picture

LIMITED, AMPLE = (lambda _: False), (lambda _: True)
"""Stand-ins for limits.can_reserve."""


def save(path: Path, **options: object) -> Images:
    make_image(0, seed=3, size=(60, 50)).save(path, **options)
    return Images.from_files(path.parent, [path.name], [0])


def decode(image: Image.Image) -> tuple[int, int]:
    decode_first_frame(image)
    return image.size


def test_a_picture_without_memory_is_tried_once_more_alone() -> None:
    tries = 0

    def work(_: Image.Image) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise MemoryError
        return "done"

    images = Images.from_array("a", np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1))
    assert attempt(images, 0, work) == "done"
    assert tries == 2


def test_it_is_tried_twice_at_most_and_a_damaged_one_once() -> None:
    tries = list[type[Exception]]()

    def fail(error: type[Exception]) -> None:
        tries.append(error)
        raise error("broken")

    images = Images.from_array("a", np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1))
    assert attempt(images, 0, lambda _: fail(MemoryError)) == NO_MEMORY
    assert attempt(images, 0, lambda _: fail(OSError)) == "broken"
    assert tries == [MemoryError, MemoryError, OSError]


def refuse(*_: object) -> None:
    raise OSError("could not create decoder object")


def test_a_webp_whose_decoder_finds_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libwebp says the same of a damaged file and of a large one under a limit."""
    images = save(tmp_path / "a.webp")
    monkeypatch.setattr(WebPImagePlugin._webp, "WebPAnimDecoder", refuse)
    monkeypatch.setattr(picture_file, "can_reserve", AMPLE)
    assert attempt(images, 0, decode) == "could not create decoder object"
    monkeypatch.setattr(picture_file, "can_reserve", LIMITED)
    assert attempt(images, 0, decode) == NO_MEMORY
    with (
        pytest.raises(PictureError, match="there is not enough memory to decode") as caught,
        open_picture(tmp_path / "a.webp"),
    ):
        pass
    assert caught.value.reason == "no_memory"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp", "ppm"])
@pytest.mark.parametrize(
    "says", ["broken data stream when reading image file", "decoder error -2", "failed to read next frame"]
)
def test_whatever_a_decoder_says(suffix: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = save(tmp_path / f"a.{suffix}")

    def load(_: object) -> None:
        raise OSError(says)

    for reader in (ImageFile.ImageFile, *(type(images.read(0)),)):
        monkeypatch.setattr(reader, "load", load)
    monkeypatch.setattr(picture_file, "can_reserve", LIMITED)
    assert attempt(images, 0, decode) == NO_MEMORY
    monkeypatch.setattr(picture_file, "can_reserve", AMPLE)
    assert attempt(images, 0, decode) != NO_MEMORY


def test_a_damaged_picture_stays_damaged_where_there_is_memory(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp"):
        images = save(tmp_path / f"a.{suffix}")
        content = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(content[: len(content) * 2 // 3])
        assert attempt(images, 0, decode) not in (NO_MEMORY, (60, 50))


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_canvases_of_a_webp_are_known_before_it_is_opened(
    options: dict[str, object], mode: str, tmp_path: Path
) -> None:
    Image.new(mode, (130, 70)).save(tmp_path / "a.webp", **options)
    assert opening_bytes(tmp_path / "a.webp") == pytest.approx(16 * 130 * 70, rel=0.1)


def test_other_files_take_nothing_before_they_are_decoded(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.webp").write_bytes(b"")
    (tmp_path / "c.webp").write_bytes(b"RIFF")
    for name in ("a.png", "b.webp", "c.webp", "nowhere.webp"):
        assert opening_bytes(tmp_path / name) == 0
    assert opening_bytes(tmp_path) == 0


def test_a_large_webp_is_opened_in_memory_that_it_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    @contextlib.contextmanager
    def take(_: int) -> Iterator[None]:
        events.append("taken")
        yield
        events.append("free")

    images = save(tmp_path / "a.webp")
    opened = images.read
    images = Images(images.names, images.labels, lambda i: events.append("opened") or opened(i), images.opening_bytes)
    monkeypatch.setattr(attempts, "LARGE_BYTES", 1000)
    monkeypatch.setattr(attempts.DECODING, "take", take)
    monkeypatch.setattr(attempts, "give_back_freed_memory", lambda: events.append("given back"))
    chosen = images.subset([0])
    assert attempt(chosen, 0, decode) == (60, 50)
    assert events == ["taken", "opened", "given back", "free"]


def test_a_picture_is_gone_before_its_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Traced(Image.Image):
        def __del__(self) -> None:
            events.append("gone")

    events = list[str]()

    def read(_: int) -> Image.Image:
        image = Traced()
        image.__dict__.update(Image.open(io.BytesIO(PNG)).__dict__)
        return image

    buffer = io.BytesIO()
    make_image(0, seed=1).save(buffer, "PNG")
    PNG = buffer.getvalue()  # noqa: N806
    monkeypatch.setattr(attempts, "LARGE_BYTES", 0)
    monkeypatch.setattr(attempts, "give_back_freed_memory", lambda: events.append("given back"))
    assert attempt(Images(("a",), np.zeros(1, np.int64), read), 0, lambda _: 7) == 7
    assert events == ["gone", "given back"]
