"""Clock and load: from made-up /proc files, and of a process that really computes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit import activity


def write_stat(root: Path, *columns: int) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "stat").write_text(f"cpu  {' '.join(map(str, columns))}\ncpu0 1 2 3\n")


def test_the_clock_is_the_mean_of_the_cores(tmp_path: Path) -> None:
    assert activity.clock_mhz(tmp_path) is None
    (tmp_path / "proc").mkdir()
    cpuinfo = tmp_path / "proc" / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\ncpu MHz\t\t: 2000.100\n\nprocessor\t: 1\ncpu MHz\t\t: 3001.300\n")
    assert activity.clock_mhz(tmp_path) == 2501
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # as on ARM
    assert activity.clock_mhz(tmp_path) is None


def test_the_load_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.234, 9.0, 9.0))
    assert activity.load_1m() == 1.23

    def fail() -> None:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", fail)
    assert activity.load_1m() is None


def later(root: Path, *columns: int) -> Callable[[float], None]:
    """A sleep of 0.1 s in which the kernel's counters grow."""

    def sleep(seconds: float) -> None:
        time.sleep(0.1)
        write_stat(root, *columns)

    return sleep


def test_idle_time_is_no_load_and_stolen_time_is(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    write_stat(tmp_path, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    idle = later(tmp_path, 0, 0, 0, 50 * tick, 50 * tick, 0, 0, 0, 0, 0)
    assert activity.other_load_cores(tmp_path, sleep=idle) == 0.0
    write_stat(tmp_path, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    busy = later(tmp_path, tick, 0, tick, 0, 0, 0, 0, tick, 0, 0)  # three seconds of work in a tenth of one
    assert activity.other_load_cores(tmp_path, sleep=busy) == pytest.approx(30, rel=0.3)


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert activity.other_load_cores(tmp_path, seconds=0) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "stat").write_text("cpu  1 2\n")
    assert activity.other_load_cores(tmp_path, seconds=0) is None


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc/stat")
def test_own_work_is_not_others_and_another_process_is() -> None:
    def compute(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    # other work on this machine can only make these larger: several tries
    own = min(activity.other_load_cores(seconds=0.3, sleep=compute) or 0.0 for _ in range(5))
    spin = "import time\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:
        time.sleep(0.2)
        theirs = max(activity.other_load_cores(seconds=0.3) or 0.0 for _ in range(5))
    finally:
        other.kill()
        other.wait()
    assert theirs > 0.3
    assert own < theirs
