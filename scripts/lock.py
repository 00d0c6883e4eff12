"""Write the exact versions that pip would install for this project now into a constraints file; `make lock` runs this.

Nothing is installed: pip resolves as if the environment were empty and reports what it chose.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = """\
# The versions that this release was built and tested with, on Linux x86_64 with Python {python}.
# Written by `make lock`; used with `pip install -c constraints.txt`.
"""


def main(target: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), ".[food11,openvino,tensorboard]"], check=True)
        resolved = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = {item["metadata"]["name"]: item["metadata"]["version"] for item in resolved}
    del packages["kd-toolkit"]
    lines = [f"{name}=={version}" for name, version in sorted(packages.items(), key=lambda pair: pair[0].lower())]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    target.write_text(HEADER.format(python=python) + "\n".join(lines) + "\n", encoding="utf-8")
    sys.stderr.write(f"wrote {target}: {len(lines)} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
