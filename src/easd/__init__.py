"""Entropy-aware speculative decoding: exact rules, a batched engine, evidence.

The names below load on first use, so that importing the package, or a part of it that works on
tables alone, does not import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easd.core.rules import EASD as EASD
    from easd.core.rules import RULES as RULES
    from easd.core.rules import RandomRefusal as RandomRefusal
    from easd.core.rules import Speculative as Speculative
    from easd.core.rules import make_rule as make_rule
    from easd.engine.generate import Generation as Generation
    from easd.engine.generate import generate as generate
    from easd.engine.pair import Pair as Pair
    from easd.engine.settings import Settings as Settings
    from easd.integrations.transformers import custom_generate as custom_generate
    from easd.pairs.loading import PAIRS as PAIRS
    from easd.pairs.loading import load_models as load_models
    from easd.pairs.loading import load_pair as load_pair

_HOMES = {
    "easd.core.rules": ("EASD", "RULES", "RandomRefusal", "Speculative", "make_rule"),
    "easd.engine.generate": ("Generation", "generate"),
    "easd.engine.pair": ("Pair",),
    "easd.pairs.loading": ("PAIRS", "load_models", "load_pair"),
    "easd.engine.settings": ("Settings",),
    "easd.integrations.transformers": ("custom_generate",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "EASD",
    "PAIRS",
    "RULES",
    "Generation",
    "Pair",
    "RandomRefusal",
    "Settings",
    "Speculative",
    "custom_generate",
    "generate",
    "load_models",
    "load_pair",
    "make_rule",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    if name == "__version__":
        return version("easd")
    raise AttributeError(f"module 'easd' has no attribute {name!r}")
