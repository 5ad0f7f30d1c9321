"""Let the target write its own training text, and keep what distillation needs of it.

Every row of a wave holds one conversation after another: the chat template up to the user turn, an
opener of ours, then the target finishes the question and answers it. Beside the tokens a shard
keeps the target's final hidden states and log-normalisers, so that training never runs the target.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from smollm2_openers import opener
from torch import Tensor

FORCED, USER, ANSWER = 0, 1, 2
"""Who wrote the token that a position predicts: the template, the user turn, the answer."""

PROBLEM_SHARE = 0.7
USER_TEMPERATURE = 0.8
MAX_USER_TOKENS = 96
CHUNK = 64


class Decoder:
    """One-token-at-a-time decoding of a Llama model in bfloat16, all rows at the same slot.

    Rotary positions are slots: attention sees only differences, so a conversation may start at any
    slot as long as earlier slots are masked. Queries of one key head are handed to attention as
    its query length, which spares the copies of grouped-query attention, and the cache grows by
    `CHUNK` slots, since a product with a slice of it would copy that slice every time.
    """

    def __init__(self, model: torch.nn.Module, batch: int, slots: int) -> None:
        config = model.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps = config.head_dim, config.rms_norm_eps
        low = torch.bfloat16
        self.embedding = model.get_input_embeddings().weight.to(low)
        self.norm = model.model.norm.weight.to(low)
        self.layers = [
            (
                layer.input_layernorm.weight.to(low),
                torch.cat([getattr(layer.self_attn, f"{n}_proj").weight for n in "qkv"]).to(low),
                layer.self_attn.o_proj.weight.to(low),
                layer.post_attention_layernorm.weight.to(low),
                torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).to(low),
                layer.mlp.down_proj.weight.to(low),
            )
            for layer in model.model.layers
        ]
        empty = torch.zeros(batch * self.key_heads, 0, self.width, dtype=low)
        self.keys, self.values = [empty] * len(self.layers), [empty] * len(self.layers)
        cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(slots)[None])
        self.cos, self.sin = cos[0].to(low), sin[0].to(low)

    def step(self, tokens: Tensor, slot: int, start: Tensor) -> Tensor:
        """Write `tokens` [B] at `slot`; return the normalised final hidden states [B, hidden]."""
        low, batch, groups = torch.bfloat16, len(tokens), self.heads // self.key_heads
        if slot % CHUNK == 0:
            self.keys = [F.pad(keys, (0, 0, 0, CHUNK)) for keys in self.keys]
            self.values = [F.pad(values, (0, 0, 0, CHUNK)) for values in self.values]
        slots = torch.arange(self.keys[0].shape[1])
        visible = (slots >= start[:, None]) & (slots <= slot)
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        mask = mask.repeat_interleave(self.key_heads, dim=0)[:, None]
        x = F.embedding(tokens, self.embedding)
        for i, (norm_in, qkv, out, norm_mid, gate_up, down) in enumerate(self.layers):
            heads = F.linear(self._rms(x, norm_in), qkv).view(batch, -1, self.width)
            query, key, value = heads.split([self.heads, self.key_heads, self.key_heads], dim=1)
            self.keys[i][:, slot] = self._rotate(key, slot).flatten(0, 1)
            self.values[i][:, slot] = value.flatten(0, 1)
            query = self._rotate(query, slot).reshape(-1, groups, self.width) * self.width**-0.5
            scores = torch.bmm(query, self.keys[i].transpose(1, 2)).float() + mask
            mixed = torch.bmm(scores.softmax(-1).to(low), self.values[i])
            x = x + F.linear(mixed.reshape(batch, -1), out)
            gate, up = F.linear(self._rms(x, norm_mid), gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        return self._rms(x, self.norm)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _rotate(self, x: Tensor, slot: int) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos[slot] + torch.cat([-second, first], dim=-1) * self.sin[slot]


def draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token per row of `probs` [B, V], in two levels: a cumulative sum over V is slow."""
    blocks = probs.view(len(probs), -1, 256)
    sums = blocks.sum(-1).cumsum(-1)
    point = torch.rand(len(probs), 1, generator=generator) * sums[:, -1:]
    block = torch.searchsorted(sums, point).clamp(max=sums.shape[1] - 1)
    below = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(probs)), block[:, 0]].cumsum(-1)
    return (block * 256 + torch.searchsorted(inside, point - below).clamp(max=255))[:, 0]


