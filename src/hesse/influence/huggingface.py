"""Load a causal language model with its tokenizer: from a folder, the Hugging Face hub, or a GGUF file."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hesse._optional import require
from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.experts import split_experts
from hesse.io import hash_bytes

__all__ = ["DTYPES", "default_max_length", "load_model", "load_skeleton", "load_tokenizer", "tokenizer_hash"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""Precisions of forward and backward; factors and scores are float32 or, under "float64", float64."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_model(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str = "sdpa",
    device: str | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model, in eval mode, and its tokenizer.

    Parameters
    ----------
    name_or_path : str or Path
        A folder with config and weights; a ``.gguf`` file, or a folder whose only model is one; or a hub id. A path
        that exists is never looked up on the hub.
    dtype : {"float32", "bfloat16", "float64"}, default "float32"
        Precision of the weights. GGUF weights are unpacked to it.
    revision : str, optional
        Branch, tag or commit on the hub. Default: its main branch.
    trust_remote_code : bool, default False
        Run Python code that comes with the model. It needs ``revision`` to be a full commit, so that the code run is
        the code that was read.
    attention : str, default "sdpa"
        Attention implementation: torch's own, which has no further dependency.
    device : str, optional
        Default: the GPU if there is one, else the CPU.

    Returns
    -------
    model : PreTrainedModel
        On the device, in eval mode; the experts of a mixture are split, see `split_experts`.
    tokenizer : PreTrainedTokenizerBase
        The one stored with the model.

    Raises
    ------
    ArgumentError
        If there is no such model, it cannot be reached, it lacks weights, or an argument is out of range.
    ArtifactError
        If its files are damaged.
    MissingDependencyError
        If transformers is not installed.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    where = _locate(str(name_or_path), revision, trust_remote_code)
    transformers = require("transformers", extra="hf", feature="loading a language model")
    options = {"dtype": DTYPES[dtype], "attn_implementation": attention, "output_loading_info": True}
    model, info = _load(transformers.AutoModelForCausalLM, where, name_or_path, options)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ArgumentError(
            f"model: {name_or_path} has no weights for {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}: "
            "they would be random. It may not be a causal language model."
        )
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return split_experts(model).to(target).eval(), _load(transformers.AutoTokenizer, where, name_or_path, {})


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model alone; arguments and errors as for `load_model`.

    Parameters
    ----------
    name_or_path : str or Path
        Folder, GGUF file or hub id.
    revision : str, optional
        Branch, tag or commit on the hub.
    trust_remote_code : bool, default False
        Run Python code that comes with it; needs a full commit as ``revision``.

    Returns
    -------
    PreTrainedTokenizerBase
        The tokenizer.
    """
    where = _locate(str(name_or_path), revision, trust_remote_code)
    transformers = require("transformers", extra="hf", feature="loading a tokenizer")
    return _load(transformers.AutoTokenizer, where, name_or_path, {})


def load_skeleton(name_or_path: str | Path, *, dtype: str = "float32") -> Any:
    """Build a causal language model without weights, on the meta device: enough to plan with.

    Parameters
    ----------
    name_or_path : str or Path
        A folder, hub id, or a ``config.json`` by itself.
    dtype : {"float32", "bfloat16", "float64"}, default "float32"
        That the weights would have.

    Returns
    -------
    PreTrainedModel
        In eval mode; the experts of a mixture are split.

    Raises
    ------
    ArgumentError
        If there is no such model, or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    path = Path(name_or_path).expanduser()
    name = path.parent if path.name == "config.json" and path.is_file() else name_or_path
    where = _locate(str(name), None, trust_remote_code=False)
    transformers = require("transformers", extra="hf", feature="planning for a language model")
    config = _load(transformers.AutoConfig, where, name, {})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    return split_experts(model).eval()


def default_max_length(model: Any, limit: int = 512) -> int:
    """Return min(limit, positions the model was made for).

    Parameters
    ----------
    model : PreTrainedModel
        With a ``config``.
    limit : int, default 512
        Longer sequences cost more memory, and blur which part of a document mattered.

    Returns
    -------
    int
        Tokens.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(limit, positions) if isinstance(positions, int) and positions > 1 else limit


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what decides a tokenizer's tokens, so that a run's queries are cut as its training data was.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A fast one is hashed with its whole pipeline, a slow one with its class and vocabulary.

    Returns
    -------
    str
        xxh3-128 in hexadecimal.
    """
    pipeline = getattr(tokenizer, "backend_tokenizer", None)
    text = repr(sorted(tokenizer.get_vocab().items())) if pipeline is None else pipeline.to_str()
    return hash_bytes(f"{type(tokenizer).__name__}\n{text}".encode())


def _locate(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    # arguments of from_pretrained that say what to load
    if trust_remote_code and not (revision and _COMMIT.fullmatch(revision)):
        raise ArgumentError(
            f"trust_remote_code: it needs revision to be a full commit (40 hexadecimal digits), got {revision!r}"
        )
    path = Path(name).expanduser()
    where: dict[str, Any] = {"pretrained_model_name_or_path": name, "trust_remote_code": trust_remote_code}
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ArgumentError(f"model: {name} is a file; give its folder, or a .gguf file")
        require("gguf", extra="hf", feature="reading a .gguf model")
        return where | {
            "pretrained_model_name_or_path": str(path.parent),
            "gguf_file": path.name,
            "local_files_only": True,
        }
    if path.is_dir():
        return where | _in_folder(path)
    if not _HUB_ID.fullmatch(name):
        raise ArgumentError(f"model: there is no file or folder {name}")
    if revision is not None:
        where["revision"] = revision
    if trust_remote_code:
        where["code_revision"] = revision
    return where


def _in_folder(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if (path / "config.json").is_file():
        return found
    models = sorted(file.name for file in path.glob("*.gguf"))
    if len(models) == 1:
        require("gguf", extra="hf", feature="reading a .gguf model")
        return found | {"gguf_file": models[0]}
    if models:
        raise ArgumentError(f"model: {path} holds {len(models)} .gguf files ({', '.join(models)}); name one of them")
    raise ArgumentError(f"model: {path} holds no model: neither config.json nor a .gguf file")


def _load(kind: Any, where: dict[str, Any], name: str | Path, options: dict[str, Any]) -> Any:
    try:
        return kind.from_pretrained(**where, **options)
    except SafetensorError as error:
        raise ArtifactError(f"model: the weights in {name} are damaged ({error}); fetch or save them again") from error
    except Exception as error:
        # tokenizers raises a bare Exception for a malformed file; anything else is a fault that must show
        if not isinstance(error, (OSError, ValueError, KeyError, ImportError)) and type(error) is not Exception:
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = (
            ""
            if "local_files_only" in where
            else " A hub id needs the network, unless the model is in the local cache."
        )
        raise ArgumentError(f"model: {name} could not be loaded: {first}{hint}") from error
