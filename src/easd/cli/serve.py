"""`easd serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from easd.cli.options import (
    DECODING,
    SERVER,
    CalibrationOption,
    Config,
    Force,
    ModelOptions,
    Options,
    OtherRuleOptions,
    RuleOptions,
    Set,
    fields_of,
    options,
    overrides_of_rule,
)
from easd.config import load_config
from easd.diagnose.calibration_file import read_calibration
from easd.engine.pair import Pair, fingerprints
from easd.engine.settings import Settings
from easd.serve.run import serve
from easd.serve.serving import Serving

# Every request has its own seed and number of texts; --max-batch is the server's batch.
_OF_REQUESTS = ("rule", "seed", "n", "batch_size")

if TYPE_CHECKING:
    DecodingOptions = Options
else:
    DecodingOptions = options(fields_of(Settings, without=_OF_REQUESTS), DECODING)

Integer = Annotated[int, Parameter(group=SERVER)]


def command(
    *,
    models: ModelOptions = None,
    rule: RuleOptions = None,
    set_: Set = None,
    calibration: CalibrationOption = None,
    force: Force = False,
    other_rules: OtherRuleOptions = None,
    decoding: DecodingOptions = None,
    config: Config = None,
    host: Annotated[str, Parameter(group=SERVER)] = "127.0.0.1",
    port: Integer = 8000,
    allowed_host: Annotated[list[str] | None, Parameter(group=SERVER, show_default=False)] = None,
    served_model_name: Annotated[
        str | None, Parameter(group=SERVER, show_default="the pair's")
    ] = None,
    api_key: Annotated[
        str | None, Parameter(group=SERVER, env_var="EASD_API_KEY", allow_leading_hyphen=True)
    ] = None,
    lossless_only: Annotated[
        bool, Parameter(group=SERVER, negative=(), show_default=False)
    ] = False,
    max_batch: Annotated[int | None, Parameter(group=SERVER, show_default="8")] = None,
    max_queue: Integer = 256,
    max_body: Integer = 2**20,
    max_model_len: Annotated[
        int | None, Parameter(group=SERVER, show_default="the models' context window")
    ] = None,
) -> None:
    """Serve a pair over HTTP: OpenAI's API, and a page that shows the decoding.

    Options of the rule and of decoding hold where a request says nothing.

    Args:
        host: The address to listen at.
        port: The port to listen at; 0 takes any free one.
        allowed_host: A name that clients call the server by, where a proxy passes theirs on; may
            be repeated. Requests for other names are refused, but those for `localhost`.
        served_model_name: What clients call the model.
        api_key: What clients must show as their key.
        lossless_only: Refuse rules that change what the target would write; the rule is then
            `speculative` unless another is given.
        max_batch: Texts decoded at once.
        max_queue: Texts that may wait.
        max_body: Bytes of a request's body.
        max_model_len: Tokens of a prompt and its text.
    """
    chosen = overrides_of_rule(rule, other_rules, set_=set_)
    if lossless_only and config is None:
        chosen = {"rule": "speculative", **chosen}
    overrides = {**(models or {}), **chosen, **(decoding or {})}
    if max_batch is not None:
        overrides["batch_size"] = max_batch
    calibrated = read_calibration(calibration) if calibration else None
    run = load_config(
        config,
        overrides,
        fill=calibrated.fill if calibrated else None,
        defaults=calibrated.decoding if calibrated else None,
    )

    def check(pair: Pair) -> None:
        if calibrated is not None and not force:
            calibrated.check(fingerprints(pair), run.settings)

    serving = Serving(
        config=run,
        lossless_only=lossless_only,
        served_model_name=served_model_name,
        hosts=tuple(allowed_host or ()),
        api_key=api_key,
        max_queue=max_queue,
        max_body=max_body,
        max_model_len=max_model_len,
    )
    serve(serving, host, port, check)