class Template:
    """The fixed text around a user turn, as token ids."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        probe = [{"role": "user", "content": "\0"}]
        text = tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
        self.before, after = text.split("\0")
        self.after = tokenizer.encode(after, add_special_tokens=False)

    def opened(self, words: str) -> list[int]:
        """Return the ids of a conversation whose user turn begins with `words`."""
        return self.tokenizer.encode(self.before + words, add_special_tokens=False)


class Row:
    """The script of one batch row: given ids, a sampled rest of the question, a sampled answer."""

    def __init__(self, template: Template, scripts: Iterator[tuple[list[int], int]]) -> None:
        self.template, self.scripts = template, scripts
        self.begin()

    def begin(self) -> None:
        forced, self.stage = next(self.scripts)
        self.forced, self.length, self.fresh = deque(forced), 0, True

    def next(self, sampled: int) -> tuple[int, int]:
        """Return the next token and who wrote it, given what the target would say here."""
        self.fresh = False
        if self.forced:
            return self.forced.popleft(), FORCED
        stage, end = self.stage, self.template.after[0]
        self.length += 1
        if stage == USER and (sampled == end or self.length == MAX_USER_TOKENS):
            self.forced, self.stage = deque(self.template.after[1:]), ANSWER
            return end, USER
        if stage == ANSWER and sampled == end:
            self.begin()
        return sampled, stage


def own_questions(template: Template, rng: random.Random) -> Iterator[tuple[list[int], int]]:
    """Openers for ever; the target writes the rest of each question."""
    while True:
        yield template.opened(opener(rng, PROBLEM_SHARE)), USER


def given_questions(
    template: Template, questions: Sequence[str]
) -> Iterator[tuple[list[int], int]]:
    """Whole questions, for ever in turn; the target only answers."""
    for question in itertools.cycle(questions):
        yield template.opened(question) + template.after, ANSWER


@torch.inference_mode()
def wave(model, rows: list[Row], *, slots: int, seed: int) -> dict[str, Tensor]:
    """Play `rows` for `slots` tokens.

    Returns:
        `tokens`, `role`, `start` [B, S] (role of the *next* token; first slot of the conversation),
        `hidden` [B, S, hidden], `lse` [B, S] and `mass` [V], the probability each token received.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = len(rows)
    decoder = Decoder(model, batch, slots)
    shard = {
        "tokens": torch.zeros(batch, slots, dtype=torch.int32),
        "role": torch.zeros(batch, slots, dtype=torch.uint8),
        "start": torch.zeros(batch, slots, dtype=torch.int16),
        "hidden": torch.zeros(batch, slots, decoder.embedding.shape[1], dtype=torch.bfloat16),
        "lse": torch.zeros(batch, slots),
        "mass": torch.zeros(len(decoder.embedding)),
    }
    start = torch.zeros(batch, dtype=torch.int64)
    tokens = torch.tensor([row.next(-1)[0] for row in rows])
    for slot in range(slots):
        hidden = decoder.step(tokens, slot, start)
        logits = F.linear(hidden, decoder.embedding).float()
        top = logits.amax(-1, keepdim=True)
        probs = logits.sub_(top).exp_()
        total = probs.sum(-1, keepdim=True)
        shard["tokens"][:, slot], shard["start"][:, slot] = tokens.int(), start.short()
        shard["hidden"][:, slot], shard["lse"][:, slot] = hidden, (top + total.log())[:, 0]
        asking = torch.tensor([row.stage == USER for row in rows])
        probs[asking] = probs[asking].pow_(1 / USER_TEMPERATURE)
        sampled = draw(probs, generator).tolist()
        fresh = [row.fresh for row in rows]
        steps = [row.next(token) for row, token in zip(rows, sampled, strict=True)]
        tokens = torch.tensor([token for token, _ in steps])
        role = torch.tensor([writer for _, writer in steps])
        start[torch.tensor(fresh)] = slot + 1
        shard["role"][:, slot] = role.to(torch.uint8)
        weight = ((role == ANSWER) + 0.3 * (role == USER)) / probs.sum(-1)
        shard["mass"] += weight @ probs
    return shard


def generate(
    model, tokenizer, folder: Path, *, waves: int, minutes: float, batch: int, slots: int, seed: int
) -> None:
    """Write shards until `waves` exist or `minutes` have passed; shards already there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    template = Template(tokenizer)
    begun = time.monotonic()
    for number in range(waves):
        path = folder / f"shard-{number:03d}.safetensors"
        if path.exists():
            continue
        if time.monotonic() - begun > 60 * minutes:
            break
        lap = time.monotonic()
        rows = [
            Row(template, own_questions(template, random.Random(f"{seed + number}/{row}")))
            for row in range(batch)
        ]
        shard = wave(model, rows, slots=slots, seed=seed + number)
        temporary = path.with_suffix(".part")
        save_file(shard, temporary)
        temporary.rename(path)
        speed = batch * slots / (time.monotonic() - lap)
        written = int((shard["role"] != FORCED).sum())
        print(f"{path.name}: {written} tokens written by the target, {speed:.0f} tok/s", flush=True)
