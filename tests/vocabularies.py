"""Small tokenizers of different kinds, trained on the spot, and models that read them."""

import json
from functools import cache

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
