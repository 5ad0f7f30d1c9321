"""The Triton kernels without a GPU: interpreted, compiled, and absent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "kernels"


def run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    return done.stdout


def test_in_the_interpreter():
    run("-m", "pytest", "-m", "vllm", "-W", "ignore", FOLDER, TRITON_INTERPRET="1")


@pytest.mark.parametrize("generation", [80, 90])
def test_a_gpus_compiler_takes_them(generation, tmp_path):
    """No thread has more to remember than its registers hold."""
    told = run(FOLDER / "compile.py", generation, TRITON_CACHE_DIR=str(tmp_path))
    launches = [json.loads(line) for line in told.splitlines()]
    named = {launch["kernel"] for launch in launches}
    assert named == {"scan", "merge", "race", "add_norm", "gate", "turn"}
    for launch in launches:
        assert launch["usage"]["STACK"] == launch["usage"]["LOCAL"] == 0, launch


def test_nothing_needs_triton():
    run(
        "-c", "import sys; sys.modules['triton'] = None; import easd; from easd.core import kernels"
    )
