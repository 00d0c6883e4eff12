"""The command line: usage, exit codes, one-line errors, and that --help stays light."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_image
from toolkit_process import toolkit
from typer.testing import CliRunner, Result

from toolkit import __version__
from toolkit.cli import app
from toolkit.errors import ToolkitError

PANELS = {
    "Before you begin": ("doctor", "data", "plan"),
    "The stages": ("run", "teacher", "distill", "export", "bench"),
    "Afterwards": ("compare", "load-test", "predict", "demo"),
}
COMMANDS = [command for commands in PANELS.values() for command in commands]
HEAVY = {
    *("torch", "torchvision", "torchmetrics", "onnx", "onnxruntime", "openvino", "numpy", "PIL", "matplotlib"),
    *("gradio", "fastapi", "starlette", "uvicorn", "pydantic", "safetensors"),
}


WITH_A_DEVICE = ("teacher", "distill", "bench", "plan", "run")
WITH_A_PROVIDER = (
    *(("run", "--provider", "npu"), ("plan", "--provider", "npu"), ("demo", "nowhere", "--provider", "npu")),
    *(("bench", "nowhere", "--provider", "npu"), ("bench", "nowhere", "--clients", "2", "--provider", "npu")),
    *(("load-test", "nowhere", "--provider", "npu"), ("predict", "nowhere.onnx", "x.png", "--provider", "npu")),
)
"""None of the models is there: errors of the command come first."""


def invoke(*arguments: str) -> Result:
    """The command in this process: enough for --help and wrong usage, which need no torch."""
    return CliRunner().invoke(app.app, arguments, env={"COLUMNS": "100"})


def assert_one_line_error(result: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    for part in parts:
        assert part in lines[-1]


def test_help_names_every_command_and_loads_nothing_but_the_command_line() -> None:
    """So it takes well under a second."""
    command = [sys.executable, "-X", "importtime", "-m", "toolkit", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert {"toolkit.cli.app", "typer"} <= modules
    assert {module.partition(".")[0] for module in modules}.isdisjoint(HEAVY), "a heavy import crept in"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, toolkit.cli.app, toolkit.pipeline;"
        "heavy = 'torch onnxruntime gradio matplotlib torchvision numpy';"
        "print([module for module in heavy.split() if module in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"toolkit {command}" in result.stdout


def panels_of(*arguments: str) -> dict[str, str]:
    """The output of --help, by the titles of its panels."""
    parts = re.split(r"╭─ (.+?) ─+╮\n", invoke(*arguments, "--help").stdout)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_help_groups_the_commands_in_the_order_of_their_use() -> None:
    panels = panels_of()
    listed = {title: tuple(re.findall(r"^│ ([a-z-]+)  ", text, re.MULTILINE)) for title, text in panels.items()}
    assert {title: names for title, names in listed.items() if title != "Options"} == PANELS


@pytest.mark.parametrize(
    ("command", "titles"),
    [
        ("run", ["Recipe and data", "Where", "How", "Output"]),
        ("teacher", ["Recipe and data", "Where", "How", "Output"]),
        ("export", ["Arguments", "Files to write", "Recipe and data", "Where", "How", "Output"]),
        ("bench", ["Arguments", "Recipe and data", "Where", "Runtimes and gate", "How", "Output"]),
        ("load-test", ["Arguments", "Load", "Where", "Output"]),
    ],
)
def test_help_groups_the_options(command: str, titles: list[str]) -> None:
    panels = panels_of(command)
    assert list(panels) == titles
    assert {"--json", "--help"} <= set(re.findall(r"--[a-z]+", panels["Output"]))


def test_version() -> None:
    assert invoke("--version").stdout.strip() == f"kd-toolkit {__version__}"


@pytest.mark.parametrize("arguments", [("no-such-command",), ("distill", "--no-such-flag"), ("predict",)])
def test_wrong_usage_exits_2(
    arguments: tuple[str, ...], toolkit_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = toolkit_here(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "option", "allowed"),
    [
        (("plan", "--minutes", "0.01"), "'--minutes'", "0.1"),
        (("run", "--minutes", "soon"), "'--minutes'", "number"),
        (("distill", "--seeds", "0"), "'--seeds'", "1"),
        (("teacher", "--seed", "-1"), "'--seed'", "0"),
        (("bench", "--max-drop", "2"), "'--max-drop'", "1"),
        (("bench", "--max-slowdown", "0.5"), "'--max-slowdown'", "1"),
        (("bench", "--clients", "0"), "'--clients'", "1"),
        (("bench", "--clients", "2", "--seconds", "0"), "'--seconds'", "0.1"),
        (("bench", "--precision", "fp8"), "'--precision'", "int8"),
        (("load-test", "--clients", "0"), "'--clients'", "1"),
        (("load-test", "--seconds", "0"), "'--seconds'", "0.1"),
        (("load-test", "--precision", "fp8"), "'--precision'", "int8"),
        (("predict", "-k", "0", "a.onnx", "b.png"), "'--top'", "1"),
        (("demo", "--port", "70000"), "'--port'", "65535"),
        (("demo", "--max-upload", "0"), "'--max-upload'", "1"),
        (("predict",), "missing argument 'MODEL'", ""),
        *((command, "'--provider'", "'npu' is not one of auto, cpu, cuda, cuda:N") for command in WITH_A_PROVIDER),
        *(((name, "--device", "cuda:"), "'--device'", "auto, cpu, cuda, cuda:N") for name in WITH_A_DEVICE),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line_and_exit_2(
    arguments: tuple[str, ...],
    option: str,
    allowed: str,
    toolkit_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = toolkit_here(*arguments)
    assert_one_line_error(done, option, allowed, f"see toolkit {arguments[0]} --help", code=2)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("export", "--onnx", "--max-drop", "0.1"), ("--max-drop", "int8", "; add --int8")),
        (("export", "nowhere", "--out", "there"), ("--out is for a weights file", "; leave out --out")),
        (("bench", "--baseline", "a", "--compare", "b"), ("--baseline, --compare and --clients", "; give one of them")),
        (("bench", "--seconds", "3"), ("--seconds is an option of the load test", "use toolkit load-test")),
        (("bench", "--model", "teacher"), ("--model is an option of the load test", "or add --clients N")),
        (("bench", "--precision", "fp32"), ("--precision is an option of the load test", "or add --clients N")),
        (("bench", "--compare", "b", "--seconds", "3"), ("--seconds is an option of the load test",)),
        (("bench", "--seconds", "3", "--model", "teacher"), ("--seconds, --model are options of the load test",)),
    ],
)
def test_options_that_do_not_go_together_are_one_line_and_exit_2(
    arguments: tuple[str, ...], parts: tuple[str, ...], toolkit_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = toolkit_here(*arguments)
    assert_one_line_error(done, *parts, code=2)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("distill", "--set", "distill.epoch=3"), ("unknown key distill.epoch", "did you mean distill.epochs?")),
        (("distill", "--set", "distill.epochs=many"), ('distill.epochs = "many" is not allowed', "valid integer")),
        (("distill", "--recipe", "none.toml"), ("there is no file none.toml", "recipes: fashion-mnist, food11")),
        (("distill", "--data", "no/such/dir"), ("no/such/dir",)),
        (("distill", "--data", "fashion-mnits"), ("fashion-mnist",)),
        (("distill", "--device", "cuda:99", "--data", "fashion-mnist"), ("cuda:99",)),
        (("teacher", "--weights", "none.bin", "--data", "{data}"), ("none.bin",)),
        (
            ("teacher", "--weights", "one.onnx", "--weights", "two.onnx", "--data", "{data}"),
            ("there is no file one.onnx",),
        ),
        (("export", "--onnx", "nowhere"), ("there is no model directory nowhere", "toolkit run --out nowhere")),
        (("export", "nowhere"), ("there is no model directory nowhere", "toolkit run --out nowhere")),
        (("load-test", "nowhere"), ("there is no model directory nowhere", "toolkit run --out nowhere")),
        (("compare", "nowhere", "there"), ("nowhere/report.json",)),
        (("bench", "nowhere"), ("there is no model directory nowhere", "toolkit run --out nowhere")),
        (("predict", "nowhere.onnx", "x.png"), ("nowhere.onnx",)),
        (("data", "."), ("images",)),
    ],
)
def test_a_user_s_mistake_is_one_line_and_exit_1(
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    class_folders: Path,
    toolkit_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    filled = [a.replace("{data}", str(class_folders)) for a in arguments]
    assert_one_line_error(toolkit_here(*filled), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        *(((*command[:-1], "cuda:99"), ("onnxruntime cannot run on cuda:99",)) for command in WITH_A_PROVIDER),
        *(((name, "--device", "cuda:99"), ("device cuda:99 cannot be used",)) for name in WITH_A_DEVICE),
        (("bench", "nowhere", "--runtimes", "tensorrt"), ("bench.runtimes", '"tensorrt" is not allowed')),
        *(((name, "--tensorboard"), ("--tensorboard needs a package",)) for name in ("teacher", "distill", "run")),
        *(((name, "--set", 'bench.runtimes=["openvino"]'), ("openvino is not installed",)) for name in ("run", "plan")),
    ],
)
def test_a_place_that_cannot_run_is_refused_before_anything_is_looked_for_or_made(
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    toolkit_here: Callable[..., subprocess.CompletedProcess[str]],
    class_folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("torch.utils.tensorboard", "openvino", "openvino.frontend"):
        monkeypatch.setitem(sys.modules, package, None)
    data = ("--data", str(class_folders)) if arguments[0] in ("teacher", "distill", "plan", "run") else ()
    done = toolkit_here(*arguments, *data)
    assert_one_line_error(done, *parts)
    assert "measured here" not in done.stderr, "nothing was planned"
    assert not list(tmp_path.rglob("*.safetensors"))
    if "openvino" not in arguments[-1]:
        assert not (tmp_path / "models").exists()


def test_a_user_s_mistake_is_one_line_and_exit_1_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert_one_line_error(toolkit("demo", "nowhere", cwd=tmp_path, code=1), "nowhere")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, class_folders: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = toolkit("distill", "--data", str(class_folders), "--out", str(tmp_path / "file" / "m"), code=1)
    assert_one_line_error(result, "cannot write", "give a directory you may write to")


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import toolkit.doctor.examine, toolkit.cli.ending, sys; sys.argv = ['toolkit', 'doctor']\n"
        "def broken(**_): raise ZeroDivisionError('a bug')\n"
        "toolkit.doctor.examine.examine = broken; toolkit.cli.ending.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: a bug" in result.stderr


def test_ctrl_c_while_the_command_loads_is_one_word(tmp_path: Path) -> None:
    code = (
        "import sys, toolkit.__main__\n"
        "class Impatient:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient()); toolkit.__main__.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "stopped\n")


def test_data_counts_as_json_and_strict_names_the_broken_file(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for name, label in (("a", 0), ("b", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                make_image(label, hash_of(split, label, i)).save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "train" / "a" / "broken.png").write_bytes(b"\x89PNG not really")
    result = toolkit("data", str(tmp_path), "--json")
    report = json.loads(result.stdout)
    assert "broken.png" in json.dumps(report)
    strict = toolkit("data", str(tmp_path), "--strict", code=1)
    assert_one_line_error(strict, "1 unreadable image", "train/a/broken.png")


def hash_of(split: str, label: int, i: int) -> int:
    return (len(split) + ord(split[1])) * 10_000 + label * 100 + i


def test_sigterm_outside_training_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from toolkit.cli import ending
from toolkit.files import write_atomically

def app():
    with write_atomically(Path({str(tmp_path / "half")!r})):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

ending.app = app
sys.argv = ["toolkit", "distill", "--out", "x y"]
ending.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 143
    assert done.stderr == "stopped; go on with: toolkit distill --out 'x y' --resume\n"
    assert list(tmp_path.iterdir()) == []


def test_without_a_temporary_folder_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/app']")

    monkeypatch.setattr("tempfile.gettempdir", fail)
    with pytest.raises(ToolkitError, match=r"no folder for temporary files .*; set TMPDIR .* --tmpfs /tmp"):
        app.app(["doctor"], standalone_mode=False)


def test_onnxruntime_s_telemetry_is_off(tmp_path: Path) -> None:
    """If it is on, opening a model leaves an identity, and data to be sent, in the home folder."""
    code = (
        "import toolkit; from toolkit.sessions import tiny_model; import onnxruntime as o;"
        "o.InferenceSession(tiny_model.build(), providers=['CPUExecutionProvider'])"
    )
    quiet = {
        "CI",
        "ORT_RUNNING_UNIT_TESTS",
        "ORT_DISABLE_TELEMETRY",
        "XDG_CACHE_HOME",
    }  # each turns it off, or elsewhere
    environment = {name: value for name, value in os.environ.items() if name not in quiet} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []
