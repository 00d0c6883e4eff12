"""The plan of a command, as a value: stages with their images, sizes, epochs, time and disk space."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from toolkit import console

HEADS = ("stage", "images", "px", "epochs", "time", "disk")


@dataclass(frozen=True)
class ForecastStage:
    """One kind of work. `images` are those of one epoch, or of the whole stage if it has no epochs.

    `sizes_px` are the first and the last side of the images, None if there is none; `seconds` and `disk_bytes` are of
    all seeds together; `note` adds what the figures do not show (`exists`, `3 seeds`).
    """

    name: str
    images: int
    sizes_px: tuple[int, int] | None = None
    epochs: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The texts under HEADS, and the note."""
        sizes = "" if self.sizes_px is None else "–".join(map(str, dict.fromkeys(self.sizes_px)))
        return (
            self.name,
            f"{self.images:,}",
            sizes,
            str(self.epochs or ""),
            console.duration(self.seconds) if self.seconds else "",
            console.size(self.disk_bytes) if self.disk_bytes else "",
            self.note,
        )


@dataclass(frozen=True)
class Forecast:
    """All stages of a command, in order; `measured` is one sentence on how the times were found."""

    stages: tuple[ForecastStage, ...]
    measured: str = ""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Times in s, sizes in bytes and px."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "seconds": self.seconds,
            "disk_bytes": self.disk_bytes,
            "measured": self.measured,
        }

    def print_to(self, screen: Console) -> None:
        """A table on a terminal, plain lines in a log."""
        if screen.is_terminal:
            screen.print(self._table())
        else:
            for line in self._lines():
                screen.print(line, markup=False)
        screen.print(self.measured, markup=False)

    @property
    def _total(self) -> tuple[str, ...]:
        return ("total", "", "", "", console.duration(self.seconds), console.size(self.disk_bytes), "")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_footer=True)
        for number, (head, total) in enumerate(zip((*HEADS, ""), self._total, strict=True)):
            table.add_column(head, total, justify="left" if number in (0, len(HEADS)) else "right")
        for stage in self.stages:
            table.add_row(*stage.cells())
        return table

    def _lines(self) -> Iterator[str]:
        for stage in self.stages:
            name, images, sizes, epochs, time, disk, note = stage.cells()
            parts = [f"{images} images", *([f"{sizes} px"] if sizes else [])]
            parts += [console.count(stage.epochs, "epoch")] if epochs else []
            yield f"plan: {name}: {', '.join([*parts, *(part for part in (time, disk, note) if part)])}"
        yield f"plan: total {self._total[4]}, {self._total[5]}"
