"""Text out of tokens: whole characters only, and nothing that a stop string takes away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import word_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from easd.serve.detokenizer import Detokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and an end mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(BPE({**{c: i for i, c in enumerate(alphabet)}, "</s>": 256}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")


BYTES = byte_tokenizer()
TEXT = st.text(st.sampled_from("ab\n é\u20ac\U0001f600\u202e\u0301\u4e2d\ufffd"), max_size=12)


def written(tokens, cuts, *, stop=(), finished="length", tokenizer=BYTES):
    """Pieces of a text whose tokens come in groups of the given sizes."""
    detokenizer, pieces, tokens = Detokenizer(tokenizer, stop), [], list(tokens)
    for cut in cuts:
        if len(tokens) > cut:
            pieces.append(detokenizer.add(tokens[:cut], None))
            tokens = tokens[cut:]
    pieces.append(detokenizer.add(tokens, finished))
    return detokenizer, pieces


@given(text=TEXT, cuts=st.lists(st.integers(1, 5)))
def test_pieces_are_whole_characters_and_make_up_the_text(text, cuts):
    tokens = BYTES(text)["input_ids"]
    detokenizer, pieces = written(tokens, cuts)
    assert "".join(pieces) == detokenizer.text == text
    assert detokenizer.num_released == len(tokens)


@given(text=TEXT, cuts=st.lists(st.integers(1, 5)))
def test_the_end_mark_is_no_text_and_no_token_of_it(text, cuts):
    tokens = BYTES(text)["input_ids"]
    detokenizer, pieces = written([*tokens, 256], cuts, finished="eos")
    assert "".join(pieces) == text
    assert detokenizer.num_released == len(tokens)


@given(
    text=TEXT,
    stop=st.text("ab\n é", min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 5)),
)
def test_a_stop_string_takes_itself_and_what_follows(text, stop, cuts):
    kept = text[: text.find(stop)] if stop in text else text
    kept = kept if (kept + stop).index(stop) == len(kept) else ""
    tokens = BYTES(kept + stop)["input_ids"]
    stops = ["never", stop]
    detokenizer, pieces = written(tokens, cuts, stop=stops, finished="stop")
    assert "".join(pieces) == detokenizer.text == kept
    assert detokenizer.num_released == len(BYTES(kept)["input_ids"])


@given(text=TEXT, stop=st.text("ab\n", min_size=2, max_size=4), cuts=st.lists(st.integers(1, 5)))
def test_a_text_that_does_not_stop_keeps_the_beginning_of_a_stop_string(text, stop, cuts):
    whole = (text + stop[:-1]).replace(stop, "")
    _, pieces = written(BYTES(whole)["input_ids"], cuts, stop=[stop])
    assert "".join(pieces) == whole


@given(tokens=st.lists(st.integers(0, 255), max_size=20), cuts=st.lists(st.integers(1, 5)))
def test_bytes_that_are_no_text_still_come_out(tokens, cuts):
    detokenizer, pieces = written(tokens, cuts)
    assert "".join(pieces) == detokenizer.text
    if "\ufffd" not in (text := BYTES.decode(tokens)):
        assert detokenizer.text == text
    assert len(detokenizer.text) >= len(tokens) // 4


def test_garbage_without_end_is_not_held_back_for_ever():
    detokenizer = Detokenizer(BYTES, ())
    (continuation,) = BYTES("é")["input_ids"][1:]
    pieces = [detokenizer.add([continuation], None) for _ in range(100)]
    assert any(pieces[:10])
    assert sum(map(len, pieces)) > 80


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Characters with a token of their own, and bytes for all others, as sentencepiece has them."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), "a", "\ufffd", "</s>"]
    model = Tokenizer(
        BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="</s>")
    )
    model.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")


FALLBACK = fallback_tokenizer()


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK], ids=["byte level", "byte fallback"])
@pytest.mark.parametrize(
    "text", ["\ufffdé", "\ufffd\ufffd\U0001f600a", "a" + "\ufffd" * 9 + "\u20ac", "é\ufffd"]
)
def test_a_replacement_character_that_the_model_writes_is_one(tokenizer, text):
    """Byte by byte, and as a token where there is one."""
    cases = [BYTES(text)["input_ids"] if tokenizer is BYTES else list(text.encode())]
    if tokenizer is FALLBACK:
        cases.append(FALLBACK(text)["input_ids"])
        assert 257 in cases[1]
    for tokens in cases:
        detokenizer, pieces = written(tokens, [1] * len(tokens), tokenizer=tokenizer)
        assert "".join(pieces) == detokenizer.text == text
        assert all(len(piece) <= 1 for piece in pieces)
        assert detokenizer.num_released == len(tokens)


def test_bytes_that_begin_no_character_hold_nothing_back():
    """A first byte again and again: each shows that the one before was none."""
    (first, *_) = BYTES("\U0001f600")["input_ids"]
    _, pieces = written([first] * 20 + BYTES("\U0001f600a")["input_ids"], [1] * 30)
    assert all(pieces[1:20])
    assert "".join(pieces) == "\ufffd" * 20 + "\U0001f600a"


@pytest.mark.parametrize("cuts", [[1] * 9, [2, 3], [9]])
def test_spaces_between_words_are_those_of_the_whole_text(cuts):
    tokens = [5, 6, 7, 3, 9, 9, 4]
    _, pieces = written(tokens, cuts, tokenizer=word_tokenizer())
    assert "".join(pieces) == "w5 w6 w7 w3 w9 w9 w4"


def test_offsets_are_where_tokens_begin():
    detokenizer, _ = written([5, 10, 7], [1], tokenizer=word_tokenizer())
    assert [detokenizer.offset(token) for token in range(3)] == [0, 2, 6]
