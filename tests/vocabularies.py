"""Small tokenizers of different kinds, trained on the spot, and models that read them."""

import json
from functools import cache
from itertools import groupby

import torch
from models import build, llama_config
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from easd import custom_generate
from easd.engine.pair import Pair
from easd.engine.vocabulary import vocabulary_map

TEXTS = [
    "The baker bakes 12 trays of 8 rolls each and sells 70 of them, so 26 are left.",
    "def total(values):\n    return sum(values) + 10\n\nprint(total([1, 2, 3]))  # 16",
    "Привет, мир! Как дела? 你好, 世界。今天天气很好。 日本語の文章です。",
    "Smile 🙂 or 👩‍👩‍👧 and e\u0301 or n\u0303, naïve café — “quoted” …",
    "theatre there these them thesis unbelievable unbeaten unable able table stable",
]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def byte_level(vocab_size: int = 360, *, digits: bool = False) -> PreTrainedTokenizerFast:
    """BPE over bytes, as GPT-2, Llama 3 and Qwen have it; ends turns with <|im_end|>."""
    built = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    each = pre_tokenizers.Digits(individual_digits=True)
    built.pre_tokenizer = pre_tokenizers.Sequence([each, split]) if digits else split
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|im_end|>")


@cache
def numbers() -> PreTrainedTokenizerFast:
    """BPE over bytes with numbers of up to three digits as one token, as Llama 3 has it."""
    space, digits = pre_tokenizers.ByteLevel.alphabet(), "0123456789"
    (blank,) = {pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]}
    merges = [(one, two) for one in digits for two in digits]
    merges += [(one + two, three) for one, two in merges for three in "05"]
    merges += [(blank, one) for one in digits] + [
        (blank + one, two) for one in "12" for two in "03"
    ]
    names = [*sorted(space), *map("".join, merges), "<|im_end|>"]
    built = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|im_end|>")


@cache
def byte_fallback(vocab_size: int = 420) -> PreTrainedTokenizerFast:
    """BPE over characters with bytes for the rest, as Llama 2 and Gemma have it.

    ASCII characters have two tokens: their own, and that of their byte.
    """
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    built = Tokenizer(models.BPE(byte_fallback=True))
    built.normalizer = normalizers.Replace(" ", "▁")
    built.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *_BYTES], show_progress=False
    )
    built.train_from_iterator([TEXTS[0], TEXTS[1], TEXTS[4]], trainer)
    # To training, bytes are special; to the tokenizer they are not.
    described = json.loads(built.to_str())
    described["added_tokens"] = []
    built = Tokenizer.from_str(json.dumps(described))
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    built.add_special_tokens([AddedToken(name, special=True) for name in special])
    built.add_tokens([AddedToken("\n\n", normalized=False)])
    built.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", built.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


@cache
def unigram() -> PreTrainedTokenizerFast:
    """A unigram model with bytes for unknown characters and a space before each text."""
    pieces = ["the", "▁the", "▁un", "able", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789.,"]
    scores = [("<unk>", -20.0), ("</s>", 0.0), *((byte, -15.0) for byte in _BYTES)]
    scores += [(piece, -2.0 - 1 / len(piece)) for piece in pieces]
    built = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    built.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="</s>", unk_token="<unk>")


@cache
def model_of(kind, seed: int = 0) -> PreTrainedModel:
    """A random model over the tokens of one of these tokenizers."""
    return build(llama_config(len(kind())), seed=seed, spread=8.0)


KINDS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "unigram": unigram}


def pair_of(kinds) -> Pair:
    target, draft = (KINDS[kind] for kind in kinds)
    return Pair.of(model_of(target), model_of(draft, 1), target(), draft())


def ends_inside_a_character(spelt: bytes) -> bool:
    for length in (1, 2, 3):
        try:
            spelt[-length:].decode()
        except UnicodeDecodeError as error:
            if error.start == 0 and "unexpected end" in error.reason:
                return True
    return False


def by_hand(pair: Pair, tokens: list[int], *, inside: bool = True) -> torch.Tensor:
    """The draft's opinion after a text of the target, without cache, map or incremental reading.

    Unless it is asked `inside` numbers, they end where the text does.
    """
    words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
    opinion = torch.zeros(pair.vocab_size, dtype=torch.float64)
    ids = [] if words.draft.begin is None else [words.draft.begin]
    for is_text, part in groupby(tokens, lambda token: words.target.bytes_of[token] is not None):
        if not is_text:
            ids += [words.special_in_draft(token) for token in part if token != words.target.begin]
            continue
        spelt = b"".join(words.target.bytes_of[token] for token in part)
        last = words.target.bytes_of[tokens[-1]] or b""
        if last and spelt.endswith(last) and ends_inside_a_character(spelt):
            return opinion
        ids += words.draft.encode(spelt.decode(errors="replace"))
    if not ids:
        return opinion
    logits = pair.draft(torch.tensor([ids])).logits[0, -1]
    ended, longer = numbers_by_hand(pair, words, tokens, ids)
    for token, prob in enumerate(logits.softmax(-1).tolist()):
        piece = words.draft.bytes_of[token]
        if piece is not None:
            opinion[words.target.encode_all([piece])[0][0]] += prob
        elif token in words.draft.endings:
            opinion[words.target.ending] += prob
        elif token == words.draft.turn_begin and words.target.turn_begin is not None:
            opinion[words.target.turn_begin] += prob
    if inside:
        opinion = opinion * ended + longer
    return opinion / opinion.sum()


def numbers_by_hand(pair, words, tokens, ids) -> tuple[float, torch.Tensor]:
    """How likely the draft's last token is all of a number, and what goes on in longer ones."""
    longer = torch.zeros(pair.vocab_size, dtype=torch.float64)
    last = words.draft.bytes_of[ids[-1]]
    begun = [tokens[-length:] for length in range(1, len(tokens) + 1)]
    begun = [each for each in begun if all(words.target.bytes_of[token] for token in each)]
    begun = [
        each for each in begun if b"".join(map(words.target.bytes_of.__getitem__, each)) == last
    ]
    if last is None or len(ids) < 2 or not begun:
        return 1.0, longer
    before = pair.draft(torch.tensor([ids[:-1]])).logits[0, -1].softmax(-1).tolist()
    for token, prob in enumerate(before):
        piece = words.draft.bytes_of[token] or b""
        if piece.removeprefix(b" ").isdigit():
            (spelt,) = words.target.encode_all([piece])
            if spelt[: len(begun[0])] == begun[0] and len(spelt) > len(begun[0]):
                longer[spelt[len(begun[0])]] += prob
    return (before[ids[-1]], longer) if longer.sum() > 0 else (1.0, longer)


def drop_in_texts(pair: Pair, prompts: list[str], length: int) -> list[torch.Tensor]:
    """Texts [B, T] by `generate`'s drop-in under shared noise: with the draft, and without."""
    batch = pair.tokenizer(prompts, return_tensors="pt")["input_ids"]
    models = {"draft_model": pair.draft, "draft_tokenizer": pair.draft_tokenizer}
    return [
        pair.target.generate(
            batch,
            custom_generate=custom_generate,
            do_sample=True,
            max_new_tokens=length,
            coupling="shared",
            stop_tokenizer=pair.tokenizer,
            seed=3,
            rule=rule,
            **drafting,
        )
        for rule, drafting in (("speculative", models), ("target", {}))
    ]
