"""Folders of images without labels, for tests of several parts."""

from pathlib import Path

from conftest import make_image


def make_unlabelled(root: Path, count: int = 14, size: tuple[int, int] = (48, 40)) -> Path:
    """`count` new pictures below `root`, some of them in folders of folders; returns root."""
    for number in range(count):
        folder = root / "deep" / "er" if number % 3 == 0 else root
        folder.mkdir(parents=True, exist_ok=True)
        make_image(number % 3, seed=900_000 + number, size=size).save(folder / f"{number}.png")
    return root
