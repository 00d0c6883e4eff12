"""Opening picture files: bytes that are no pixels do not matter, bombs are refused before they are decoded."""

import gc
import io
import os
import random
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_png
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from toolkit.data import picture_file
from toolkit.data.dataset import Images
from toolkit.data.formats import READERS
from toolkit.data.picture_file import (
    MAX_JPEG_PASSES,
    PictureStream,
    TooLargeError,
    decoding_bytes,
    open_bytes,
    open_image,
)
from toolkit.data.preprocess import decode_rgb

FAKE_PASSES = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 60_000
"""More than any bound, in the bytes of something else."""


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(seed: int = 1, **options: object) -> bytes:
    return encode(make_image(0, seed=seed, size=(200, 120)), "JPEG", quality=95, **options)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def after_soi(picture: bytes, *inserted: bytes) -> bytes:
    return picture[:2] + b"".join(inserted) + picture[2:]


def with_passes(picture: bytes, count: int) -> bytes:
    """A progressive one whose last pass comes again and again, `count` passes in all."""
    last, own = picture[picture.rindex(b"\xff\xda") : -2], picture.count(b"\xff\xda")
    return picture[:-2] + last * (count - own) + picture[-2:]


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode_rgb(open_bytes(content)))


def movie() -> bytes:
    return b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + struct.pack(">I", len(FAKE_PASSES) + 8) + b"mdat" + FAKE_PASSES


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.bin", FAKE_PASSES)
    return stream.getvalue()


PLAIN = jpeg()
SMALL_BOMB = with_passes(encode(make_image(0, seed=1), "JPEG", progressive=True), 110)

APPENDED: dict[str, bytes] = {
    "a movie behind it": PLAIN + b"MotionPhoto_Data" + movie(),
    "an archive behind it": PLAIN + archive(),
    "a row of JPEGs": PLAIN + b"".join(jpeg(seed, progressive=True) for seed in range(2, 40)),
    "a bomb behind it": PLAIN + with_passes(jpeg(progressive=True), 500),
    "zeros and line ends behind it": PLAIN + bytes(5000) + b"\r\n" * 10,
    "large segments before": after_soi(PLAIN, *[segment(0xEB, FAKE_PASSES[:65_000])] * 10),
    "a comment": after_soi(PLAIN, segment(0xFE, FAKE_PASSES[:65_000])),
    "a JPEG in a segment": after_soi(PLAIN, segment(0xEC, jpeg(3)), segment(0xEC, SMALL_BOMB)),
    "a segment between the headers": PLAIN.replace(b"\xff\xda", segment(0xED, FAKE_PASSES[:65_000]) + b"\xff\xda", 1),
    "fill bytes": PLAIN.replace(b"\xff\xc4", b"\xff" * 3000 + b"\xc4").replace(b"\xff\xda", b"\xff" * 7 + b"\xda"),
    "a gain map": after_soi(PLAIN, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0'/>")) + jpeg(5),
}


@pytest.mark.parametrize("name", APPENDED)
def test_other_bytes_of_a_jpeg_do_not_change_its_answer(name: str) -> None:
    content = APPENDED[name]
    assert np.array_equal(pixels(content), pixels(PLAIN))
    assert open_bytes(content).fp.passes == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}])
def test_so_it_is_for_every_kind_of_jpeg(options: dict[str, object]) -> None:
    plain = jpeg(**options)
    for tail in (movie(), archive(), b"\xff\xd9" * 3, b"\xff"):
        assert np.array_equal(pixels(plain + tail), pixels(plain))
        opened = open_bytes(plain + tail)
        assert isinstance(opened.fp, PictureStream)
        assert opened.fp.content() == plain


