"""What a command says of its files."""

import os
from pathlib import Path

import pytest

from toolkit.cli.printing import print_files, times_of


def test_a_file_that_was_there_before_is_kept_and_another_one_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("same", "replaced", "new")]
    for path in paths[:2]:
        path.write_bytes(b"12345")
        os.utime(path, ns=(1, 1))
    before = times_of(paths)
    for path in paths[1:]:
        path.write_bytes(b"123")
    print_files(paths, [path for path, time_ns in times_of(paths).items() if before.get(path) == time_ns])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in said] == [f"kept {paths[0]}", f"wrote {paths[1]}", f"wrote {paths[2]}"]
