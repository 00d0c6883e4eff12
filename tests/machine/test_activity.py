"""Clock and load: from made-up /proc files, and of a process that really computes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.machine import activity


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


class Second:
    """A sleep in which the kernel's counters grow; a second passes on its clock, `own_s` of it in this process."""

    def __init__(self, root: Path, *columns: int, own_s: float = 0.0) -> None:
        self.root, self.columns, self.own_s = root, columns, own_s
        self.passed = 0
        write_stat(root, *[0] * len(columns))

    def other_load_cores(self) -> float | None:
        return activity.other_load_cores(
            self.root, sleep=self.sleep, clock=lambda: self.passed, own_clock=lambda: self.passed * self.own_s
        )

    def sleep(self, seconds: float) -> None:
        self.passed += 1
        write_stat(self.root, *self.columns)


def test_idle_time_is_no_load_and_stolen_time_is(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert Second(tmp_path, 0, 0, 0, 50 * tick, 50 * tick, 0, 0, 0, 0, 0).other_load_cores() == 0.0
    assert Second(tmp_path, tick, 0, tick, 0, 0, 0, 0, tick, 0, 0).other_load_cores() == 3.0


def test_own_work_is_not_others(tmp_path: Path) -> None:
    columns = (2 * os.sysconf("SC_CLK_TCK"), 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert Second(tmp_path, *columns, own_s=0.5).other_load_cores() == 1.5
    assert Second(tmp_path, *columns, own_s=2.01).other_load_cores() == 0.0, "clocks are not of one mind"


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert activity.other_load_cores(tmp_path, seconds=0) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "stat").write_text("cpu  1 2\n")
    assert activity.other_load_cores(tmp_path, seconds=0) is None


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc/stat")
def test_another_process_that_computes_is_seen_in_the_kernel_s_own_file() -> None:
    """However much else the machine does: no share of its cores is less than none."""
    spin = "import time\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])

    def until_it_has_worked(seconds: float) -> None:
        end = cpu_seconds(other.pid) + seconds
        while cpu_seconds(other.pid) < end:
            time.sleep(0.05)

    try:
        theirs = activity.other_load_cores(seconds=0.5, sleep=until_it_has_worked, clock=iter((0.0, 1.0)).__next__)
    finally:
        other.kill()
        other.wait()
    assert theirs is not None
    assert theirs >= 0.4  # of the second that the clock says, it worked half; counters move by hundredths


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
