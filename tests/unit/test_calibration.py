"""Thresholds from recorded signals, and the files that carry them."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from easd.diagnose.calibration import (
    Signals,
    firing,
    firing_grid,
    paper_threshold,
    rate_threshold,
    signals,
    warnings_of,
)
from easd.diagnose.calibration_file import (
    CalibrationFile,
    data_of,
    read_calibration,
    sampling,
)
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError
from easd.evaluate.config import parse_system
from easd.tasks import load_task

RNG = np.random.default_rng(0)


def drawn(texts=200, positions=40) -> Signals:
    size = texts * positions
    return Signals(
        text=np.repeat(np.arange(texts), positions),
        draft_entropy=RNG.exponential(1.2, size),
        target_entropy=RNG.exponential(1.0, size),
        shared=RNG.integers(0, 6, size).astype(float),
        top_n=5,
    )


@pytest.fixture(scope="module")
def found():
    return drawn()


def test_the_papers_threshold_is_the_mean_of_the_top_five_percent(found):
    for source, values in (
        ("draft", found.draft_entropy),
        ("target", found.target_entropy),
        ("pooled", np.concatenate([found.draft_entropy, found.target_entropy])),
    ):
        top = np.sort(values)[::-1][: round(0.05 * len(values))]
        estimate = paper_threshold(found, source)
        assert estimate.value == pytest.approx(top.mean())
        assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.08])
def test_a_threshold_for_a_rate_fires_at_that_rate(found, rate):
    chosen = rate_threshold(found, rate, 0.8)
    assert chosen.low < chosen.value < chosen.high
    rates = firing(found, chosen.value, 0.8)
    assert rates["gate"].value == pytest.approx(rate, abs=1.01 / len(found.text))
    inside = (found.shared >= 4).mean()
    assert rates["overlap"].value == pytest.approx(inside)


def test_a_rate_that_overlap_forbids_is_refused(found):
    with pytest.raises(InputError, match=r"rate = 0.9 cannot be reached: the gate is open at 33"):
        rate_threshold(found, 0.9, 0.8)


def test_replayed_rates_fall_with_both_thresholds(found):
    grid = firing_grid(found, (0.5, 1.0, 2.0), (0.6, 0.8, 1.0)).pivot(
        index="tau_h", columns="tau_o", values="rate"
    )
    assert (np.diff(grid.to_numpy(), axis=0) < 0).all()
    assert (np.diff(grid.to_numpy(), axis=1) < 0).all()
    both = (found.draft_entropy > 1) & (found.target_entropy > 1) & (found.shared >= 4)
    assert grid.loc[1.0, 0.8] == pytest.approx(both.mean())


def test_a_no_op_is_told_with_the_condition_that_makes_it_one(found):
    assert warnings_of(firing(found, 0.5, 0.8)) == []
    rare = replace(found, target_entropy=np.minimum(found.target_entropy, 0.4))
    (line,) = warnings_of(firing(rare, 0.5, 0.8))
    assert "rarest condition is target_entropy" in line


def test_signals_are_those_of_emitted_tokens_that_both_models_saw():
    rows = {
        "outcome": ["accepted", "rejected", "replacement", "discarded", "bonus", "bonus"],
        "draft_entropy": [1.0, 2.0, 2.0, 9.0, None, 0.5],
        "target_entropy": [0.1, 0.2, 0.2, 9.0, 0.3, 0.4],
        "overlap": [0.8, 0.6, 0.6, 1.0, None, 0.4],
        "request": [4, 4, 4, 4, 4, 7],
        "task": ["a"] * 6,
        "seed": [0] * 6,
    }
    table = pa.table(rows)
    found = signals(table)
    assert found.draft_entropy.tolist() == [1.0, 2.0, 0.5]
    assert found.shared.tolist() == [4, 3, 2]
    assert found.text.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="no position has both entropies"):
        signals(table.slice(3, 2))


@pytest.fixture
def artefact():
    return CalibrationFile(
        kind="calibration",
        fields={"tau_h": 1.25, "tau_o": 0.8, "a": 1.5, "b": -0.5},
        pair="lab-a",
        fingerprints={"target": "t", "draft": "d", "tokenizer": "k"},
        sampling=sampling(Settings()),
        data=[{"task": "lab-a", "hash": "h"}],
        estimates={},
    )


def test_an_artefact_reads_back_and_fills_only_what_a_rule_has_and_leaves_open(artefact, tmp_path):
    artefact.save(tmp_path / "c.json")
    read = read_calibration(tmp_path / "c.json")
    assert read == artefact
    assert read.fill({"name": "easd"}) == {"name": "easd", "tau_h": 1.25, "tau_o": 0.8}
    assert read.fill({"name": "pool", "tau_h": 2})["tau_h"] == 2
    assert read.fill({"name": "pool"})["b"] == -0.5
    assert read.fill({"name": "speculative"}) == {"name": "speculative"}


def test_an_artefact_is_refused_for_another_pair_or_sampling(artefact):
    same = dict(artefact.fingerprints)
    artefact.check(same, Settings())
    for name in same:
        with pytest.raises(ConfigError, match=f"the {name} here is another one"):
            artefact.check({**same, name: "other"}, Settings())
    for change in ({"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
        (field,) = change
        with pytest.raises(ConfigError, match=f"made at {field} = "):
            artefact.check(same, Settings(**change))
    artefact.check(same, Settings(gamma=7, seed=3, coupling="shared"))


def test_a_file_that_is_no_artefact_is_one_clear_error(artefact, tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(ConfigError, match="cannot read"):
        read_calibration(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        read_calibration(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is not a calibration"):
        read_calibration(path)
    artefact.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7}))
    with pytest.raises(ConfigError, match="format 7"):
        read_calibration(path)


def test_items_that_it_was_fitted_on_are_known_again(artefact, tmp_path):
    """Under another id, with other blanks: the problem is what counts."""
    seen = load_task("lab-a", limit=30)
    own = replace(artefact, data=[data_of(seen)])
    own.save(tmp_path / "c.json")
    read = read_calibration(tmp_path / "c.json")
    renamed = replace(seen.items[3], id="mine", prompt=f" {seen.items[3].prompt}\n")
    other = load_task("lab-a", first=30, limit=5)
    mixed = replace(other, name="mixed", items=(*other.items, renamed))
    found = read.fitted_on([seen, other, mixed])
    assert found["overlap"] == {"lab-a": 0, "mixed": 1}
    assert read.fitted_on([seen])["overlap"] == {"lab-a": 30}
    assert "fingerprints" not in found["data"][0]
    assert artefact.fitted_on([seen])["overlap"] == {"lab-a": None}


@pytest.mark.parametrize(
    "values", ["[" * 100_000, {"fields": 3}, {"sampling": {"colour": 1}}, {"data": [1]}]
)
def test_values_that_no_calibration_has_are_one_clear_error(artefact, tmp_path, values):
    path = tmp_path / "c.json"
    artefact.save(path)
    text = values if isinstance(values, str) else {**json.loads(path.read_text()), **values}
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ConfigError, match=r"nested too deeply|is not a calibration"):
        read_calibration(path)


def test_a_pool_that_nobody_fitted_says_so_in_its_name(artefact):
    unfitted = replace(artefact, fields={"tau_h": 1.0, "a": 1.0, "b": 0.0})
    shared = Settings()
    note = "pool (not fitted: greedy-p)"
    for fill in (dict, unfitted.fill):
        assert parse_system("pool", shared, fill=fill).name == note
        assert parse_system({"rule": "pool"}, shared, fill=fill).name == note
        named = parse_system({"name": "mine", "rule": {"name": "pool"}}, shared, fill=fill)
        assert named.name == "mine (not fitted: greedy-p)"
        sampled = parse_system("pool:pick=sample", shared, fill=fill)
        assert sampled.name == "pool:pick=sample (not fitted: drawn from p)"
    assert parse_system("pool", shared, fill=artefact.fill).name == "pool"
    assert parse_system("pool:a=1,b=0", shared).name == "pool:a=1,b=0"
    assert parse_system("easd", shared, fill=unfitted.fill).name == "easd"