def test_a_thumbnail_in_the_exif_data_is_no_pass() -> None:
    """Cameras put a whole JPEG there; a scanner's may be large."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 10
    thumbnail = SMALL_BOMB
    block = b"Exif\0\0" + exif.tobytes()[6:] + thumbnail
    content = after_soi(PLAIN, *[segment(0xE1, block)] * 3)
    assert content.count(b"\xff\xda") > MAX_JPEG_PASSES
    assert np.array_equal(pixels(content), pixels(PLAIN))


def test_a_phones_pictures_in_one_file_are_its_first() -> None:
    pictures = [make_image(0, seed=seed, size=(200, 120)) for seed in range(30)]
    content = encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:], progressive=True)
    assert content.count(b"\xff\xda") > MAX_JPEG_PASSES
    assert open_bytes(content).format == "MPO"
    first = encode(pictures[0], "JPEG", progressive=True)
    assert np.array_equal(pixels(content), pixels(first))
    assert np.array_equal(pixels(open_bytes(content).fp.content()), pixels(first))  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WebP", "BMP"])
def test_bytes_behind_other_pictures_do_not_matter_either(kind: str) -> None:
    plain = encode(make_image(0, seed=1), kind)
    for tail in (movie(), archive(), PLAIN):
        assert np.array_equal(pixels(plain + tail), pixels(plain))


def test_a_large_chunk_before_a_pngs_pixels_does_not_matter() -> None:
    info = PngInfo()
    info.add(b"prVt", os.urandom(3_000_000))
    image = make_image(0, seed=1)
    assert np.array_equal(pixels(encode(image, "PNG", pnginfo=info)), np.asarray(image))


def test_what_is_behind_a_jpeg_is_never_read(tmp_path: Path) -> None:
    """A sparse file: 30 GB take no room on the disk, and would take some time to read."""
    path = tmp_path / "long.jpg"
    path.write_bytes(PLAIN)
    os.truncate(path, 30_000_000_000)
    assert np.array_equal(np.asarray(decode_rgb(open_image(path))), pixels(PLAIN))
    stream = open_image(path).fp
    assert isinstance(stream, PictureStream)
    assert stream.content() == PLAIN


# --- bombs -----------------------------------------------------------------------------------------------------------

BOMB = with_passes(jpeg(progressive=True), MAX_JPEG_PASSES + 1)
LAST = BOMB.rindex(b"\xff\xda")

BOMBS: dict[str, bytes] = {
    "plain": BOMB,
    "many": with_passes(jpeg(progressive=True), 5000),
    "with restart markers": with_passes(jpeg(progressive=True, restart_marker_blocks=1), 150),
    "behind an end in a segment": after_soi(BOMB, segment(0xE5, b"\xff\xd9" * 1000)),
    "behind an end in a comment": after_soi(BOMB, segment(0xFE, PLAIN)),
    "behind a segment without a length": after_soi(BOMB, b"\xff\xe5\0\0", b"\xff\xe5\0\1"),
    "behind escaped ends": BOMB[:LAST] + b"\xff\x00\xd9" * 50 + BOMB[LAST:],
    "behind junk": BOMB[:LAST] + b"\0\1junk\xd9" + BOMB[LAST:],
    "with fill bytes": BOMB.replace(b"\xff\xda", b"\xff" * 9 + b"\xda"),
    "with a movie behind it": BOMB + movie(),
    "with a height in a DNL segment": BOMB[:LAST] + segment(0xDC, b"\0\x78") + BOMB[LAST:],
    "without an end": BOMB[:-2],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_jpeg_of_too_many_passes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"the JPEG has more than {MAX_JPEG_PASSES} passes"):
        open_bytes(BOMBS[name])


def test_as_many_passes_as_may_be_are_read() -> None:
    content = with_passes(jpeg(progressive=True), MAX_JPEG_PASSES)
    assert np.array_equal(pixels(content), pixels(with_passes(content, MAX_JPEG_PASSES)))
    assert open_bytes(content).fp.passes == MAX_JPEG_PASSES  # type: ignore[union-attr]


@pytest.mark.parametrize("piece", [4, 5, 6, 7, 9, 16, 61, 1000])
def test_where_the_pieces_of_a_file_meet_does_not_matter(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [*(content for content in APPENDED.values() if len(content) < 100_000), *BOMBS.values(), PLAIN[:500]]

    def measure() -> list[tuple[int, int]]:
        measured = []
        for content in contents:
            stream = PictureStream(io.BytesIO(content))
            stream.end = len(content)
            picture_file._measure_jpeg(stream)
            measured.append((stream.passes, stream.end))
        return measured

    expected = measure()
    monkeypatch.setattr(picture_file, "PIECE_BYTES", piece)
    assert measure() == expected


def test_the_end_of_a_damaged_jpeg_is_where_libjpeg_ends() -> None:
    """Without the bytes from there on, it decodes to the same pixels or the same failure."""
    dice = random.Random(0)
    whole = [jpeg(), jpeg(progressive=True), jpeg(restart_marker_blocks=2)]
    codes = bytes([0x00, 0x01, 0x02, 0xC4, 0xD0, 0xD5, 0xD9, 0xDA, 0xDC, 0xE1, 0xFE, 0xFF])

    def decode(content: bytes) -> object:
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                return image.tobytes()
        except (OSError, ValueError, SyntaxError) as error:
            return type(error)

    decoded = 0
    for _ in range(300):
        content = bytearray(dice.choice(whole) + b"\xff\xda tail \xff\xd9")
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(2, len(content))
            content[place : place + dice.randint(0, 3)] = bytes([0xFF, dice.choice(codes), dice.randrange(256)])
        stream = PictureStream(io.BytesIO(content))
        stream.end = len(content)
        picture_file._measure_jpeg(stream)
        if stream.passes:
            found = decode(bytes(content))
            assert found == decode(stream.content())
            decoded += isinstance(found, bytes)
    assert decoded > 100


def make_rle_bomb(width: int, height: int) -> bytes:
    """A BMP whose only code goes up by 255 rows: Pillow fills them."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 2835, 2835, 2, 0)
    start = 14 + 40 + 8
    return b"BM" + struct.pack("<IHHI", start + 4, 0, 0, start) + header + b"\0\0\0\0\1\2\3\0" + b"\0\2\0\xff"


