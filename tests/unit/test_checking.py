"""What is refused before a model's weights are read, at once and for the true reason."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import build, llama_config, llama_pair, word_tokenizer

from easd import generate, load_models
from easd.cli import main
from easd.engine.chat import encode, without_system_turn
from easd.errors import ConfigError, InputError, ModelError
from easd.evaluate.config import Reward
from easd.pairs import lab
from easd.pairs.checking import check_model, find_model
from easd.tasks import load_task

TARGET = lab.folder("lab-a", "target")


@pytest.fixture
def folder(tmp_path):
    def make(config, file="config.json"):
        (tmp_path / file).write_text(json.dumps(config))
        return str(tmp_path)

    return make


CODE = """
import functools

from transformers import LlamaForCausalLM


class Own(LlamaForCausalLM):
    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        output.logits[..., :5] = -1e4
        return output
"""


def test_code_of_a_checkpoint_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    model, tokenizer = build(llama_config()), word_tokenizer()
    place = str(tmp_path / "own")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    config = Path(place, "config.json")
    values = json.loads(config.read_text()) | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}
    config.write_text(json.dumps(values))
    Path(place, "own.py").write_text(CODE)
    with pytest.raises(ModelError, match="runs only with --trust-remote-code"):
        load_models(place)
    pair = load_models(place, trust_remote_code=True)
    asked = torch.tensor([[5, 6, 7]])
    assert type(pair.target).__name__ == "Own"
    assert pair.target(asked).logits[..., :5].max() == -1e4
    (text,) = generate(pair.target, None, [[5, 6, 7]], max_new_tokens=20, rule="target")
    assert min(text.token_ids) >= 5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder models are not supp"),
        ({"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}, "contains Python code"),
        ({"model_type": "gpt2", "n_layer": 10**9}, "n_layer = 1000000000 .* more than any model"),
        ({"model_type": "llama", "num_hidden_layers": 10**30}, "num_hidden_layers = .* than any"),
    ],
)
def test_configs_that_cannot_be_decoded_with(folder, config, reason):
    place = folder(config)
    with pytest.raises(ModelError, match=reason) as caught:
        load_models(place)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=reason):
        load_models(str(TARGET), place)


def test_an_adapter_without_peft(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("easd.pairs.checking.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="is an adapter, which needs peft; pip install peft"):
        load_models(folder({"peft_type": "LORA"}, "adapter_config.json"))


@pytest.mark.parametrize("name", ["{}/targte", "{}/target/", "./nothing", "a/b/c", "~/none\0"])
def test_a_misspelt_folder_is_told_at_once(name, tmp_path):
    (tmp_path / "target").mkdir()
    if name.endswith("/"):
        assert find_model(name.format(tmp_path)) == tmp_path / "target"
        return
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"is not a folder|cannot be a folder") as caught:
        load_models(name.format(tmp_path))
    assert time.monotonic() - begun < 1
    assert ("'target'" in str(caught.value)) == ("{}" in name)


def test_a_folder_beside_others_that_only_looks_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "target").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'models/targte' is not a folder.*holds 'target'"):
        check_model("models/targte")


def test_the_hub_is_asked_once(monkeypatch):
    """No server listens at this address."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(ModelError, match="'nobody/nothing' is no folder here, and the hub"):
        check_model("nobody/nothing")
    assert time.monotonic() - begun < 5


def test_a_tokenizer_with_tokens_added_at_the_end_is_the_same(tmp_path):
    for name, size in (("target", 26), ("draft", 24)):
        build(llama_config(size), dtype=torch.float32).save_pretrained(tmp_path / name)
        word_tokenizer(size).save_pretrained(tmp_path / name)
    for first, second in (("target", "draft"), ("draft", "target")):
        pair = load_models(str(tmp_path / first), str(tmp_path / second), device="cpu")
        assert pair.vocab_size == (26 if first == "target" else 24)


TEMPLATES = {
    "raises": "{{ 1 / 0 }}",
    "unknown": "{{ messages[0].content.strip().nothing() }}",
    "endless": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "refuses": "{{ raise_exception('no\nsuch\x1b turn') }}",
}


def chatty(template):
    tokenizer = type(word_tokenizer())(tokenizer_object=word_tokenizer().backend_tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_that_raise_anything_cost_one_line(template):
    with pytest.raises(InputError, match="the chat template refuses this conversation") as caught:
        encode("w5", chatty(template))
    assert str(caught.value).isprintable()


LOOP = "{% for m in messages %}{{ m.content }} {% endfor %}"
NO_SYSTEM = {
    "takes it": (LOOP, 2),
    "raises": ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}", 1),
    "drops": ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", 1),
}


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_an_instruction_goes_into_the_users_turn_where_there_is_no_system_role(name):
    template, count = NO_SYSTEM[name]
    turns = [{"role": "system", "content": "Be w3."}, {"role": "user", "content": "w5?"}]
    found = without_system_turn(turns, chatty(template))
    assert len(found) == count
    assert [turn["content"] for turn in found][-1] == ("w5?" if count == 2 else "Be w3.\n\nw5?")


def test_a_lone_surrogate_in_a_prompt():
    with pytest.raises(InputError, match=r"a lone surrogate \(U\+DC80\) at character 2, which"):
        encode("w5\udc80", word_tokenizer())
    with pytest.raises(InputError, match="a lone surrogate"):
        generate(*llama_pair(), "w5\udc80", tokenizer=word_tokenizer())


@pytest.mark.parametrize("delta", [float("nan"), float("inf"), -0.1])
def test_a_threshold_that_is_none(delta):
    with pytest.raises(ConfigError, match=rf"delta = {delta} is not a threshold"):
        Reward(delta=delta)


def test_more_items_than_any_task_has():
    with pytest.raises(ConfigError, match=r"items are more than any task has \(1,000,000\)"):
        load_task("lab-a", limit=99999999999999999999)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["generate", "--pair", "lab-a", "--device", "meta", "1 + 2 ?"], "shapes but no weights"),
        (["generate", "--pair", "lab-a", "--device", "cpu", "1 + 2 \udc80"], "lone surrogate"),
        (["eval", "--pair", "lab-a", "--task", "lab-a:99999999999999999999"], "is too large"),
        (
            ["eval", "--pair", "lab-a", "--system", "rsd:delta=nan"],
            "delta = 'nan' is not a threshold",
        ),
    ],
)
def test_the_command_line_refuses_in_one_line(options, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(options)
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert reason in said
    assert len(said.splitlines()) == 1


def test_a_standard_output_that_was_never_open_costs_one_line():
    code = "from easd.cli import main; main(['--version'])"
    command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", code]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: standard output is closed; send it to /dev/null")
    assert len(ended.stderr.splitlines()) == 1


def test_a_standard_output_that_closes_early_costs_one_line(capsys, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            main(["generate", "--pair", "lab-a", "--device", "cpu", "--quiet", "1 + 2 ?"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: standard output was closed before everything was printed\n"
    )
