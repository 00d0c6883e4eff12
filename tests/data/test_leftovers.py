"""What systems and programs leave between pictures, by its names."""

import pytest

from toolkit.data.leftovers import Leftover, find_leftover


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "hidden") for name in ("._0.jpg", ".DS_Store", ".AppleDouble", ".Trash-1000", ".ipynb_checkpoints")),
        *((name, "system") for name in ("__MACOSX", "Icon\r", "lost+found", "@eaDir", "#recycle", "#snapshot")),
        *((name, "system") for name in ("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini")),
        *((name, "system") for name in ("THUMBS.DB", "thumbs.DB", "Desktop.ini", "__pycache__", "LOST.DIR")),
        *((name, "system") for name in ("found.000", "FOUND.013", "@GMT-2026.11.27-10.00.00", "~$cats.docx")),
        *((name, "system") for name in ("0.jpg:Zone.Identifier", "0.jpgZone.Identifier", "@__thumb", "Picasa.ini")),
        *((name, "partial") for name in ("0.jpg.part", "0.jpg.crdownload", "Unconfirmed 1.CRDOWNLOAD", "0.tmp")),
        *(
            (name, None)
            for name in ("0.jpg", "cat", "train", "found.jpg", "found.1234", "recycled", "thumbs", "~a.jpg")
        ),
        *((name, None) for name in ("@home", "#1.png", "$5.png", "icon", "lost and found", "part.jpg", "a~$b.jpg")),
    ],
)
def test_leftovers(name: str, expected: Leftover | None) -> None:
    assert find_leftover(name) == expected
