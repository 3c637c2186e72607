"""Fitted factors as a folder to hand on: what a model hub calls pretrained.

    config.json                              settings, layers, checksums of the tensor files; written last
    factors.safetensors                      bases and eigenvalue tables; factors-00001-of-0000N if they are split,
    factors.safetensors.index.json           which tensor is in which file, where there are several
    README.md                                a card: model, revision, data, damping, limits

Nothing in it is executed: there is no pickle.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hesse
from hesse._optional import require
from hesse.curvature.block_basis import Basis
from hesse.errors import ArgumentError, ArtifactError
from hesse.influence.factors import Factors, LayerFactors, basis_of, basis_tensors
from hesse.io import FileEntry, atomic_write_bytes, atomic_write_json, load_tensors, read_json, save_tensors
from hesse.io.names import check_names

__all__ = ["load_pretrained", "save_pretrained"]

FORMAT = "hesse-factors"
SCHEMA = 1

_CONFIG, _CARD, _INDEX = "config.json", "README.md", "factors.safetensors.index.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FIELDS = {"format", "schema", "created_by", "about", "config", "parents", "num_sequences", "mean_tokens"}
_FIELDS |= {"layers", "files"}


def save_pretrained(
    factors: Factors,
    folder: Path | str,
    *,
    model: str | None = None,
    revision: str | None = None,
    data: str | None = None,
    max_shard_bytes: int = 5 << 30,
    overwrite: bool = False,
) -> Path:
    """Write a folder.

    Parameters
    ----------
    factors : Factors
        To write.
    folder, model, revision, data, max_shard_bytes, overwrite : see `Factors.save_pretrained`
        As there.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ArgumentError
        If the folder holds something else, or factors.
    """
    path = Path(folder)
    if max_shard_bytes < 1:
        raise ArgumentError(f"max_shard_bytes: expected >= 1, got {max_shard_bytes}")
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"folder: {path} is a file")
    old = _old_files(path, overwrite)
    path.mkdir(parents=True, exist_ok=True)
    layers, tensors = _lay_out(factors)
    shards = _shards(tensors, max_shard_bytes)
    files: dict[str, FileEntry] = {}
    for name, keys in shards.items():
        files[name] = save_tensors(path / name, {key: tensors[key] for key in keys}, {"format": "pt"})
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        where = {key: name for name, keys in shards.items() for key in keys}
        files[_INDEX] = atomic_write_json(path / _INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    about = {"model": model, "revision": revision, "data": data}
    atomic_write_bytes(path / _CARD, _card(factors, layers, about).encode())  # without a checksum: it may be edited
    config = {
        "format": FORMAT,
        "schema": SCHEMA,
        "created_by": {"hesse": hesse.__version__},
        "about": about,
        # without the notes of the run, which hold paths of this machine
        "config": {key: value for key, value in factors.config.items() if key != "info"},
        "parents": dict(factors.parents),
        "num_sequences": factors.num_sequences,
        "mean_tokens": factors.mean_tokens,
        "layers": layers,
        "files": {name: {"size": entry.size, "xxh3": entry.xxh3} for name, entry in files.items()},
    }
    atomic_write_json(path / _CONFIG, config)
    for name in old - set(files):
        (path / name).unlink(missing_ok=True)
    return path


def load_pretrained(
    name_or_path: Path | str, *, revision: str | None = None, device: torch.device | str = "cpu"
) -> Factors:
    """Read a folder.

    Parameters
    ----------
    name_or_path, revision, device : see `Factors.from_pretrained`
        As there.

    Returns
    -------
    Factors
        As they were.

    Raises
    ------
    ArtifactError
        If it is damaged, or not the factors of hesse.
    """
    folder = _locate(str(name_or_path), revision)
    config = _read_config(folder)
    files = {name: FileEntry(entry["size"], entry["xxh3"]) for name, entry in config["files"].items()}
    tensors: dict[str, Tensor] = {}
    for name, entry in files.items():
        if name.endswith(".safetensors"):
            tensors |= load_tensors((folder / name).resolve(), entry, device=device)  # a hub's cache has links
    try:
        layers = {name: _layer(parts, tensors) for name, parts in config["layers"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / _CONFIG}: it names what its files do not hold: {error}") from error
    return Factors(layers, config["num_sequences"], float(config["mean_tokens"]), config["config"], config["parents"])


def _lay_out(factors: Factors) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    # where each part of a layer is, and all tensors by name; a basis that several layers share is kept once
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[object, ...], str] = {}

    def place(basis: Basis | None, name: str) -> str | None:
        if basis is None:
            return None
        parts = basis_tensors(basis)
        key = tuple((part.data_ptr(), part.shape) for part in parts.values())
        if key not in known:
            known[key] = name
            tensors.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
        return known[key]

    layers: dict[str, dict[str, Any]] = {}
    for name, layer in factors.layers.items():
        if layer.table is not None:
            tensors[f"{name}.table"] = layer.table
        layers[name] = {
            "left": place(layer.left, f"{name}.left"),
            "right": place(layer.right, f"{name}.right"),
            "table": None if layer.table is None else f"{name}.table",
            "damping": layer.damping if math.isfinite(layer.damping) else "inf",
            "shape": None if layer.table is None else list(layer.table.shape),
        }
    return layers, tensors


def _layer(parts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LayerFactors:
    def basis(name: str | None) -> Basis | None:
        if name is None:
            return None
        return basis_of({key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}.vectors")})

    table = None if parts["table"] is None else tensors[parts["table"]]
    layer = LayerFactors(basis(parts["left"]), basis(parts["right"]), table, float(parts["damping"]))
    if not layer.damping >= 0:
        raise ValueError(f"a damping of {layer.damping}")
    shapes = [side.shape[0] for side in (layer.left, layer.right) if side is not None]
    if table is not None and (list(table.shape) != parts["shape"] or (shapes and shapes != list(table.shape))):
        raise ValueError(f"shapes {shapes}, {list(table.shape)} and {parts['shape']} do not fit together")
    return layer


def _shards(tensors: Mapping[str, Tensor], most: int) -> dict[str, list[str]]:
    # file name -> keys, in order, each file of at most so many bytes unless one tensor has more
    groups: list[list[str]] = [[]]
    room = most
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1].append(key)
        room -= size
    if len(groups) == 1:
        return {"factors.safetensors": groups[0]}
    return {f"factors-{i + 1:05d}-of-{len(groups):05d}.safetensors": keys for i, keys in enumerate(groups)}


def _old_files(path: Path, overwrite: bool) -> set[str]:
    if not path.exists() or not any(path.iterdir()):
        return set()
    if not (path / _CONFIG).exists():
        raise ArgumentError(f"folder: {path} is not empty and holds no factors")
    config = _read_config(path)  # foreign: refused
    if not overwrite:
        raise ArgumentError(f"folder: {path} holds factors already; choose another, or pass overwrite=True")
    return set(config["files"])


def _locate(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ArgumentError(f"factors: {name} is a file; give the folder that save_pretrained wrote")
    if not _HUB_ID.fullmatch(name):
        raise ArgumentError(f"factors: there is no folder {name}")
    hub = require("huggingface_hub", extra="hf", feature="loading factors from a hub")
    patterns = [_CONFIG, _INDEX, "*.safetensors"]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArgumentError(f"factors: {name} could not be fetched: {first}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.exists():
        raise ArtifactError(f"{folder}: no {_CONFIG}: not factors that save_pretrained wrote, or not all of them")
    config = read_json(path.resolve(), max_values=1 << 20)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not the factors of hesse; is {folder} the folder of a model?")
    schema = config.get("schema")
    if type(schema) is not int or schema > SCHEMA:
        raise ArtifactError(f"{path}: written by a newer hesse (schema {schema}); upgrade: pip install -U hesse")
    if config.keys() != _FIELDS:
        raise ArtifactError(f"{path}: damaged: fields {sorted(config.keys() ^ _FIELDS)} are missing or unknown")
    try:
        check_names(config["files"])
        good = all(type(e["size"]) is int and isinstance(e["xxh3"], str) for e in config["files"].values())
    except (ArgumentError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from error
    if not good or any("/" in name for name in config["files"]):
        raise ArtifactError(f"{path}: damaged: its files have no sizes and checksums, or lie in other folders")
    kinds = {"config": dict, "parents": dict, "num_sequences": int, "mean_tokens": (int, float)}
    for name, kind in kinds.items():
        if not isinstance(config[name], kind):
            raise ArtifactError(f"{path}: damaged: {name} is {config[name]!r}")
    return config


def _card(factors: Factors, layers: Mapping[str, Mapping[str, Any]], about: Mapping[str, str | None]) -> str:
    config = factors.config
    model, revision = about["model"] or "unknown", about["revision"] or "unknown"
    tokens = round(factors.num_sequences * factors.mean_tokens)  # 0: no factor that counts them was fitted
    seen = f", {tokens:,} positions" if tokens else ""
    head: dict[str, Any] = {
        "library_name": "hesse",
        "tags": ["influence-functions", "ek-fac", "training-data-attribution"],
        "base_model": about["model"],
        "base_model_revision": about["revision"],
        "model_hash": factors.parents.get("model"),
        "data": about["data"],
        "data_fingerprint": factors.parents.get("data"),
        "strategy": config.get("strategy"),
        "fisher": config.get("fisher"),
        "damping": config.get("damping"),
        "num_sequences": config.get("num_sequences", factors.num_sequences),
        "fitted_on": factors.num_sequences,
        "tokens_seen": tokens or None,
    }
    # JSON is YAML: quoted as it should be, whatever the names hold
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items() if value is not None)
    rows = "\n".join(
        f"| `{name}` | {'x'.join(map(str, parts['shape'] or []))} | {_number(parts['damping'])} |"
        for name, parts in layers.items()
    )
    return f"""---
{yaml}
---

