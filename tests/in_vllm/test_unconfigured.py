"""A vLLM beside which easd is installed, and that nobody told of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import vllm


def report(**environment):
    script = Path(__file__).parent / "unconfigured.py"
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(script.parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert found, done.stderr[-3000:]
    return json.loads(found[0].removeprefix("REPORT "))


def test_the_plugin_is_found_and_changes_nothing():
    with_plugin, without = report(), report(VLLM_PLUGINS="")
    assert with_plugin["modules"] == ["easd", "easd.integrations", "easd.integrations.vllm"]
    assert without["modules"] == []
    assert with_plugin["tokens"] == without["tokens"]
    home = Path(vllm.__file__).parent
    for file in with_plugin["files"]:
        assert home in Path(file).parents
