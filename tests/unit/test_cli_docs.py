"""The help pages in docs/ and the defaults that help names are the real ones."""

import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from easd.cli import app
from easd.config import DEFAULT_PAIR, DTYPES
from easd.core.rules import EASD, RandomRefusal, rule_names
from easd.engine.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
OPTIONS = {p.name: p for p in typer.main.get_command(app).commands["generate"].params}
OPTION_OF = {"bad_words": "bad_word", "batch_size": "batch"}
WRITTEN_OUT = {"rule", "max_new_tokens", "stop", "bad_words"}


def test_the_help_pages_in_docs_are_the_command_lines_own():
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert make_cli.PAGE.read_text() == make_cli.page(), "stale; run python docs/make_cli.py"


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_an_option_that_names_its_default(field):
    option = OPTIONS[OPTION_OF.get(field.name, field.name)]
    if field.name not in WRITTEN_OUT:
        assert option.show_default == str(field.default)


@pytest.mark.parametrize(
    "name", ["tau_h", "tau_o", "top_n", "redraw", "penalise", "gate_on", "coupling", "entropy_of"]
)
def test_every_field_of_the_main_rule_is_an_option_that_names_its_default(name):
    assert OPTIONS[name].show_default == str(getattr(EASD(), name))


def test_help_names_every_rule_and_choice():
    assert all(name in OPTIONS["rule"].help for name in rule_names())
    assert all(name in OPTIONS["dtype"].help for name in DTYPES)
    assert OPTIONS["rate"].show_default == str(RandomRefusal().rate)
    assert OPTIONS["pair"].show_default == DEFAULT_PAIR
