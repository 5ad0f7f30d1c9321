"""The experiments on open questions: their arithmetic, and a run of each at the smallest scale."""

import importlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from easd import load_pair
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.runs import open_run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


def laws_of(tokens, owners, seed):
    """The probability of each token of each text; equal beginnings have equal distributions."""
    draw = np.random.default_rng(seed)
    laws = defaultdict(lambda: draw.dirichlet(np.ones(4)))
    return np.array(
        [
            [laws[owner, *text[:at]][text[at]] for at in range(len(text))]
            for owner, text in zip(owners.tolist(), tokens.tolist(), strict=True)
        ]
    )


def test_parts_add_up_to_the_change(experiment):
    tokens = np.array([[0, 1, 2], [0, 2, 2], [1, 1, 0], [0, 0, 0], [2, 0, 1], [2, 0, 3]])
    owners = np.array([0, 0, 0, 1, 1, 1])
    target, law = (laws_of(tokens, owners, seed) for seed in (1, 2))
    itself, later = experiment("refused_tokens").changes(tokens, owners, target, law)
    whole = np.bincount(owners, law.prod(1)) - np.bincount(owners, target.prod(1))
    assert (itself + later).sum(1) == pytest.approx(whole, abs=1e-12)


def test_parts_by_hand(experiment):
    # Both first tokens are right; after the second, the target errs half of the time.
    tokens, owners = np.array([[0, 2], [1, 2]]), np.array([0, 0])
    target = np.array([[0.5, 1.0], [0.4, 0.5]])
    changes = experiment("refused_tokens").changes
    prefers_second = np.array([[0.2, 1.0], [0.7, 0.5]])
    itself, later = changes(tokens, owners, target, prefers_second)
    assert itself == pytest.approx(np.zeros((1, 2)))
    assert later == pytest.approx(np.array([[-0.3 + 0.15, 0]]))
    both_less = target * [[0.5, 1], [0.5, 1]]
    itself, later = changes(tokens, owners, target, both_less)
    assert itself == pytest.approx(np.array([[-0.5 * (0.5 + 0.2), 0]]))
    assert later == pytest.approx(np.zeros((1, 2)))


def applied(prompt, solution):
    """Whether each step follows and each operation is used once, reading the words one by one."""
    start, *given = prompt.removesuffix(" ?").split()
    left = list(zip(given[::2], given[1::2], strict=True))
    words, total = solution.split(), int(start)
    while words[0] != "#":
        _, symbol, operand, _, result, *words = words
        left.remove((symbol, operand))
        total = (total + int(operand) * {"+": 1, "-": -1}[symbol]) % 100
        if int(result) != total:
            return False
    return not left and words == ["#", str(total)]


def test_all_right_texts(experiment):
    free_order = experiment("free_order")
    for index in range(50):
        given, right = free_order.problem(1, index, "test")
        assert given.solution in right
        assert len(set(right)) == len(right) <= 48
        assert all(applied(given.prompt, text) for text in right)
        assert len(given.solution.split()) + 1 == len(free_order.KINDS)


def test_multi_step(experiment, tmp_path, monkeypatch, capsys):
    study = experiment("refused_tokens")
    monkeypatch.setattr(study, "FIT_PROBLEMS", 20)
    sizes = ["--problems", "4", "--texts", "8", "--steps", "8", "--seed", "1"]
    study.main([*sizes, "--out", str(tmp_path)])
    assert '"newly wrong"' in capsys.readouterr().out
    assert (tmp_path / "seed-1" / "found.json").exists()


def test_flips(experiment, tmp_path, monkeypatch, capsys):
    study, out = experiment("flips"), tmp_path / "run"
    assert [study.kind(text) for text in ("12", " +", " know", "\n")] == list(study.KINDS)
    config = StudyConfig.from_dict(
        {
            "pair": "lab-a",
            "tasks": ["lab-a:40"],
            "systems": ["target:temperature=0", "easd:temperature=0,tau_h=0.1"],
            "baselines": False,
        }
    )
    Evaluation(config, load_pair("lab-a"), [task.load() for task in config.tasks], out).run()
    rows = study.first_differences(study.metrics.frames(open_run(out)))
    assert len(rows)
    assert rows["refused"].all()
    monkeypatch.setattr("sys.argv", ["flips.py", str(out)])
    study.main()
    assert f"{len(rows)} texts differ, {len(rows)} of them" in capsys.readouterr().out


def test_size(experiment, tmp_path, capsys):
    sizes = ["--widths", "32", "--problems", "20", "--steps", "8", "--seed", "1"]
    experiment("model_size").main([*sizes, "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        "varied",
        *("target 32", "target 64", "draft 32", "draft 64"),
    ]


def test_drift(experiment, capsys):
    experiment("calibration_drift").main(["lab", "--texts", "40"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3 * 3


def test_alignment(experiment, monkeypatch, capsys):
    study = experiment("alignment")
    monkeypatch.setattr(study, "DPO_PROBLEMS", 40)
    study.main(["--steps", "1", "--problems", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        "target",
        *("before", "supervised", "reward", "preference"),
    ]
