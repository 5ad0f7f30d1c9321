"""Config files that commands take by name."""

from pathlib import Path

import pytest

from easd.errors import ConfigError
from easd.evaluate.config import load_study
from easd.presets import PRESETS, config_path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_study(name):
    study = load_study(name)
    assert study.base.target.startswith("Qwen/")
    assert study.tasks


def test_a_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = PRESETS[0]
    assert config_path(name).parent != Path()
    Path(name).write_text("tasks: [lab-a]\n")
    assert config_path(name) == Path(name)
    assert [task.name for task in load_study(name).tasks] == ["lab-a"]


def test_other_names_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read the config 'paper-ablation\.yaml'"):
        load_study("paper-ablation.yaml")
