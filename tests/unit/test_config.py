"""Runs parsed from dictionaries, files and overrides; and back."""

import contextlib
import json
import math
import re
import warnings

import pytest
import yaml

from easd.cli import main
from easd.config import RunConfig, load_config, parse_override, parse_rule, rule_to_dict
from easd.core.rules import EASD, RandomRefusal, Speculative, make_rule, rule_names
from easd.engine.settings import Settings
from easd.errors import ConfigError, EasdError, RuleError
from easd.evaluate.config import load_study
from easd.fields import bounds_of, described


@pytest.mark.parametrize("name", rule_names())
def test_every_rule_goes_through_json_and_yaml_and_back(name):
    rule = make_rule(name)
    assert parse_rule(json.loads(json.dumps(rule_to_dict(rule)))) == rule
    assert parse_rule(yaml.safe_load(yaml.safe_dump(rule_to_dict(rule)))) == rule


def test_a_run_goes_through_json_and_back():
    config = RunConfig.from_dict(
        {
            "target": "a",
            "draft": "b",
            "dtype": "float64",
            "chat": False,
            "rule": {"name": "easd", "tau_h": math.inf, "conditions": ["draft_entropy"]},
            "stop": ["x", "y"],
            "temperature": 0.5,
            "max_new_tokens": None,
        }
    )
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert RunConfig.from_dict(json.loads(text)) == config


def test_strings_become_the_types_of_the_fields():
    rule = parse_rule({"name": "easd", "tau_h": "1.2", "top_n": "3", "draft_at_bonus": "true"})
    assert rule == EASD(tau_h=1.2, top_n=3, draft_at_bonus=True)
    assert parse_rule({"name": "random-refusal", "rate": "1e-3"}) == RandomRefusal(rate=0.001)
    assert RunConfig.from_dict({"gamma": "7", "stop": ["a"]}).settings.gamma == 7


@pytest.mark.parametrize("text", ["2bits", "2 bits", "2.0bit"])
def test_bits_become_nats_and_it_is_said(text):
    with pytest.warns(UserWarning, match="tau_h = 2 bits is 1.38629 nats"):
        rule = parse_rule({"name": "easd", "tau_h": text})
    assert rule.tau_h == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("eazd", ["'eazd'", "easd", "speculative"]),
        ({"name": ["easd"]}, ["is not known"]),
        ({"name": "speculative", "tau_h": 1}, ["speculative", "tau_h", "no fields"]),
        ({"name": "easd", "rate": 1}, ["rate", "tau_h"]),
        ({"name": "easd", "tau_h": "high"}, ["tau_h = 'high'", "number"]),
        ({"name": "easd", "tau_h": "-bits"}, ["tau_h = '-bits'", "number"]),
        ({"name": "easd", "tau_h": -1}, ["tau_h = -1", "0 or more"]),
        ({"name": "easd", "tau_h": "nan"}, ["tau_h = nan"]),
        ({"name": "easd", "tau_o": 1.5}, ["tau_o = 1.5", "[0, 1]"]),
        ({"name": "easd", "top_n": 2.5}, ["top_n = 2.5", "integer"]),
        ({"name": "easd", "redraw": "never"}, ["redraw = 'never'", "'exclude' or 'target'"]),
        ({"name": "easd", "conditions": ["mood"]}, ["conditions", "'draft_entropy'"]),
        ({"name": "random-refusal", "rate": 2}, ["rate = 2", "[0, 1]"]),
    ],
)
def test_a_rule_that_will_not_do_is_refused_by_name_value_and_way_out(spec, words):
    with pytest.raises(RuleError) as caught:
        parse_rule(spec)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gama": 3}, ["'gama'", "gamma"]),
        ({"gamma": 0}, ["gamma = 0", "1 to 256"]),
        ({"gamma": "many"}, ["gamma = 'many'", "integer"]),
        ({"temperature": "nan"}, ["temperature = nan"]),
        ({"pair": "lab", "target": "x"}, ["'lab'", "target"]),
        ({"draft": "x"}, ["'x'", "target"]),
        ({"dtype": "int8"}, ["'int8'", "float32"]),
        ({"chat": "perhaps"}, ["chat = 'perhaps'"]),
        ({"drafter": "oracle"}, ["drafter = 'oracle'", "'prompt-lookup'"]),
    ],
)
def test_a_setting_that_will_not_do_is_refused_by_name_value_and_way_out(values, words):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


