"""`hesse influence fit`: measure the curvature of a model on its training data, once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hesse.cli._report import emit_json, say

__all__ = ["fit"]

Strategy = Literal["ekfac", "kfac", "shampoo", "diagonal", "identity", "source"]
Fisher = Literal["sampled", "empirical", "exact"]
Positions = Literal["gradient", "attended"]
Dtype = Literal["float32", "bfloat16", "float64"]


def fit(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file or Hugging Face id of a causal language model.")],
    data: Annotated[
        str, typer.Option("--data", help="Training data: .jsonl, .txt, .parquet, or a data set's folder or id.")
    ],
    run: Annotated[Path, typer.Option("--run", "--run-dir", help="Folder of the run; made if missing.")],
    modules: Annotated[str, typer.Option(help="mlp, attention, all-linear, or a regular expression.")] = "mlp",
    strategy: Annotated[
        Strategy,
        typer.Option(help="How curvature is approximated within a block; source follows the training run of --record."),
    ] = "ekfac",
    record: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Of --strategy source: what a recorder of the training filled."
        ),
    ] = None,
    segments: Annotated[
        int, typer.Option(min=1, help="Of --strategy source: stretches that training is cut into.")
    ] = 3,
    fisher: Annotated[Fisher, typer.Option(help="Which labels the curvature is measured with.")] = "sampled",
    damping: Annotated[str, typer.Option(help="Times each matrix's mean eigenvalue; abs:X is absolute.")] = "0.1",
    positions: Annotated[Positions, typer.Option(help="Which positions enter the input factor.")] = "gradient",
    blocks: Annotated[int, typer.Option(min=1, help="Diagonal blocks that each factor is cut into.")] = 1,
    max_sequences: Annotated[
        int, typer.Option(min=1, help="Measure on a random subset of this size, if there are more sequences.")
    ] = 100_000,
    dtype: Annotated[Dtype, typer.Option(help="Precision of forward and backward.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled labels.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run with other settings.")] = False,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a sequence. Default: 512, or the model's positions if fewer.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens a batch.")] = 4096,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code; needs a full commit as --revision.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fit the curvature of a model on its training data. The same command again resumes.

    Example: hesse influence fit runs/model --data train.jsonl --run runs/demo
    """  # noqa: DOC501 - it is the help text
    from hesse.cli._model import build, cut, load, local_or_id
    from hesse.errors import ArgumentError
    from hesse.influence.corpus import keep_corpus
    from hesse.influence.distributed import join_team
    from hesse.influence.factors import parse_damping
    from hesse.influence.huggingface import tokenizer_hash
    from hesse.influence.run import open_folder
    from hesse.influence.sequences import read_rows

    if (strategy == "source") != (record is not None):
        raise ArgumentError("record: --strategy source follows a recorded training run; pass both, or neither")
    parse_damping(damping)  # a typing mistake is worth knowing before a model is loaded
    with join_team() as team:  # of one process, unless torchrun started it
        rows = read_rows(data)
        info = {"model": local_or_id(model), "revision": revision, "dtype": dtype, "data": data, "modules": modules}
        if record is not None:
            info["record"] = str(record.resolve())
        network, tokenizer = load(info, trust_remote_code=trust_remote_code)
        sequences, length = cut(rows, network, tokenizer, max_length)
        settings = {
            "strategy": strategy, "fisher": fisher, "damping": damping, "positions": positions, "blocks": blocks,
            "seed": seed, "segments": segments, "info": info,
        }  # fmt: skip
        influence = build(network, settings, modules)
        factors = influence.fit(
            sequences,
            run,
            max_sequences=max_sequences,
            batch_tokens=batch_tokens,
            overwrite=overwrite,
            team=team,
            info=info | {"max_length": length, "rows": len(rows), "tokenizer": tokenizer_hash(tokenizer)},
        )
        team.first(lambda: keep_corpus(run, "train", sequences))
        counts = open_folder(run).stage("fit").get("counts", {})
        thin = [
            name for name, layer in influence.layers.items() if name in counts and counts[name]["A"] < layer.columns
        ]
        if thin and team.is_first:
            say(
                f"{len(thin):,} of {len(influence.layers):,} matrices have more inputs than there were token positions "
                "to measure them on: what no position showed is left to the damping; more sequences would show it"
            )
        result = {
            "run": str(run),
            "model": info["model"],
            "rows": len(rows),
            "sequences": len(sequences),
            "fitted_on": factors.num_sequences,
            "layers": list(factors.layers),
            "strategy": strategy,
            "damping": damping,
        }
        if not team.is_first:
            return
        if as_json:
            emit_json(result)
        else:
            if record is not None:
                say(f"followed {record} in {len(factors.layers) // len(influence.layers):,} segments")
            say(f"fitted {len(factors.layers):,} matrices on {factors.num_sequences:,} sequences: {run}")
