"""Tokenizers read by bytes, the map between two, and a target's text in the draft's tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import word_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast
from vocabularies import KINDS, TEXTS, byte_fallback, byte_level, unigram

from easd.engine.byte_vocabulary import ByteVocabulary
from easd.engine.other_vocabulary import Reading
from easd.engine.request import Request, Row
from easd.engine.vocabulary import VocabularyMap, vocabulary_map
from easd.errors import ModelError

DIRECTIONS = [(one, other) for one in KINDS for other in KINDS if one != other]
PAIRS = pytest.mark.parametrize("pair", DIRECTIONS, ids=lambda pair: " from ".join(pair))

texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from([*" \n\n", *TEXTS[2].split(), *TEXTS[3].split(), *TEXTS[1].split()])
    ).map("".join),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EASD_CACHE", str(tmp_path))


def mapped(pair) -> VocabularyMap:
    target, draft = (KINDS[kind]() for kind in pair)
    return vocabulary_map(target, draft)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(text=texts)
def test_tokens_of_a_text_are_its_bytes(kind, text):
    vocabulary = ByteVocabulary(kind())
    spelt = [vocabulary.bytes_of[token] for token in vocabulary.encode(text)]
    assert b"".join(spelt) == text.encode()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(piece=st.binary(min_size=1, max_size=8))
def test_bytes_that_are_no_text_have_tokens_too(kind, piece):
    vocabulary = ByteVocabulary(kind())
    (ids,) = vocabulary.encode_all([piece])
    assert b"".join(vocabulary.bytes_of[token] for token in ids) == piece


@PAIRS
def test_every_token_leads_to_the_first_of_its_bytes_and_duplicates_add_up(pair):
    words = mapped(pair)
    probs = torch.rand(3, words.draft.size, dtype=torch.float64)
    expected = torch.zeros(3, words.target.size, dtype=torch.float64)
    lost = torch.zeros(3, dtype=torch.float64)
    for token, piece in enumerate(words.draft.bytes_of):
        if piece is None:
            lost += probs[:, token] * (words.first[token] < 0)
            if words.first[token] >= 0:
                expected[:, words.first[token]] += probs[:, token]
        else:
            (ids,) = words.target.encode_all([piece])
            expected[:, ids[0]] += probs[:, token]
    found = words.pushforward(probs, words.target.size)
    assert (found - expected).abs().max() < 1e-12
    assert ((found.sum(-1) + lost) - probs.sum(-1)).abs().max() < 1e-9


def test_characters_and_their_bytes_lead_to_one_token():
    words = vocabulary_map(byte_level(), byte_fallback())
    ids, one = byte_fallback().get_vocab(), byte_level().get_vocab()["1"]
    assert words.first[ids["1"]] == words.first[ids["<0x31>"]] == one


def test_special_tokens_map_by_role():
    words = vocabulary_map(byte_level(), byte_fallback())
    ours, theirs = byte_level().get_vocab(), byte_fallback().get_vocab()
    for name in ("<eos>", "<end_of_turn>"):
        assert words.first[theirs[name]] == ours["<|im_end|>"]
    assert words.first[theirs["<start_of_turn>"]] == ours["<|im_start|>"]
    assert words.first[theirs["<pad>"]] == -1
    assert words.special_in_draft(ours["<|im_end|>"]) == theirs["<end_of_turn>"]
    assert words.special_in_draft(ours["<|endoftext|>"]) == theirs["<eos>"]
    back = vocabulary_map(byte_fallback(), byte_level())
    assert back.first[ours["<|im_end|>"]] == theirs["<eos>"]


def test_a_map_is_read_from_the_cache_and_built_anew_where_that_is_damaged(tmp_path):
    fresh = lambda: PreTrainedTokenizerFast(  # noqa: E731
        tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
    )
    built = vocabulary_map(fresh(), byte_fallback())
    (file,) = tmp_path.rglob("*.npz")
    assert vocabulary_map(fresh(), byte_fallback()).first.equal(built.first)
    for damage in (b"", b"PK no archive"):
        file.write_bytes(damage)
        assert vocabulary_map(fresh(), byte_fallback()).first.equal(built.first)
        assert file.stat().st_size > 1000


def test_tokenizers_without_bytes_are_refused():
    pieces = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    )
    for tokenizer, reason in ((word_tokenizer(), "WordLevel model"), (pieces, "WordPiece model")):
        with pytest.raises(ModelError, match=reason):
            ByteVocabulary(tokenizer)
    described = Tokenizer.from_str(byte_fallback().backend_tokenizer.to_str())
    described.model = type(described.model)({"<unk>": 0, "a": 1}, [], unk_token="<unk>")
    with pytest.raises(ModelError, match="no token for 256 of 256 bytes"):
        ByteVocabulary(PreTrainedTokenizerFast(tokenizer_object=described))


def read(words: VocabularyMap, tokens, cuts=()) -> Reading:
    """What the draft reads of these tokens after none of them, some of them, and so on."""
    row = Row.start(Request(prompt=tuple(tokens[: cuts[0] if cuts else len(tokens)])))
    reading = Reading.start(words, row)
    for cut in (*cuts[1:], len(tokens)):
        fork = reading.fork()
        fork.read(tokens[reading.length :][:3])
        reading.read(tokens[reading.length : cut])
    return reading


@PAIRS
@given(text=texts, data=st.data())
def test_a_reading_depends_on_the_text_and_not_on_where_blocks_ended(pair, text, data):
    words = mapped(pair)
    tokens = list(words.target.encode(text))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), min_size=1, max_size=6)))
    whole = read(words, tokens)
    assert read(words, tokens, cuts).ids == whole.ids
    # Tokens as the target would never cut them are the same text.
    other = [*words.target.encode_all([bytes([byte]) for byte in text.encode()])]
    assert read(words, [token for ids in other for token in ids]).ids == whole.ids
    begin = [] if words.draft.begin is None else [words.draft.begin]
    if text:
        spelt = [words.draft.bytes_of[token] for token in whole.ids[len(begin) :]]
        assert b"".join(spelt) == text.encode()


@PAIRS
@pytest.mark.parametrize("text", TEXTS)
def test_a_reading_is_what_the_drafts_tokenizer_makes_of_the_text(pair, text):
    words = mapped(pair)
    expected = [*words.draft.encode(text)]
    found = read(words, list(words.target.encode(text))).ids
    assert found[words.draft.begin is not None :] == expected


@PAIRS
def test_inside_a_character_and_without_text_there_is_nothing_to_read(pair):
    words = mapped(pair)
    (cut,) = words.target.encode_all(["🙂".encode()[:3]])
    assert read(words, cut).ids is None
    assert (read(words, []).ids is None) == (words.draft.begin is None)
    # Bytes that no character begins with are read as replacement characters.
    spoilt = read(words, [*cut, *words.target.encode("a")])
    assert spoilt.ids == read(words, words.target.encode("�a")).ids


def test_special_tokens_are_read_by_role_or_as_their_names():
    words = vocabulary_map(byte_level(), byte_fallback())
    ours, theirs = byte_level().get_vocab(), byte_fallback().get_vocab()
    turn = [ours["<|im_start|>"], *words.target.encode("user\nHi"), ours["<|im_end|>"]]
    assert read(words, turn).ids == [
        theirs["<bos>"],
        theirs["<start_of_turn>"],
        *words.draft.encode("user\nHi"),
        theirs["<end_of_turn>"],
    ]
    back = vocabulary_map(byte_level(), unigram())
    assert read(back, turn[:1]).ids == [*back.draft.encode("<|im_start|>")]
    # A text that spells a special token is text.
    spelt = list(words.target.encode("<eos>"))
    assert theirs["<eos>"] not in read(words, spelt).ids


def test_text_without_spaces_is_settled_in_pieces():
    words = vocabulary_map(byte_level(), byte_fallback())
    reading = read(words, list(words.target.encode("界" * 1000)))
    assert len(reading.segment) <= 256
    assert len(reading.settled) > 700
