"""Pairs with two tokenizers by name: loaded, refused, warned of, and decoded by the commands."""

import json
from dataclasses import replace

import pytest
from models import build, llama_config, word_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from vocabularies import byte_fallback, byte_level, drop_in_texts, model_of

from easd import generate, load_models
from easd.cli.root import main
from easd.engine.pair import fingerprints
from easd.errors import ConfigError, ModelError
from easd.pairs.checking import check_vocabularies
from easd.speed.bench.systems import Load, System, assistant_of, decode_once


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a target and of a draft whose tokenizer is another."""
    place = tmp_path_factory.mktemp("models")
    for name, kind in (("target", byte_level), ("draft", byte_fallback)):
        model_of(kind, len(name)).save_pretrained(place / name)
        kind().save_pretrained(place / name)
    return str(place / "target"), str(place / "draft")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EASD_CACHE", str(tmp_path_factory.getbasetemp() / "maps"))


def test_any_two_models_make_a_pair(folders):
    lines = []
    pair = load_models(*folders, report=lines.append)
    assert lines[-1] == "mapping the draft's tokens to the target's"
    assert pair.draft_tokenizer is not None
    assert pair.vocab_size == len(byte_level())
    assert set(fingerprints(pair)) == {"target", "draft", "tokenizer", "draft_tokenizer"}
    assert 0.5 < check_vocabularies(pair) <= 1
    alike = load_models(folders[0], folders[0])
    assert alike.draft_tokenizer is None


def test_the_command_decodes_it(folders, capsys):
    target, draft = folders
    found = []
    for models in (["--draft", draft, "--rule", "speculative"], ["--rule", "target"]):
        options = ["--coupling", "shared", "--max-new-tokens", "8", "--json"]
        with pytest.raises(SystemExit, match="0"):
            main(["generate", "the baker", "--target", target, *models, *options])
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["token_ids"] == found[1]["token_ids"]
    assert found[0]["accepted"] > 0


def test_what_cannot_be_a_pair_is_refused(folders, tmp_path):
    build(llama_config(24)).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="WordLevel model"):
        load_models(folders[0], str(tmp_path))
    pair = load_models(*folders)
    own = {"draft_tokenizer": pair.draft_tokenizer}
    with pytest.raises(ConfigError, match="whose tokenizer is not the target's"):
        generate(
            pair.target,
            pair.draft,
            "a",
            tokenizer=pair.tokenizer,
            draft_tokenizer=pair.draft_tokenizer,
            rule="draft",
        )
    with pytest.raises(ConfigError, match="give both models and both tokenizers"):
        generate(pair.target, pair.draft, [1], **own)


def test_a_draft_that_can_propose_little_is_warned_of(folders, monkeypatch):
    monkeypatch.setattr("easd.pairs.checking._LEAST_SHARE", 1.01)
    with pytest.warns(UserWarning, match=r"can propose only \d+% of the target's five"):
        load_models(*folders)


def test_a_draft_that_cannot_propose_the_end_is_warned_of(folders):
    named = byte_level().backend_tokenizer.to_str()
    for place, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
        named = named.replace(name, f"<mine{place}>")
    mine = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(named))
    pair = load_models(*folders)
    strange = replace(pair, draft=model_of(byte_level, 1), draft_tokenizer=mine)
    with pytest.warns(UserWarning, match=r"none of the draft's 3 special tokens has a counterpart"):
        check_vocabularies(strange)


def test_the_drop_in_takes_the_drafts_tokenizer(folders):
    texts = drop_in_texts(load_models(*folders), ["the baker", "theatre"], 6)
    assert texts[0].equal(texts[1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_benchmark_leaves_the_draft_to_both_as_it_is(folders, temperature):
    """transformers replaces a sampling assistant's embeddings, which would change our draft."""
    pair = load_models(*folders)
    prompts = [pair.tokenizer(text)["input_ids"] for text in ("the baker", "theatre")]
    head, load = pair.draft.get_output_embeddings(), Load(tokens=6, temperature=temperature)
    ours = System("speculative", 3)
    before = decode_once(ours, pair, prompts, load, 1).tally
    for seed in (1, 2):
        assert decode_once(System("assisted", 3), pair, prompts, load, seed).tally.tokens > 0
    assert pair.draft.get_output_embeddings() is head
    own = pair.draft.get_input_embeddings().weight
    assert assistant_of(pair).get_input_embeddings().weight is own
    after = decode_once(ours, pair, prompts, load, 1).tally
    assert (after.accepted, after.examined) == (before.accepted, before.examined)