NUMBERS = {name: field for name, field in described(Settings).items() if bounds_of(field)}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_whoever_gives_it(name, tmp_path, capsys):
    field = NUMBERS[name]
    bounds = bounds_of(field)
    assert -math.inf < bounds.least < bounds.most < math.inf
    step = 1 if field.kind is int else 0.5
    file = tmp_path / "run.yaml"
    for value in (bounds.least - step, bounds.most + step, 10**400 if step == 1 else math.nan):
        with pytest.raises(ConfigError, match=rf"^{name} = .*; use ") as refused:
            Settings(**{name: value})
        assert len(str(refused.value)) < 200
        with pytest.raises(ConfigError, match=f"^{name} = "):
            RunConfig.from_dict({name: value})
    file.write_text(f"{name}: {value}\n".replace("nan", ".nan"))
    option = {"batch_size": "batch"}.get(name, name.replace("_", "-"))
    for given in ([f"--{option}={value}"], ["--config", str(file)]):
        with pytest.raises(SystemExit) as ended:
            main(["generate", "--pair", "lab-a", *given, "1"])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert re.match(f"error: (--)?{name} = ", said), said
        assert len(said.splitlines()) == 1
    most = RunConfig.from_dict({"rule": "speculative", name: bounds.most}).settings
    assert getattr(most, name) == bounds.most


@pytest.mark.parametrize("name", ["temperature", "draft_temperature"])
def test_a_temperature_is_zero_or_warm_enough_to_divide_by(name):
    with pytest.raises(ConfigError, match=f"{name} = 1e-300 is too cold .* use 0, .* 0.001 or mo"):
        Settings(rule="speculative", **{name: 1e-300})
    assert Settings(rule="speculative", **{name: 0.001})


@pytest.mark.parametrize("name", ["stop", "bad_words"])
@pytest.mark.parametrize(
    ("value", "says"),
    [("a", "is one text; give a list"), ((5,), "is not a text"), (5, "is one value; give a list")],
)
def test_texts_are_texts(name, value, says):
    with pytest.raises(ConfigError, match=f"{name} = '?[a5]'? {says}"):
        Settings(**{name: value})


def test_the_default_pair_stands_in_for_no_models():
    assert RunConfig().pair == "smollm2"
    assert RunConfig(target="x").pair is None


def test_overrides_go_before_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("pair: lab\ngamma: 3\nrule:\n  name: easd\n  tau_h: 0.7\n  top_n: 3\n")
    config = load_config(path, {"gamma": 5, "rule.tau_h": "1.1"})
    assert (config.pair, config.settings.gamma) == ("lab", 5)
    assert config.settings.rule == EASD(tau_h=1.1, top_n=3)
    assert load_config(path, {"rule": "easd"}).settings.rule == EASD(tau_h=0.7, top_n=3)
    assert load_config(path, {"rule": "speculative"}).settings.rule == Speculative()


def test_a_rule_may_be_a_bare_name_in_a_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("rule: easd\n")
    assert load_config(path, {"rule.tau_h": 2}).settings.rule == EASD(tau_h=2)
    path.write_text("")
    assert load_config(path) == RunConfig()


@pytest.mark.parametrize("text", ["gamma: [", "- 1", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")


def test_set_options_are_read_as_yaml():
    assert parse_override("tau_h=1.2") == ("tau_h", 1.2)
    assert parse_override("conditions=[overlap]") == ("conditions", ["overlap"])
    assert parse_override("tau_h=2bits") == ("tau_h", "2bits")
    for text in ("tau_h", "=1"):
        with pytest.raises(ConfigError, match="field=value"):
            parse_override(text)


def test_no_mapping_makes_anything_but_a_run_or_one_of_our_errors():
    odd = [None, "", [], {}, 1e400, -1, "x", [None], {"name": None}, True, b"x", object()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in RunConfig().to_dict():
            for value in odd:
                with contextlib.suppress(EasdError):
                    RunConfig.from_dict({name: value})
                with contextlib.suppress(EasdError):
                    RunConfig.from_dict({"rule": {"name": "easd", name: value}})
                with contextlib.suppress(EasdError):
                    RunConfig.from_dict({value: 1} if value.__hash__ else {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("gamma: 2001-99-99", "is not YAML"),
        ("gamma: !!int x", "is not YAML"),
        ("gamma: " + "9" * 5000, "is not YAML"),
        ("gamma: !!timestamp x", "is not YAML"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_clear_error(tmp_path, text, says):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("read", [load_config, lambda *given: load_study(*given).base])
def test_models_among_the_options_replace_those_of_a_file(tmp_path, read):
    path = tmp_path / "run.yaml"
    grid = "" if read is load_config else "tasks: [lab-a]\n"
    path.write_text(f"target: a/b\ndraft: c/d\ndtype: bfloat16\n{grid}")
    found = read(path, {"pair": "lab-a"})
    assert (found.pair, found.target, found.draft, found.dtype) == ("lab-a", None, None, "bfloat16")
    found = read(path, {"draft": "e/f"})
    assert (found.target, found.draft) == ("a/b", "e/f")
    path.write_text(f"pair: lab-a\n{grid}")
    found = read(path, {"target": "a/b", "draft": "c/d"})
    assert (found.pair, found.target, found.draft) == (None, "a/b", "c/d")
    with pytest.raises(ConfigError, match="names both models already"):
        read(path, {"target": "a/b", "pair": "lab-a"})
