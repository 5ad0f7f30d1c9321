"""The wheel works in an empty environment, away from the checkout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.wheel
def test_wheel_decodes_the_lab_pair(tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    pip = (venv / "bin/python", "-m", "pip", "--disable-pip-version-check")
    wheels = tmp_path / "wheels"
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT)
    (wheel,) = wheels.glob("easd-*.whl")
    run(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    output = run(
        venv / "bin/easd",
        *("generate", "--pair", "lab", "--seed", "3", "--json", "28 - 28 + 6 * 25 * 2 ?"),
        cwd=tmp_path,
    )
    assert json.loads(output)["finish_reason"] == "eos"

    # Without the extra a study ends with the line that installs it; with it, it works.
    study = ("eval", "--pair", "lab-a", "--task", "lab-a:20", "--system", "target", "--out", "run")
    study += ("--system", "easd:tau_h=0.2", "--system", "rsd", "-q")
    run(venv / "bin/easd", *study, cwd=tmp_path)
    refused = subprocess.run(
        (venv / "bin/easd", "report", "run"), capture_output=True, text=True, cwd=tmp_path
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "pip install 'easd[study]'" in refused.stderr
    run(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[study]")
    run(venv / "bin/easd", "report", "run", cwd=tmp_path)
    assert "easd:tau_h=0.2" in (tmp_path / "run/report/report.html").read_text()
