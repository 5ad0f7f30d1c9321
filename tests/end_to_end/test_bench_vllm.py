"""vLLM as a system of a benchmark; `make test-vllm` runs this beside its environment."""

import json
from pathlib import Path

import pytest

from easd.cli.root import command_line
from easd.errors import ConfigError
from easd.pairs.loading import load_pair
from easd.speed.bench import System, read_timings
from easd.speed.bench.systems import Load
from easd.speed.bench.vllm_engines import VllmEngines

pytestmark = pytest.mark.vllm
PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"
GREEDY = Load(tokens=30, temperature=0)


def test_texts_are_as_long_as_the_targets_own(tmp_path):
    """Greedy ones: both engines compute one text, and stop it at the same token."""
    out = tmp_path / "run"
    kinds = ("target", "vllm", "vllm-speculative")
    asked = ["--pair", "lab-a", "--temperature", "0", "--tokens", "40", "--rounds", "2"]
    asked += [word for kind in kinds for word in ("--system", kind)]
    asked += ["--batch", "4", "--gamma", "3", "--vllm-python", str(PYTHON), "--out", str(out)]
    command_line(["bench"])(["bench", *asked])
    timings = read_timings(out)
    assert set(timings["system"]) == {"target", "vllm", "vllm-speculative 3"}
    assert timings["tokens"].nunique() == 1
    assert (timings[["seconds", "cpu_seconds"]] > 0).all(axis=None)
    assert json.loads((out / "run.json").read_text())["versions"]["vllm"].startswith("0.")


def test_what_ends_an_engine_is_one_clear_error():
    engines = VllmEngines(PYTHON, load_pair("lab-a", device="cpu"), 40)
    try:
        with pytest.raises(ConfigError, match=r"vLLM ended with: .*maximum context length is 41"):
            engines.decode_once(System("vllm"), [[5] * 50], GREEDY, 0)
    finally:
        engines.close()
