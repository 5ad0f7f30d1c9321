"""Every example runs, and says what it is there to say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(name: str, *arguments: object) -> str:
    """Runs an example as a reader would, with warnings as errors; what it prints."""
    command = [sys.executable, "-W", "error", EXAMPLES / name, *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_generate_decodes_by_easd():
    lines = run("drop_in.py").splitlines()
    assert [line.partition("?")[0] for line in lines] == [
        "28 - 28 + 6 * 25 * 2 ",
        "54 - 14 + 18 + 28 - 3 ",
    ]


def test_a_trace_is_recorded_and_read(tmp_path):
    written = run("record_trace.py", tmp_path / "trace")
    penalised = int(re.search(r"(\d+) tokens penalised", written)[1])
    said = run("read_trace.py", tmp_path / "trace")
    assert penalised > 0
    assert re.search(rf"^penalised .* {penalised}$", said, re.MULTILINE)


def test_lossless_speculation_writes_the_targets_texts_and_other_rules_do_not():
    said = run("compare_rules.py")
    same = {name: float(share) for name, share in re.findall(r"^(\S+) +\S+% +(\S+)%$", said, re.M)}
    assert same["target"] == same["speculative"] == 100
    assert set(same) == {"target", "speculative", "easd", "random-refusal", "pool"}
    assert max(same["easd"], same["random-refusal"], same["pool"]) < 100


def test_the_diagnosis_fits_a_pool_that_decodes():
    said = run("diagnose.py")
    assert "EASD will hurt" in said
    assert "the draft is a second opinion" in said
    assert re.search(r"decoded with it: \d+", said)


def test_an_evaluation_compares_every_system_of_its_file(tmp_path):
    said = run("evaluate.py", tmp_path / "run")
    for system in ("speculative", "easd:tau_h=0.35", "pool", "target, greedy"):
        assert len(re.findall(rf"\b{re.escape(system)}\b", said)) == 2, said


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery
def test_the_notebook_runs_and_keeps_no_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "")
    notebook = nbformat.read(EXAMPLES / "walk.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert "the law sums to 1.000000000000" in printed
    assert re.search(r"with a penalty: \d+ of [1-9]", printed)


def test_the_readme_names_every_example():
    readme = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.suffix in {".py", ".yaml", ".ipynb"}:
            assert path.name in readme, path.name
