"""Options and the help pages in docs/ are made of the fields of dataclasses."""

import importlib.util
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from easd.cli.root import COMMANDS, command_line
from easd.config import DEFAULT_PAIR, DTYPES, MODEL_FIELDS, RunConfig
from easd.core.rules import RULES, rule_names
from easd.engine.settings import Settings
from easd.fields import default_text, described

DOCS = Path(__file__).parents[2] / "docs"
OPTION_OF = {"bad_words": "bad-word", "batch_size": "batch"}
FIELDS = [
    *((Settings, name) for name in described(Settings) if name != "rule"),
    *((RunConfig, name) for name in MODEL_FIELDS),
    *((kind, name) for kind in RULES.values() for name in described(kind)),
]


@cache
def options(command):
    """The options of a command by name."""
    app = command_line([command])[command]
    return {
        name: argument for argument in app.assemble_argument_collection() for name in argument.names
    }


def test_the_help_pages_in_docs_are_the_command_lines_own():
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert make_cli.PAGE.read_text() == make_cli.page(), "stale; run python docs/make_cli.py"


@pytest.mark.parametrize(
    ("owner", "name"), FIELDS, ids=[f"{owner.__name__}.{name}" for owner, name in FIELDS]
)
def test_every_field_is_an_option_with_its_help_and_default(owner, name):
    field = described(owner)[name]
    option = options("generate")["--" + OPTION_OF.get(name, name.replace("_", "-"))].parameter
    if owner in RULES.values() and name in described(Settings):
        return  # The setting has the option.
    own = name in described(type(Settings().rule))
    if owner not in RULES.values() or not own:
        assert field.help.rstrip(".")[1:] in option.help
    default = default_text(field)
    if owner in (Settings, RunConfig) and default is not None:
        assert option.show_default == default
    elif default is not None and not own:
        assert default in option.show_default


@pytest.mark.parametrize("owner", [Settings, RunConfig])
def test_every_setting_is_documented(owner):
    assert [name for name, field in described(owner).items() if not field.help] == []


def test_help_names_every_rule_and_choice():
    of_generate = options("generate")
    assert all(name in of_generate["--rule"].parameter.help for name in rule_names())
    assert all(name in of_generate["--dtype"].parameter.help for name in DTYPES)
    assert DEFAULT_PAIR in of_generate["--pair"].parameter.help
    for name, field in described(type(Settings().rule)).items():
        if field.choices:
            option = of_generate["--" + name.replace("_", "-")]
            assert option.parameter.metavar == "|".join(field.choices)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_its_options(name):
    module, summary = COMMANDS[name]
    command = importlib.import_module(f"easd.cli.{module}").command
    # The summary is what the first words of the command's own help say, or shorter.
    assert summary.rstrip(".").split()[0] == inspect.getdoc(command).split()[0]


def test_every_option_in_the_help_pages_is_explained():
    entries = [line for line in (DOCS / "cli.md").read_text().splitlines() if "* `" in line[:3]]
    assert len(entries) > 200
    assert [line for line in entries if not re.match(r"\* `[^`]+`: [^*]", line)] == []
