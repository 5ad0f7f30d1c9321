"""Bandwidth, arithmetic and overheads of a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from easd.errors import ConfigError
from easd.parsing import parse_yaml

# Passes over float32 entries: softmax, entropy, top tokens, noise, acceptance, residual.
_PASSES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTable:
    """Measured times of matrix products, interpolated on a log scale.

    A small matrix costs its kernel launch and a large one its bytes, so the table spans both. Above
    its range seconds grow in proportion; below it they are constant.

    Attributes:
        rows: numbers of vectors multiplied at once, ascending.
        entries: matrix sizes, ascending.
        seconds: [rows][entries].
    """

    rows: tuple[int, ...]
    entries: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if [len(row) for row in self.seconds] != [len(self.entries)] * len(self.rows):
            raise ConfigError(
                f"products need {len(self.rows)} lists of {len(self.entries)} seconds: for each "
                "number of rows the seconds of every size"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Sequence]) -> ProductTable:
        """Builds a table from the lists of a YAML file."""
        rows = tuple(tuple(float(seconds) for seconds in row) for row in values["seconds"])
        return cls(
            rows=tuple(map(int, values["rows"])),
            entries=tuple(map(int, values["entries"])),
            seconds=rows,
        )

    def product(self, entries: float, rows: float) -> float:
        """Returns seconds to multiply `rows` vectors with a matrix of `entries` entries."""
        by_rows = [
            np.interp(np.log(entries), np.log(self.entries), np.log(row)) for row in self.seconds
        ]
        seconds = np.exp(np.interp(np.log(rows), np.log(self.rows), by_rows))
        beyond = max(1.0, entries / self.entries[-1]) * max(1.0, rows / self.rows[-1])
        return float(seconds * beyond)

    def operations_per_second(self) -> float:
        """Returns FLOP/s of the largest product."""
        return 2 * self.rows[-1] * self.entries[-1] / self.seconds[-1][-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A tensor-parallel group of equal devices, from a data sheet or measured.

    Attributes:
        memory_gb: memory per device.
        bandwidth_gbs: memory bandwidth per device, in GB/s.
        tflops: dense TFLOP/s per device in the weights' type.
        devices: number of devices in the tensor-parallel group.
        bandwidth_share, flops_share: fractions of the two that decoding reaches.
        layer_us: fixed overhead per layer, in microseconds.
        entry_ns: nanoseconds per layer and hidden-state entry outside matrix products (norms,
            activations, sums). Data sheets leave it at 0.
        exchange_us: microseconds per all-reduce between devices; a layer has two.
        forward_us: fixed overhead per forward outside its layers, in microseconds.
        step_us: fixed overhead per step outside forwards and verification, in microseconds.
        draw_us, verify_us: fixed overhead, in microseconds, of drawing a draft token and of
            verifying a block.
        text_us: microseconds per text and position of its block.
        draw_ns, verify_ns: nanoseconds per vocabulary entry to draw a draft token and to verify a
            position; None assumes a dozen passes over float32 in memory.
        cached_ns: nanoseconds per cached number that attention reads; None derives it from the
            bandwidth.
        price: per device and hour, in any currency.
        products: measured matrix products, which replace bandwidth and arithmetic.
    """

    name: str
    memory_gb: float
    bandwidth_gbs: float
    tflops: float
    devices: int = 1
    bandwidth_share: float = 0.8
    flops_share: float = 0.6
    layer_us: float = 15.0
    entry_ns: float = 0.0
    exchange_us: float = 10.0
    forward_us: float = 0.0
    step_us: float = 300.0
    draw_us: float = 0.0
    verify_us: float = 0.0
    text_us: float = 0.0
    draw_ns: float | None = None
    verify_ns: float | None = None
    cached_ns: float | None = None
    price: float | None = None
    products: ProductTable | None = None

    def __post_init__(self) -> None:
        for name in ("memory_gb", "bandwidth_gbs", "tflops", "devices"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is too small; use more than 0")
        for name in ("bandwidth_share", "flops_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; use a share in (0, 1]")

    def product_seconds(self, matrices: Iterable[int], width: float, rows: float) -> float:
        """Returns seconds to multiply `rows` vectors with matrices of entries of `width` bytes."""
        if self.products is not None:
            sizes = Counter(matrices)
            seconds = sum(n * self.products.product(size, rows) for size, n in sizes.items())
            return seconds / self.devices
        parameters = sum(matrices)
        return max(
            self.read_seconds(parameters * width), self.compute_seconds(2 * parameters * rows)
        )

    def read_seconds(self, size: float) -> float:
        """Returns seconds to read `size` bytes, split between the devices."""
        return size / (self.bandwidth_gbs * 1e9 * self.bandwidth_share * self.devices)

    def compute_seconds(self, operations: float) -> float:
        """Returns seconds for floating-point `operations`, split between the devices."""
        return operations / (self.tflops * 1e12 * self.flops_share * self.devices)

    def vocabulary_seconds(self, entries: float, measured_ns: float | None) -> float:
        """Returns seconds to draw from or verify distributions, which every device does in full."""
        if measured_ns is not None:
            return entries * measured_ns * 1e-9
        return self.read_seconds(_PASSES * 4 * entries) * self.devices

    def cache_seconds(self, numbers: float, width: float) -> float:
        """Returns seconds for attention to read `numbers` cached numbers of `width` bytes."""
        if self.cached_ns is not None:
            return numbers * self.cached_ns * 1e-9 / self.devices
        return self.read_seconds(numbers * width)

    def layer_seconds(self, entries: float) -> float:
        """Returns seconds of a layer outside products and attention; `entries` of hidden states."""
        exchanges = 2 * self.exchange_us if self.devices > 1 else 0.0
        return (self.layer_us + exchanges) * 1e-6 + entries * self.entry_ns * 1e-9


# From the vendors' data sheets: memory, memory bandwidth, dense bfloat16 arithmetic.
HARDWARE = {
    each.name: each
    for each in (
        Hardware(name="a100", memory_gb=80, bandwidth_gbs=2039, tflops=312),
        Hardware(name="h100", memory_gb=80, bandwidth_gbs=3350, tflops=989),
        Hardware(name="h200", memory_gb=141, bandwidth_gbs=4800, tflops=989),
        Hardware(name="l4", memory_gb=24, bandwidth_gbs=300, tflops=121),
        Hardware(name="l40s", memory_gb=48, bandwidth_gbs=864, tflops=362),
        Hardware(name="rtx4090", memory_gb=24, bandwidth_gbs=1008, tflops=165),
    )
}


def parse_hardware(text: str, price: float | None = None) -> Hardware:
    """Parses `h100`, `h100:8` for eight of them, or the path of a YAML file of `Hardware` fields.

    Raises:
        ConfigError: There is no such device or file, or a field does not fit.
    """
    if Path(text).is_file():
        found = _from_file(Path(text))
    else:
        name, _, count = text.partition(":")
        if name not in HARDWARE:
            raise ConfigError(
                f"{name!r} is no device known here; choose from {', '.join(HARDWARE)}, or give a "
                f"YAML file with {', '.join(f.name for f in fields(Hardware)[:4])}, ..."
            )
        if count and not (count.isdigit() and int(count)):
            raise ConfigError(f"{text!r}: {count!r} is no number of devices; write {name}:8")
        found = replace(HARDWARE[name], devices=int(count or 1))
    return found if price is None else replace(found, price=price)


def _from_file(path: Path) -> Hardware:
    try:
        values: Any = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it holds no mapping")
        if values.get("products"):
            values["products"] = ProductTable.from_dict(values["products"])
        return Hardware(**values)
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{str(path)!r} describes no hardware ({error}); it takes "
            + ", ".join(f.name for f in fields(Hardware))
        ) from None
