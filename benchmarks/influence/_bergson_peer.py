"""bergson's EK-FAC pipeline, queries to scores, on a model and rows in a folder; runs in the peer's own environment.

Arrays in: ``folder`` with ``model/``, ``train.jsonl`` and ``query.jsonl``; ``options`` of its command line that vary.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read once, when bergson is imported

import numpy as np
from bergson import __main__ as command
from bergson.hessians import pipeline

OPTIONS = {
    "method": "kfac",
    "hessian_cfg.ev_correction": "true",
    "preprocess_cfg.ev_correction": "true",
    "use_dataset_labels": "true",
    "data.prompt_column": "text",
    "query.prompt_column": "text",
    "query.aggregation": "none",
    "score": "individual",
    "loss_reduction": "sum",
    "filter_modules": "*attn*",
}


def prepare(arrays):
    folder = Path(str(arrays["folder"]))
    shutil.rmtree(folder / "run", ignore_errors=True)
    paths = {"model": folder / "model", "data.dataset": folder / "train.jsonl", "query.dataset": folder / "query.jsonl"}
    options = OPTIONS | {name: str(path) for name, path in paths.items()} | json.loads(str(arrays["options"]))
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return folder / "run", ["bergson", "ekfac", str(folder / "run"), *arguments]


def measured(state):
    run, arguments = state
    fitted, work = [], pipeline.approximate_hessians

    def timed(*args, **options):
        start = time.process_time()
        work(*args, **options)
        fitted.append(time.process_time() - start)

    pipeline.approximate_hessians = timed
    sys.argv = arguments
    command.main()
    kind = json.loads((run / "scores" / "info.json").read_text())["dtype"]
    pairs = np.fromfile(run / "scores" / "scores.bin", dtype=np.dtype(kind))
    count = len(kind["names"]) // 2
    if not all(pairs[f"written_{i}"].all() for i in range(count)):
        raise RuntimeError("bergson left scores out")
    scores = np.stack([pairs[f"score_{i}"] for i in range(count)]).astype(np.float64)
    return {"scores": scores, "fit": np.array(sum(fitted))}
