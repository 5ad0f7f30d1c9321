"""The terminal's view of a trace: outcomes by mark as well as colour, and no token steers it."""

import io

import pyarrow as pa
import pytest
from rich.console import Console

from easd.errors import TraceError, visible
from easd.inspect.terminal import render
from easd.runs import TABLES, Run

RULE = {"name": "easd", "tau_h": 1.0, "tau_o": 0.8, "top_n": 5}
CONFIG = {
    "rule": RULE,
    "gamma": 4,
    "drafter": "model",
    "temperature": 1.0,
    "seed": 0,
    "coupling": None,
}
VOCABULARY = {1: " one", 2: " [b]two[/]", 3: "\x1b[2J", 4: " four", 5: "\u202eevil", 6: "\n"}


def row(position, outcome, token, *, gate=0.0, entropy=0.5):
    return {
        "run": "r",
        "sample": 0,
        "request": 0,
        "step": 0,
        "position": position,
        "draft_token": token,
        "draft_prob": 0.25,
        "target_prob": 0.125,
        "accept_prob": 0.5,
        "uniform": 0.1,
        "draft_entropy": entropy,
        "target_entropy": entropy,
        "overlap": 0.8,
        "gate": gate,
        "outcome": outcome,
        "token": token,
        "text": VOCABULARY[token],
        "draft_top_tokens": [1, 2],
        "draft_top_probs": [0.5, 0.25],
        "target_top_tokens": [2, 3],
        "target_top_probs": [0.5, 0.125],
    }


def trace(rows, status="finished"):
    sample = {"run": "r", "sample": 0, "request": 0, "prompt": "ask \x07", "text": "t"}
    step = {"run": "r", "step": 0, "batch": 1, "draft_ms": 1.0, "target_ms": 2.0}
    step |= {"prefill_ms": 0.0}
    step |= {"verify_ms": 1.0, "commit_ms": 0.0}
    words = [{"token": token, "text": text} for token, text in VOCABULARY.items()]
    tables = {"tokens": rows, "steps": [step], "samples": [sample], "vocabulary": words}
    return Run(
        folder=None,
        run={"status": status, "config": CONFIG, "models": {"pair": "toy"}},
        **{n: pa.Table.from_pylist(t, schema=TABLES["trace"][n]) for n, t in tables.items()},
    )


def shown(rows, *, width=130, color=False, sample=0, status="finished"):
    system = "truecolor" if color else None
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system=system)
    render(trace(rows, status), sample, console)
    return console.file.getvalue()


ROWS = [
    row(10, "accepted", 1),
    row(11, "penalised", 4, gate=1.0, entropy=1.5),
    row(12, "discarded", 5),
    row(11, "replacement", 2, gate=1.0, entropy=1.5),
    row(12, "rejected", 1),
    row(12, "replacement", 3),
    row(13, "accepted", 5),
    row(14, "accepted", 6),
    row(15, "bonus", 4, entropy=None),
]


def test_outcomes_show_without_colour():
    text = shown(ROWS)
    assert " one [four→[b]two[/]]~<U+001B>[2J<U+202E>evil\n +four\n" in text


@pytest.mark.parametrize("color", [False, True])
def test_no_token_or_prompt_reaches_the_terminal_raw(color):
    text = shown(ROWS, color=color)
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "\x07" not in text
    assert "[b]two[/]" in text


def test_every_penalty_has_its_line():
    line = next(line for line in shown(ROWS).splitlines() if line.strip().startswith("11 "))
    for part in ("one", "four", "[b]two[/]", "1.50", "0.8", "0.125", "0.250"):
        assert part in line
    assert "the target's top tokens" in shown(ROWS)
    assert "the target's top tokens" not in shown(ROWS, width=80)
    assert "no token was penalised" in shown(ROWS[:1])


def test_entropies_line_up_with_the_gate():
    lines = shown(ROWS).splitlines()
    draft, target, gate = (
        next(line for line in lines if line.startswith(name))
        for name in ("H draft", "H target", "gate ")
    )
    assert draft.index("█") == target.index("█") == gate.index("x") == 10
    assert "tau_h = 1 is" in "\n".join(lines)


def test_the_summary_is_of_the_whole_run():
    text = shown(ROWS, status="interrupted")
    assert "toy: 1 finished text (interrupted)" in text
    assert "6: 5 examined, 3 accepted" in text
    assert "tau_h 1 nats" in text


def test_a_text_that_is_not_there_is_refused():
    with pytest.raises(TraceError, match="no text 3; it has 0 to 0"):
        shown(ROWS, sample=3)
    with pytest.raises(TraceError, match="none yet"):
        shown([], sample=0)


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x9b", "\r", "\u200f", "\u2066", "\ufeff"])
def test_characters_that_steer_a_terminal_are_spelt_out(character):
    assert visible(f"a{character}b") == f"a<U+{ord(character):04X}>b"


def test_ordinary_text_stays():
    text = "naïve 日本 🙂\n\tand [markup]"
    assert visible(text) == text
