"""The table that a diagnosis reads: one row for every token of the reference texts.

With g = 1 where the gate is open and 0 elsewhere, a gated rule's law is (1 - g) p + g * open_law.
Neither p nor open_law depends on the thresholds, so one table gives every rule at every threshold.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easd.core.gate import ALL_CONDITIONS, Condition, Gate
from easd.errors import InputError
from easd.runs.schema import column

TOP_N = 5
PLAUSIBLE = 0.1

_PROBS = pa.list_(pa.float64())
_RIGHT = "the reference's token"

POSITIONS = pa.schema(
    [
        column("text", pa.int32(), "index", "the reference text, in the order given"),
        column("id", pa.dictionary(pa.int32(), pa.string()), "name", "the reference text's name"),
        column("position", pa.int32(), "index", "the token's place in the reference text"),
        column("token", pa.int32(), "token id", f"{_RIGHT}, called right below"),
        column("draft_prob", pa.float64(), "probability", "the draft's of the right token"),
        column("target_prob", pa.float64(), "probability", "the target's of the right token"),
        column("draft_best", pa.bool_(), "yes or no", "the right token is the draft's best"),
        column("target_best", pa.bool_(), "yes or no", "the right token is the target's best"),
        column("draft_entropy", pa.float64(), "nats", "of the draft, as the gate takes it"),
        column("target_entropy", pa.float64(), "nats", "of the target, likewise"),
        column("shared_top", pa.int32(), "tokens", f"shared by both models' {TOP_N} most probable"),
        column(
            "pool_target_probs",
            _PROBS,
            "probability",
            f"the target's of the plausible tokens: {PLAUSIBLE} of its best one's or more",
        ),
        column(
            "pool_draft_probs",
            _PROBS,
            "probability",
            "the draft's of the same tokens, raised to the least that the pool rule counts",
        ),
        column("pool_right", pa.int32(), "index", "the right token among them, or null"),
    ]
)

GATED, UNGATED = "open_", "law_"
"""Prefixes of rules' columns: with a gate, which is taken to be open, and without."""


def positions_schema(gated: Iterable[str], ungated: Iterable[str]) -> pa.Schema:
    """`POSITIONS` with a column for each rule."""
    schema = POSITIONS
    for prefix, names, where in (
        (GATED, gated, "where its gate is open"),
        (UNGATED, ungated, "everywhere"),
    ):
        for name in names:
            text = f"{_RIGHT}, under {name} {where}"
            schema = schema.append(column(prefix + name, pa.float64(), "probability", text))
    return schema


Values = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Positions:
    """The table as arrays: N positions of T texts, with M plausible tokens in all.

    Attributes:
        values: columns by name, [N] each, but for the pool's.
        texts: number of each position's text, [N].
        n_texts: T.
        target_logs, draft_logs: log-probabilities of plausible tokens, position by position, [M].
        starts: index of each position's first plausible token, and M at the end, [N+1].
        right: index of the right token, [N]; -1 where it is not plausible.
    """

    values: dict[str, NDArray]
    texts: NDArray[np.intp]
    n_texts: int
    target_logs: Values
    draft_logs: Values
    starts: NDArray[np.int64]
    right: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> Positions:
        """Reads a table of `read_positions`.

        Raises:
            InputError: Columns are missing, or there are fewer than two texts.
        """
        needed = [*POSITIONS.names, f"{GATED}easd"]
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise InputError(
                f"the table of positions lacks {', '.join(missing[:3])}; "
                "make it with read_positions"
            )
        lists = ("pool_target_probs", "pool_draft_probs")
        values = {
            name: table[name].to_numpy()
            for name in table.column_names
            if name not in {"id", "pool_right", *lists}
        }
        names, texts = np.unique(values["text"], return_inverse=True)
        check_count(len(names))
        target, draft = (table[name].combine_chunks() for name in lists)
        lengths = target.value_lengths().to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        place = table["pool_right"].fill_null(-1).to_numpy().astype(np.int64)
        return cls(
            values,
            texts,
            len(names),
            np.log(target.flatten().to_numpy()),
            np.log(draft.flatten().to_numpy()),
            starts,
            np.where(place < 0, -1, starts[:-1] + place),
        )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def everywhere(self) -> Mask:
        """A mask of all positions, [N]."""
        return np.ones(len(self), dtype=bool)

    def rules(self, prefix: str) -> list[str]:
        """Names of the rules with a column of that prefix."""
        return [name.removeprefix(prefix) for name in self.values if name.startswith(prefix)]

    def by_text(self, values: Values) -> Values:
        """Sums over each text's positions, [N] -> [T]."""
        return np.bincount(self.texts, weights=values).astype(np.float64)


def check_count(texts: int) -> None:
    """Refuses fewer than two texts, which allow no interval."""
    if texts < 2:
        raise InputError(f"reference texts given: {texts}; give two or more, for an interval")


_VOCABULARY = b"easd.draft_vocabulary"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftVocabulary:
    """How a draft with a tokenizer of its own was read; stored in the table's metadata.

    Attributes:
        coverage: share of the draft's tokens that map to tokens of the target.
        one_to_one: share of the draft's tokens that are exactly one token of the target.
        aligned: positions answered by the draft's pass over the whole text.
        anew: positions that needed a pass of their own.
        silent: positions left out because the draft has no distribution there.
    """

    coverage: float
    one_to_one: float
    aligned: int
    anew: int
    silent: int

    @classmethod
    def of(cls, table: pa.Table) -> DraftVocabulary | None:
        """The table's entry; None where draft and target share a tokenizer."""
        stored = (table.schema.metadata or {}).get(_VOCABULARY)
        return None if stored is None else cls(**json.loads(stored))

    def stored_in(self, table: pa.Table) -> pa.Table:
        """The table with this entry in its metadata."""
        return table.replace_schema_metadata({_VOCABULARY: json.dumps(asdict(self))})


def met(positions: Positions, tau_h: float, tau_o: float) -> dict[Condition, Mask]:
    """Where each condition of the gate holds, by the names in `ALL_CONDITIONS`."""
    return Gate(tau_h=tau_h, tau_o=tau_o, top_n=TOP_N).met(positions.values)


def gate(
    positions: Positions,
    tau_h: float,
    tau_o: float = 0.8,
    conditions: Collection[Condition] = ALL_CONDITIONS,
) -> Mask:
    """Where the gate of entropy-aware rules is open."""
    holds = met(positions, tau_h, tau_o)
    return np.logical_and.reduce([holds[name] for name in conditions])


def threshold_for(positions: Positions, rate: float, tau_o: float = 0.8) -> float:
    """The `tau_h` at which the gate is open at a share `rate` of positions.

    It is 0 where too few positions meet the overlap condition for that rate.

    Raises:
        InputError: The rate is no share.
    """
    if not 0 < rate < 1:
        raise InputError(f"rate = {rate} is not a share of positions; use a number in (0, 1)")
    values = positions.values
    both = np.minimum(values["draft_entropy"], values["target_entropy"])
    highest = np.sort(np.where(gate(positions, 0.0, tau_o, ("overlap",)), both, 0.0))
    return float(highest[-1 - min(round(rate * len(highest)), len(highest) - 1)])
