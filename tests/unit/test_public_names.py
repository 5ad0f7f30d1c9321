"""What `import easd` offers: one flat list that loads on first use, and a signature that tells."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

import easd
from easd.engine.generate import SettingsFields


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_is_there_before_anything_heavy_is_imported():
    out = python(
        "import easd, sys\n"
        "assert 'torch' not in sys.modules\n"
        "names = dir(easd)\n"
        "assert {'Pool', 'generate', 'load_pair', 'open_run', '__version__'} <= set(names)\n"
        "assert not hasattr(easd, 'nothing') and not hasattr(easd, '__wrapped__')\n"
        "print('torch' in sys.modules)\n"
    )
    assert out == "False\n"


def test_every_listed_name_can_be_imported():
    assert [name for name in dir(easd) if not hasattr(easd, name)] == []
    assert set(easd.__all__) <= set(dir(easd))


def test_every_rule_is_a_name_of_the_package():
    for kind in easd.RULES.values():
        assert getattr(easd, kind.__name__) is kind


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Poool'"):
        _ = easd.Poool


def test_help_on_generate_lists_every_setting_with_its_default():
    shown = inspect.signature(easd.generate).parameters
    for field in fields(easd.Settings):
        assert shown[field.name].default == getattr(easd.Settings(), field.name)
    assert "overrides" not in shown


def test_type_checkers_know_every_setting():
    assert list(SettingsFields.__annotations__) == [f.name for f in fields(easd.Settings)]
