"""Presets of the paper's experiments, as data."""

import pytest

from easd.errors import ConfigError
from easd.evaluate.config import REWARD_GUIDED, StudyConfig
from easd.evaluate.presets import sweep
from easd.presets import PRESETS, known_shapes, preset
from easd.speed.plan import Shape
from easd.tasks import TASKS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_study_of_known_models(name):
    found = preset(name)
    for pair in found.pairs:
        systems = found.grid.get("systems") or sweep(**found.sweep, gate={})
        study = StudyConfig.from_dict({**found.grid, **pair, "systems": systems})
        assert {study.base.target, study.base.draft} <= known_shapes().keys()
        assert all(TASKS[task.name].count or task.limit for task in study.tasks)
        names = {system.name for system in study.systems} | {REWARD_GUIDED}
        assert {each.system for each in found.reported} <= names
        if len(study.tasks) > 1:
            assert {each.task for each in found.reported} <= {
                "all tasks",
                *(task.name for task in study.tasks),
            }


def test_what_was_reported_is_complete():
    accuracies = [
        (each.task, each.system, each.accuracy)
        for name in ("table1", "table2")
        for each in preset(name).reported
    ]
    assert accuracies == [
        ("math500", "target", 0.796),
        ("math500", "speculative", 0.802),
        ("math500", "easd", 0.808),
        ("olympiadbench", "easd", 0.4815),
        ("aime24", "easd", 0.2333),
        ("gpqa-diamond", "easd", 0.5555),
        ("all tasks", "easd", 0.5289),
        ("all tasks", "easd-without-draft-entropy", 0.5085),
    ]
    for task, each in (("olympiadbench", "325 of 675"), ("aime24", "7 of 30")):
        right, _, count = each.split()
        (found,) = (r for r in preset("table1").reported if r.task == task)
        assert found.of == each
        assert int(right) / int(count) == pytest.approx(found.accuracy, abs=5e-5)


def test_sizes_of_the_named_models():
    billions = {name: Shape.named(name).parameters / 1e9 for name in known_shapes()}
    for name, wanted in {"7B": 7.62, "32B": 32.8, "72B": 72.7, "8B": 8.03}.items():
        (size,) = (value for full, value in billions.items() if f"-{name}-" in full)
        assert size == pytest.approx(wanted, rel=0.002)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ConfigError, match=r"'table9' is not known; choose one of .*table1, table2"):
        preset("table9")
