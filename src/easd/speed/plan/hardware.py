"""What a machine can move and compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from easd.errors import ConfigError
from easd.speed.plan.products import ProductTable

# Over float32 entries: softmax, entropy, top tokens, noise, acceptance, residual.
_PASSES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device, and how many of them share each matrix.

    Attributes:
        memory_gb: of one device.
        bandwidth_gbs: GB/s that one device reads its memory with, by its data sheet.
        tflops: dense TFLOP/s of one device in the weights' type, by its data sheet.
        devices: in one tensor-parallel group.
        bandwidth_share, flops_share: what decoders reach of the two.
        layer_us: microseconds of a layer that neither bytes nor arithmetic explain.
        entry_ns: nanoseconds of a layer, beside its products, for each entry of each row's hidden
            state: norms, activations, sums. None on a data sheet, where they hide in the products.
        exchange_us: microseconds of one exchange between the devices; a layer has two.
        forward_us: microseconds of a forward outside its layers.
        step_us: microseconds a step spends beside the forwards and the verification.
        draw_us, verify_us: microseconds of drawing a draft token and of verifying a block that do
            not depend on the vocabulary.
        text_us: microseconds for each text and each position of its block.
        draw_ns, verify_ns: measured nanoseconds for each entry of the vocabulary to draw a draft
            token, and to verify a position; unless given, a dozen passes over float32 in memory.
        cached_ns: measured nanoseconds for each cached number that attention reads; unless given,
            its bytes by the bandwidth.
        price: of one device for an hour, in whatever currency.
        products: measured matrix products, in the place of bandwidth and arithmetic.
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
                raise ConfigError(f"{name} = {getattr(self, name)} is none; use more than 0")
        for name in ("bandwidth_share", "flops_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; use a share in (0, 1]")

    def product_seconds(self, matrices: Iterable[int], width: float, rows: float) -> float:
        """Seconds to multiply `rows` vectors with every matrix.

        Args:
            matrices: entries of each.
            width: bytes of an entry.
            rows: vectors, all texts' together.
        """
        if self.products is not None:
            sizes = Counter(matrices)
            seconds = sum(n * self.products.product(size, rows) for size, n in sizes.items())
            return seconds / self.devices
        parameters = sum(matrices)
        return max(
            self.read_seconds(parameters * width), self.compute_seconds(2 * parameters * rows)
        )

    def read_seconds(self, size: float) -> float:
        """Seconds to read `size` bytes, spread over the devices."""
        return size / (self.bandwidth_gbs * 1e9 * self.bandwidth_share * self.devices)

    def compute_seconds(self, operations: float) -> float:
        """Seconds for floating-point `operations`, spread over the devices."""
        return operations / (self.tflops * 1e12 * self.flops_share * self.devices)

    def vocabulary_seconds(self, entries: float, measured_ns: float | None) -> float:
        """Seconds to draw from or to verify distributions of so many entries; on every device."""
        if measured_ns is not None:
            return entries * measured_ns * 1e-9
        return self.read_seconds(_PASSES * 4 * entries) * self.devices

    def cache_seconds(self, numbers: float, width: float) -> float:
        """Seconds for attention to read so many cached numbers of `width` bytes."""
        if self.cached_ns is not None:
            return numbers * self.cached_ns * 1e-9 / self.devices
        return self.read_seconds(numbers * width)

    def layer_seconds(self, entries: float) -> float:
        """Seconds of a layer beside its products and its attention.

        Args:
            entries: of the hidden states of all rows.
        """
        exchanges = 2 * self.exchange_us if self.devices > 1 else 0.0
        return (self.layer_us + exchanges) * 1e-6 + entries * self.entry_ns * 1e-9


# Data sheets of the makers: memory, memory bandwidth, dense bfloat16 arithmetic.
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
    """Reads `h100`, `h100:8` for eight of them, or the path of a YAML file of `Hardware`'s fields.

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
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it holds no mapping")
        if values.get("products"):
            values["products"] = ProductTable.from_dict(values["products"])
        return Hardware(**values)
    except (TypeError, ValueError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{str(path)!r} describes no hardware ({error}); it takes "
            + ", ".join(f.name for f in fields(Hardware))
        ) from None