# Influence factors of {model}

Fitted curvature (eigenbases of Kronecker factors and a table of eigenvalues a layer) of the training objective of
`{model}` at revision `{revision}`, for influence functions with [hesse](https://pypi.org/project/hesse/).

```python
from hesse.influence import Factors, Influence

factors = Factors.from_pretrained("...")  # this folder, or its id on a hub
```

| | |
| --- | --- |
| strategy | {config.get("strategy")}, {config.get("fisher")} labels, seed {config.get("seed")} |
| damping | {config.get("damping")} (a number alone is relative to the mean eigenvalue of each matrix) |
| data | {about["data"] or "not said"}, fingerprint `{factors.parents.get("data")}` |
| fitted on | {factors.num_sequences:,} of {head["num_sequences"]:,} sequences{seen} |
| model hash | `{factors.parents.get("model")}` |

## Limits

The factors belong to these weights: other weights, another revision or a fine-tuned copy need a fit of their own. They
hold for sequences like those they were fitted on. The layers below are tracked, all other weights count as fixed.
Blocks of different layers are taken as independent. Of the training data they hold sums only: second moments of
activations and gradients over all sequences.

| layer | shape | damping |
| --- | --- | --- |
{rows}
"""


def _number(damping: float | str) -> str:
    return "never reached" if damping == "inf" else f"{damping:.4g}"