LARGE = {
    "more pixels": (lambda: make_png(12_001, 10_000), r"12001×10000 px$", "at most 120 million pixels"),
    "far more pixels": (lambda: make_png(60_000, 60_000), r"60000×60000 px$", "at most 120 million pixels"),
    "rows": (lambda: make_png(1, 120_000_000), r"1×120000000 px of this kind take 3.4 GB to decode", "make it smaller"),
    "a row": (lambda: make_png(120_000_000, 1), r"120000000×1 px of this kind take 2.4 GB", "make it smaller"),
    "codes": (lambda: make_rle_bomb(120_000_000, 1), r"take 9\d\.\d GB to decode", "make it smaller"),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_would_fill_the_memory_is_refused_unread(name: str) -> None:
    make, reason, remedy = LARGE[name]
    with pytest.raises(TooLargeError, match=reason) as caught:
        open_bytes(make())
    assert remedy in caught.value.remedy


def test_the_largest_picture_is_opened() -> None:
    assert decoding_bytes(open_bytes(make_png(12_000, 10_000))) == pytest.approx(480e6, rel=0.01)
    assert decoding_bytes(open_bytes(make_png(12_000, 10_000, colour=0))) == pytest.approx(120e6, rel=0.01)
    assert decoding_bytes(open_bytes(make_png(60_000_000, 1, colour=0))) < 500e6


@pytest.mark.parametrize(
    ("options", "bytes_per_pixel"),
    [
        ({}, 4),
        ({"progressive": True, "subsampling": 0}, 4 + 6),
        ({"progressive": True, "subsampling": 1}, 4 + 4),
        ({"progressive": True, "subsampling": 2}, 4 + 3),
        ({"progressive": True, "mode": "L"}, 1 + 2),
        ({"progressive": True, "mode": "CMYK"}, 4 + 8),
    ],
)
def test_a_jpeg_in_passes_is_kept_twice(options: dict[str, object], bytes_per_pixel: float) -> None:
    """Once as coefficients of 2 bytes: by the definition of the format, the numbers of test_picture_memory.py agree."""
    image = Image.new("RGB", (1600, 1600)).convert(str(options.pop("mode", "RGB")))
    needed = decoding_bytes(open_bytes(encode(image, "JPEG", **options)))
    assert needed / 1600**2 == pytest.approx(bytes_per_pixel, abs=0.05)


def test_a_jpeg_in_passes_or_a_webp_that_takes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_file, "MAX_DECODING_BYTES", 200_000)
    image = Image.new("RGB", (200, 200))
    for kind, options in (("PNG", {}), ("JPEG", {}), ("BMP", {}), ("GIF", {})):
        open_bytes(encode(image, kind, **options))
    remedies = {"JPEG": "without progressive passes", "WebP": "as a PNG or as a JPEG without progressive passes"}
    for kind, options in (("JPEG", {"progressive": True, "subsampling": 0}), ("WebP", {})):
        with pytest.raises(TooLargeError, match=r"200×200 px of this kind take 0\.\d GB to decode") as caught:
            open_bytes(encode(image, kind, **options))
        assert caught.value.remedy == f"make it smaller, or save it {remedies[kind]}"


