"""A tokenizer by bytes: the bytes of each token, and how text is encoded inside a longer one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from easd.engine.pair import num_tokens
from easd.errors import ModelError

# Equivalent special tokens of different model families.
_TURN_BEGINS = ("<|im_start|>", "<start_of_turn>", "<|turn>")
_TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<turn|>")
_TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")

_CHARACTER_OF = bytes_to_unicode()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}
_BARE = {"add_special_tokens": False}
_WAYS_OUT = "use a draft with the target's own tokenizer, or the prompt-lookup drafter"


class ByteVocabulary:
    """The tokens of one tokenizer as bytes, and its encoding of bytes inside a text.

    Attributes:
        size: one more than the largest id.
        bytes_of: the bytes of each id; None for special tokens and unused ids.
        special: ids of special tokens by name.
        names: names of special tokens by id.
        begin: the id that the tokenizer puts before a text, if any.
        end: the id that ends a text, if any.

    Raises:
        ModelError: The tokenizer cannot be read as bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} has no fast tokenizer to read bytes from; {_WAYS_OUT}"
            )
        self._byte_level = _check_reading(tokenizer, backend)
        self._backend = _plain(backend)
        self._ids = tokenizer.get_vocab()
        self.size = num_tokens(tokenizer)
        added = backend.get_added_tokens_decoder()
        self.special = {token.content: at for at, token in added.items() if token.special}
        self.names = {at: name for name, at in self.special.items()}
        self.bytes_of: list[bytes | None] = [None] * self.size
        for token, at in self._ids.items():
            if at not in added:
                is_unknown = at == tokenizer.unk_token_id
                self.bytes_of[at] = None if is_unknown else self._read(token)
            elif not added[at].special:
                self.bytes_of[at] = added[at].content.encode()
        self.end: int | None = tokenizer.eos_token_id  # type: ignore[assignment]
        self.turn_begin = _first(_TURN_BEGINS, self.special)
        self.turn_end = _first(_TURN_ENDS, self.special)
        self.answers_turns = bool(tokenizer.chat_template)
        begins: list[int] = tokenizer("a")["input_ids"][:1]  # type: ignore[assignment,index]
        self.begin = begins[0] if begins == [tokenizer.bos_token_id] else None
        self._of_segment = lru_cache(1 << 16)(self._encode)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text inside a longer one: without special tokens or a dummy space."""
        return self._of_segment(text)

    def encode_all(self, pieces: Sequence[bytes]) -> list[list[int]]:
        """Ids of each piece of text, which may begin or end inside a character."""
        texts = [_decoded(piece) for piece in pieces]
        whole = [text for text in texts if text is not None]
        ids = iter([each.ids for each in self._backend.encode_batch_fast(whole, **_BARE)])
        return [
            self._encode_bytes(piece) if text is None else next(ids)
            for piece, text in zip(pieces, texts, strict=True)
        ]

    def text_of(self, token: int) -> str:
        """A token as text: its bytes, or the name of a special one."""
        piece = self.bytes_of[token]
        if piece is None:
            return self.names.get(token, f"#{token}")
        return piece.decode(errors="replace")

    @property
    def ending(self) -> int | None:
        """The token that ends an answer, or a text if there are no turns."""
        of_turn = self.turn_end if self.answers_turns else None
        return self.end if of_turn is None else of_turn

    @property
    def endings(self) -> set[int]:
        """All tokens that end a turn or a text."""
        known = [self.special.get(name) for name in (*_TURN_ENDS, *_TEXT_ENDS)]
        return {at for at in (self.end, *known) if at is not None}

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, **_BARE).ids)

    def _encode_bytes(self, piece: bytes) -> list[int]:
        """Ids of bytes that are not whole characters."""
        if self._byte_level:
            letters = "".join(_CHARACTER_OF[byte] for byte in piece)
            return [token.id for token in self._backend.model.tokenize(letters)]
        valid = _valid_length(piece)
        rest = [self._ids[f"<0x{byte:02X}>"] for byte in piece[valid:]]
        return [*self._encode(piece[:valid].decode()), *rest] if valid else rest

    def _read(self, token: str) -> bytes | None:
        if self._byte_level:
            if all(letter in _BYTE_OF for letter in token):
                return bytes(_BYTE_OF[letter] for letter in token)
            return None
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()


def _plain(backend: Any) -> Tokenizer:
    """A copy that adds neither special tokens nor a space before the first word.

    It shares the model, since copying a large vocabulary takes seconds.
    """
    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = _without_prefix(backend.normalizer, normalizers.Sequence([]))
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = _without_prefix(backend.pre_tokenizer, pre_tokenizers.Sequence([]))
    added = backend.get_added_tokens_decoder()
    plain.add_tokens([added[at] for at in sorted(added)])
    if any(plain.token_to_id(token.content) != at for at, token in added.items()):
        whole = json.loads(backend.to_str())
        whole["post_processor"] = None
        for part in ("normalizer", "pre_tokenizer"):
            whole[part] = _bare(whole[part])
        plain = Tokenizer.from_str(json.dumps(whole))
    plain.encode_special_tokens = True  # A special token spelt out in a text is plain text.
    return plain


def _without_prefix(part: Any, blank: Any) -> Any:
    blank.__setstate__(json.dumps(_bare(json.loads(part.__getstate__()))).encode())
    return blank


def _bare(part: Any) -> Any:
    """The description of a normalizer or pre-tokenizer without the prefix that it adds."""
    if isinstance(part, list):
        kept = (each for each in part if not _is_prefix(each))
        return [_bare(each) for each in kept]
    if not isinstance(part, dict):
        return part
    if _is_prefix(part):
        return None
    nothing = {"add_prefix_space": False, "prepend_scheme": "never"}
    return {name: nothing.get(name, _bare(value)) for name, value in part.items()}


def _is_prefix(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"


def _check_reading(tokenizer: PreTrainedTokenizerBase, backend: Any) -> bool:
    """Whether tokens are spelt in a byte alphabet, rather than characters with byte fallback."""
    model, name = backend.model, f"the tokenizer of {tokenizer.name_or_path or 'a model'}"
    kind = type(model).__name__
    if kind not in ("BPE", "Unigram"):
        raise ModelError(f"{name} is a {kind} model, whose tokens are not bytes; {_WAYS_OUT}")
    if getattr(model, "continuing_subword_prefix", None) or getattr(
        model, "end_of_word_suffix", None
    ):
        raise ModelError(
            f"{name} marks tokens inside or at the end of words, so they are not bytes; {_WAYS_OUT}"
        )
    if any(
        part is not None and b'"ByteLevel"' in part.__getstate__()
        for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    ):
        return True
    missing = [byte for byte in range(256) if backend.token_to_id(f"<0x{byte:02X}>") is None]
    if missing:
        raise ModelError(
            f"{name} has no token for {len(missing)} of 256 bytes, so some texts are unknown to "
            f"it; {_WAYS_OUT}"
        )
    return False


def _decoded(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _valid_length(piece: bytes) -> int:
    """The number of leading bytes that are whole characters."""
    try:
        return len(piece.decode().encode())
    except UnicodeDecodeError as error:
        return error.start


def _first(names: Sequence[str], among: dict[str, int]) -> int | None:
    return next((among[name] for name in names if name in among), None)
