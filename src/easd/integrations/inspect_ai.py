"""Entry point `inspect_ai`, which registers the model provider `easd`.

Every `inspect` command loads this module, so it imports the provider, and with it torch, only when
a model is requested.
"""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="easd")
def easd() -> type[ModelAPI]:
    """Returns the provider, for `--model easd/smollm2 -M rule=easd -M tau_h=1.5`."""
    from easd.integrations.inspect_provider import EasdAPI

    return EasdAPI
