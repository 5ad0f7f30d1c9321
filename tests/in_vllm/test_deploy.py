"""vLLM understands deploy/serve.yaml."""

from pathlib import Path

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

SETTINGS = Path(__file__).parents[2] / "deploy" / "serve.yaml"


def test_vllm_reads_the_settings():
    parser = make_arg_parser(FlexibleArgumentParser())
    given = parser.parse_args(["--config", str(SETTINGS)])
    validate_parsed_serve_args(given)
    assert given.tensor_parallel_size == given.speculative_config["draft_tensor_parallel_size"] == 4
    assert given.speculative_config["draft_sample_method"] == "probabilistic"
    assert given.additional_config == {"easd": {"tau_h": 1.5, "tau_o": 0.8}}
