"""The doctor's findings: checks with remedies, as a table and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.text import Text

from toolkit import console

Status = Literal["ok", "note", "problem"]

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line: the subject, the finding, and for a note or a problem the remedy."""

    name: str
    status: Status
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    checks: tuple[Check, ...]
    hardware: dict[str, object]
    versions: dict[str, str]

    @property
    def has_problem(self) -> bool:
        return any(check.status == "problem" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """{"ok": bool, "checks": [{name, status, finding, remedy}], "hardware": {...}, "versions": {...}}."""
        checks = [asdict(check) for check in self.checks]
        return {"ok": not self.has_problem, "checks": checks, "hardware": self.hardware, "versions": self.versions}

    def print_table(self) -> None:
        width = max(len(check.name) for check in self.checks)
        for check in self.checks:
            line = Text.assemble(
                (f"{check.status:<8}", STYLES[check.status]), f"{check.name:<{width}}  {check.finding}"
            )
            console.out.print(line)
            if check.remedy:
                console.out.print(Text(f"{'':<8}{'':<{width}}  → {check.remedy}", style="dim"))
        problems = sum(check.status == "problem" for check in self.checks)
        verdict = {0: "no problem found", 1: "1 problem found"}.get(problems, f"{problems} problems found")
        console.out.print(Text(verdict, style="bold"))
