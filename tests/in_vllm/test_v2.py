"""vLLM's V2 model runner, CUDA's default, in a process where Triton interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "v2"
ENVIRONMENT = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


def test_the_second_runner():
    command = [sys.executable, "-m", "pytest", "-m", "vllm", "-W", "ignore", str(FOLDER)]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
