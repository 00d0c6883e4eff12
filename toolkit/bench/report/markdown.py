"""Tables and lists in Markdown."""

from collections.abc import Sequence


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A table whose columns at `left` are flush left and all others flush right; a `|` in a cell stays a letter."""
    rule = ["---" if column in left else "---:" for column in range(len(headings))]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (headings, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (escaped[0], rule, *escaped[1:]))


def bullets(items: dict[str, str]) -> str:
    """`- name: text`, one per line; items without a text are left out."""
    return "\n".join(f"- {name}: {text}" for name, text in items.items() if text)


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f} %"
