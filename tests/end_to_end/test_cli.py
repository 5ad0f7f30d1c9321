"""The command line from arguments to exit code, on the lab pair."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from easd.pairs.lab import folder, grade, problems
from easd.runs import open_run, summary

PROMPT = "28 - 28 + 6 * 25 * 2 ?"
LAB = ["generate", "--pair", "lab"]
LOOSE = ["--tau-h", "0.3", "--tau-o", "0.4"]
TARGET, DRAFT = (str(folder("lab", role)) for role in ("target", "draft"))


@pytest.fixture
def model(tmp_path):
    """A copy of the lab target in which files may be broken."""
    copy = tmp_path / "model"
    shutil.copytree(TARGET, copy)
    return copy


def test_one_text_streams_and_is_summed_up(easd):
    problem = next(p for p in problems("lab-a", 20, 0) if p.prompt == PROMPT)
    out, err = easd(*LAB, PROMPT, "--temperature", 0)
    assert grade(problem, out.strip())
    for word in ("easd: ", "tau_h 1.5 nats", "target forward", "examined", "gate", "tok/s"):
        assert word in " ".join(err.split())
    assert "note: at temperature 0 the gate uses raw entropies" in err
    assert "note: the gate never opened (tau_h 1.5 nats)" in err


def test_quiet_says_nothing_but_the_text(easd):
    out, err = easd(*LAB, PROMPT, "--quiet")
    assert out.strip()
    assert err == ""


def test_the_streamed_text_is_the_whole_text(easd):
    streamed, _ = easd(*LAB, PROMPT, "--seed", 3)
    whole, _ = easd(*LAB, PROMPT, "--seed", 3, "--json")
    assert streamed == json.loads(whole)["text"] + "\n"


def test_json_is_one_object_a_text_and_nothing_else(easd, tmp_path):
    prompts = [problem.prompt for problem in problems("lab-a", 3, 0)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"problem": prompt}) + "\n" for prompt in prompts))
    out, err = easd(*LAB, "--file", file, "--n", 2, "--batch", 4, "--json", *LOOSE)
    found = [json.loads(line) for line in out.splitlines()]
    assert [(f["prompt_index"], f["text_index"]) for f in found] == [
        (i, j) for i in range(3) for j in range(2)
    ]
    assert [f["prompt"] for f in found] == [prompt for prompt in prompts for _ in range(2)]
    for values in found:
        assert values["new_tokens"] == len(values["token_ids"])
        assert values["finish_reason"] == "eos"
        assert values["accepted"] <= values["examined"] <= values["proposed"]
    assert "penalised" in err


def test_texts_do_not_depend_on_the_batch(easd, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(problem.prompt for problem in problems("lab-a", 6, 0)) + "\n\n")
    alone, _ = easd(*LAB, "--file", file, "--batch", 1, *LOOSE)
    together, _ = easd(*LAB, "--file", file, "--batch", 6, *LOOSE)
    assert alone == together
    assert alone.count("--- prompt") == 6


def test_a_prompt_is_read_from_standard_input(easd, monkeypatch):
    for arguments in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n"))
        out, _ = easd(*LAB, *arguments, "--json")
        assert json.loads(out)["prompt"] == PROMPT


def test_two_folders_do_as_well_as_a_pair(easd):
    pair, _ = easd(*LAB, PROMPT, *LOOSE, "--quiet")
    folders, _ = easd("generate", "--target", TARGET, "--draft", DRAFT, PROMPT, *LOOSE, "--quiet")
    assert folders == pair


def test_a_config_file_and_options_before_it(easd, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("pair: lab\nseed: 5\nrule:\n  name: easd\n  tau_h: 0.3\n  tau_o: 0.4\n")
    _, err = easd("generate", "--config", file, PROMPT, "--set", "tau_o=0.6", "--gamma", 2)
    words = " ".join(err.replace("│", " ").split())
    assert "tau_h 0.3 nats, tau_o 0.6" in words
    assert "gamma 2," in words
    assert "seed 5" in words


@pytest.mark.parametrize("rule", ["speculative", "target", "draft", "overlap-only"])
def test_other_rules(easd, rule):
    out, err = easd(*LAB, PROMPT, "--rule", rule)
    assert out.strip()
    assert rule in err


def test_prompt_lookup_says_that_the_gate_cannot_open(easd):
    _, err = easd(*LAB, PROMPT, "--drafter", "prompt-lookup")
    assert err.count("note: prompt lookup is certain of its proposals") == 1


def test_bits_are_converted_and_it_is_said(easd):
    _, err = easd(*LAB, PROMPT, "--tau-h", "1bits")
    assert "note: tau_h = 1 bits is 0.693147 nats" in err


def test_a_stop_string_ends_the_text(easd):
    out, _ = easd(*LAB, PROMPT, "--stop", "6", "--json")
    assert json.loads(out)["finish_reason"] == "stop"


def test_a_trace_is_written_and_inspected(easd, tmp_path):
    _, err = easd(*LAB, PROMPT, "--trace", tmp_path / "run", "--tau-h", 0.05, "--tau-o", 0.2)
    trace = open_run(tmp_path / "run")
    assert trace.run["status"] == "finished"
    found = summary(trace)
    assert f"{found['penalised']} penalised" in err
    out, _ = easd("inspect", tmp_path / "run")
    assert PROMPT in out
    assert "1 finished text" in out
    assert "penalties" in out


def test_pairs_lists_what_is_embedded(easd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out, _ = easd("pairs")
    for word in ("smollm2", "lab-a", "lab-c", "lab-m", "Apache-2.0", "ready"):
        assert word in out


def test_no_command_shows_the_help(easd):
    out, _ = easd()
    assert "generate" in out
    assert "inspect" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tau-h", "-1"], "tau_h = -1.0 .* 0 or more"),
        (["--tau-o", "1.5"], r"tau_o = 1.5 .* \[0, 1\]"),
        (["--tau-o", "-0.1"], r"tau_o = -0.1 .* \[0, 1\]"),
        (["--tau-o", "much"], "--tau-o"),
        (["--tau-h", "much"], "tau_h = 'much'"),
        (["--gamma", "0"], "gamma = 0 .* 1 to 256"),
        (["--gamma", "x"], "--gamma"),
        (["--rule", "eazd"], "'eazd' .* speculative"),
        (["--rule", "speculative", "--tau-h", "1"], "no field 'tau_h'"),
        (["--set", "mood=1"], "no field 'mood'.* tau_h"),
        (["--set", "mood"], "field=value"),
        (["--mood"], "--mood"),
        (["--redraw", "never"], "redraw = 'never' .* 'exclude'"),
        (["--max-new-tokens", "60"], "context window of 64"),
        (["--max-new-tokens", "0"], "max_new_tokens = 0"),
        (["--target", "x"], "'lab' names both"),
        (["--dtype", "int8"], "'int8' .* float32"),
        (["--device", "nowhere"], "device = 'nowhere'"),
        (["--chat"], "no chat template"),
        (["--system", "be kind"], "chat template"),
        (["--temperature", "nan"], "temperature = nan"),
        (["--file", "prompts.txt"], "not both"),
        (["--config", "none.yaml"], "cannot read the config"),
        (["--stop", ""], "stop string is empty"),
    ],
    ids=" ".join,
)
def test_bad_options_cost_one_line(refused, arguments, words):
    line = refused(*LAB, PROMPT, *arguments)
    assert re.search(words, line), line


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(refused, prompt):
    assert "prompt is empty" in refused(*LAB, prompt)


def test_a_prompt_longer_than_the_context_window_is_refused(refused):
    line = refused(*LAB, " ".join(["1 +"] * 50))
    assert "100 tokens" in line
    assert "context window of 64" in line


def test_prompt_files_that_will_not_do_are_refused(refused, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "1 ?"}\n{"question": "2 ?"}\n')
    assert "bad.jsonl:2 " in refused(*LAB, "--file", bad)
    bad.write_text("\n")
    assert "holds no prompt" in refused(*LAB, "--file", bad)
    assert "cannot read prompts" in refused(*LAB, "--file", tmp_path / "none.txt")


def test_an_unknown_pair_is_refused(refused):
    assert "lab-a" in refused("generate", "--pair", "lap", PROMPT)


def test_a_draft_or_target_without_the_other_is_refused(refused):
    assert "no draft" in refused("generate", "--target", TARGET, PROMPT)
    assert "no target" in refused("generate", "--draft", DRAFT, PROMPT)


def test_missing_or_corrupt_model_files_are_refused(refused, model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    use = ["generate", "--target", model, "--draft", DRAFT, PROMPT]
    weights.write_bytes(whole[: len(whole) // 2])
    assert str(model) in refused(*use)
    weights.unlink()
    assert str(model) in refused(*use)
    (model / "config.json").write_text("{")
    assert str(model) in refused(*use)
    assert "not a folder" in refused("generate", "--target", model / "none", PROMPT)


def test_mismatched_tokenizers_are_refused(refused, model):
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    path.write_text(json.dumps(tokenizer))
    line = refused("generate", "--target", TARGET, "--draft", model, PROMPT)
    assert "tokenizer" in line
    assert "2 entries" in line


def test_a_damaged_draft_tokenizer_is_refused_not_skipped(refused, model):
    (model / "tokenizer.json").write_text("{")
    line = refused("generate", "--target", TARGET, "--draft", model, PROMPT)
    assert "cannot load the tokenizer" in line


def test_a_draft_of_weights_alone_is_compared_by_its_vocabulary(easd, model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    out, _ = easd("generate", "--target", TARGET, "--draft", model, "--seed", 3, PROMPT)
    assert out.strip()


def test_weights_that_are_not_numbers_are_refused(refused, model, tmp_path):
    path = model / "model.safetensors"
    weights = load_file(path)
    save_file(
        {name: torch.full_like(w, float("nan")) for name, w in weights.items()},
        path,
        metadata={"format": "pt"},
    )
    trace = tmp_path / "run"
    line = refused("generate", "--target", model, "--draft", DRAFT, PROMPT, "--trace", trace)
    assert "NaN" in line


def test_a_trace_folder_that_will_not_do_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write a trace" in refused(*LAB, PROMPT, "--trace", tmp_path / "file" / "run")
    assert "not empty" in refused(*LAB, PROMPT, "--trace", tmp_path)


def test_a_refused_run_leaves_its_trace_folder_free(easd, refused, tmp_path):
    refused(*LAB, PROMPT, "--trace", tmp_path / "run", "--max-new-tokens", 1000)
    easd(*LAB, PROMPT, "--trace", tmp_path / "run")


def test_a_folder_without_a_trace_is_refused(refused, tmp_path):
    assert "holds no run" in refused("inspect", tmp_path)


def test_help_is_fast_because_it_imports_no_torch():
    code = "import sys, easd.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def long_run(tmp_path):
    """A process that decodes thousands of texts into a trace, some of them already written."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(problem.prompt for problem in problems("lab-a", 5000, 0)))
    code = "from easd.cli import main; main()"
    options = ["--file", file, "--batch", "4", "--trace", tmp_path / "run", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *LAB, *LOOSE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [process.stdout.readline() for _ in range(20)]
    assert all(lines), process.stderr.read()
    yield process, tmp_path / "run"
    process.kill()
    process.communicate()


def test_ctrl_c_leaves_a_valid_trace(long_run):
    process, run = long_run
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted after" in err
    trace = open_run(run)
    assert trace.run["status"] == "interrupted"
    printed = 20 + len(out.splitlines())
    assert 20 <= printed <= trace.samples.num_rows < 5000
    assert summary(trace)["tokens"] == sum(trace.steps["emitted"].to_pylist()) > 0


def test_a_kill_leaves_what_was_flushed(long_run):
    process, run = long_run
    deadline = time.monotonic() + 60
    while not (run / "steps" / "part-00000.parquet").exists() and time.monotonic() < deadline:
        process.stdout.readline()
    process.kill()
    process.communicate()
    trace = open_run(run)
    assert trace.run["status"] == "running"
    assert trace.samples.num_rows > 0
    assert summary(trace)["tokens"] > 0


def test_without_a_prompt_the_pair_has_an_example(easd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    out, err = easd(*LAB)
    assert "example" in err
    assert out.strip()


def test_an_empty_standard_input_that_was_asked_for_is_refused(refused, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "empty" in refused(*LAB, "-")


def test_a_text_that_fails_is_named_and_the_others_are_printed(easd, model, tmp_path):
    """The fault of one prompt, whose token has no finite embedding, costs that text alone."""
    path = model / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("wte.weight"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [problem.prompt for problem in problems("lab-a", 3, 0)]
    own = set(tokenizer(prompts[1])["input_ids"])
    bad = max(own - {i for text in (prompts[0], prompts[2]) for i in tokenizer(text)["input_ids"]})
    spoiled = weights[name].clone()
    spoiled[bad] = float("nan")
    save_file(weights | {name: spoiled}, path, metadata={"format": "pt"})
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts))
    out, error = easd("generate", "--target", model, "--draft", DRAFT, "--file", file, code=2)
    assert [line for line in out.splitlines() if line.startswith("--- prompt 0 ---")]
    assert "--- prompt 1 failed: " in out
    assert "--- prompt 2 ---" in out
    assert "1 of 3 texts failed" in error
