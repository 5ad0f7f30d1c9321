"""`easd serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from easd.cli.options import (
    DECODING,
    SERVER,
    Config,
    Flag,
    Options,
    RunOptions,
    fields_of,
    options,
)
from easd.engine.settings import Settings
from easd.serve.run import serve
from easd.serve.serving import Serving

# Every request has a seed and a number of texts; --max-batch is the server's batch size.
_OF_REQUESTS = ("rule", "seed", "n", "batch_size")

if TYPE_CHECKING:
    DecodingOptions = Options
else:
    DecodingOptions = options(fields_of(Settings, without=_OF_REQUESTS), DECODING)

Integer = Annotated[int, Parameter(group=SERVER)]


def command(
    *,
    asked: RunOptions | None = None,
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
    lossless_only: Annotated[bool, Flag(group=SERVER)] = False,
    max_batch: Annotated[int | None, Parameter(group=SERVER, show_default="8")] = None,
    max_queue: Integer = 256,
    prefill_tokens: Integer = 256,
    max_body: Integer = 2**20,
    max_model_len: Annotated[
        int | None, Parameter(group=SERVER, show_default="the models' context window")
    ] = None,
) -> None:
    """Serve a pair over HTTP: OpenAI's API, and a page that shows the decoding.

    Options of the rule and of decoding are defaults for requests.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 takes any free one.
        allowed_host: A host name that clients use, for a server behind a proxy; may be repeated.
            Requests for other names than these and `localhost` are refused.
        served_model_name: The model's name for clients.
        api_key: The key that clients must send.
        lossless_only: Refuse rules that change the target's output distribution; the default rule
            is then `speculative`.
        max_batch: Maximum number of texts decoded at once.
        max_queue: Maximum number of texts that wait.
        prefill_tokens: Maximum number of prompt tokens cached between two steps of running texts.
            With fewer, a long prompt delays streams less and itself more.
        max_body: Maximum size of a request's body in bytes.
        max_model_len: Maximum number of tokens of a prompt and its text.
    """
    asked = asked or RunOptions()
    default_rule = "speculative" if lossless_only and config is None else None
    batch = {} if max_batch is None else {"batch_size": max_batch}
    run = asked.load(config, {**(decoding or {}), **batch}, default_rule)
    serving = Serving(
        config=run,
        lossless_only=lossless_only,
        served_model_name=served_model_name,
        hosts=tuple(allowed_host or ()),
        api_key=api_key,
        max_queue=max_queue,
        prefill_tokens=prefill_tokens,
        max_body=max_body,
        max_model_len=max_model_len,
    )
    serve(serving, host, port, lambda pair: asked.check(pair, run))