@pytest.mark.skipif("TIFF" not in READERS, reason="TIFF is not read")
def test_the_parts_of_a_tiff_are_counted() -> None:
    image = Image.new("RGB", (400, 300))
    stored = 400 * 300 * 4
    raw = decoding_bytes(open_bytes(encode(image, "TIFF")))
    packed = decoding_bytes(open_bytes(encode(image, "TIFF", compression="tiff_lzw")))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert raw == pytest.approx(stored, rel=0.05)
    assert stored < packed <= 2.05 * stored
    assert decoding_bytes(open_bytes(encode(image, "TIFF", exif=exif))) == pytest.approx(2 * stored, rel=0.05)


def test_bytes_before_the_pixels_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow keeps all of them, whatever they are."""
    image = make_image(0, seed=1)
    info = PngInfo()
    info.add(b"prVt", bytes(200_000))
    contents = {
        "JPEG": after_soi(PLAIN, *[segment(0xE9, bytes(60_000))] * 4),
        "PNG": encode(image, "PNG", pnginfo=info),
        "GIF": encode(image, "GIF", comment=b"x" * 200_000),
        "WebP": encode(image, "WebP", exif=b"Exif\0\0" + bytes(200_000)),
    }
    for content in contents.values():
        pixels(content)
    monkeypatch.setattr(picture_file, "MAX_HEADER_BYTES", 100_000)
    for content in contents.values():
        with pytest.raises(TooLargeError, match="more than 0 MB come before its pixels"):
            open_bytes(content)
    monkeypatch.setattr(picture_file, "MAX_HEADER_BYTES", 2**20)
    with pytest.raises(TooLargeError, match="more than 1 MB come before its pixels"):
        open_bytes(after_soi(PLAIN, segment(0xE9, b"") * 10_000))
    assert len(pixels(encode(Image.effect_noise((500, 500), 99), "PNG"))) == 500, "pixels are no header"


# --- files -----------------------------------------------------------------------------------------------------------


def open_files() -> int:
    gc.collect()
    return len([*Path("/proc/self/fd").iterdir()])


ON_LINUX = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")


@ON_LINUX
@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp"])
def test_a_file_is_closed_with_the_last_reference(tmp_path: Path, suffix: str) -> None:
    make_image(0, seed=1).save(tmp_path / f"x.{suffix}")
    images = Images.from_files(tmp_path, [f"x.{suffix}"], [0])
    before = open_files()
    assert images.read(0).size == (48, 40)
    image = images.read(0)
    image.load()
    del image
    (tmp_path / "x.txt").write_bytes(b"no picture")
    with pytest.raises(OSError, match="no reader knows it"):
        open_image(tmp_path / "x.txt")
    assert open_files() == before


@ON_LINUX
@pytest.mark.parametrize("content", [PLAIN, encode(make_image(0, seed=1), "PNG"), b""], ids=["jpeg", "png", "nothing"])
def test_a_pipe_is_read(content: bytes) -> None:
    """As a shell's <(...) gives it."""
    reads, writes = os.pipe()

    def write() -> None:
        with os.fdopen(writes, "wb") as file:
            file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        path = Path(f"/dev/fd/{reads}")
        if content:
            assert np.array_equal(np.asarray(decode_rgb(open_image(path))), pixels(content))
        else:
            with pytest.raises(ValueError, match="the file is empty"):
                open_image(path)
    finally:
        writer.join()
        os.close(reads)


def test_many_threads_may_open_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(APPENDED["a movie behind it"])
    sizes: list[tuple[int, int]] = []

    def work() -> None:
        sizes.extend(open_image(tmp_path / "x.jpg").size for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    run: Callable[[threading.Thread], None]
    for run in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            run(thread)
    assert sizes == [(200, 120)] * 80
