"""Attempts to run dattri and bergson on the model and rows of the contest; what stops them goes into the table.

Neither has kronfluence's switches for the same factors (dattri's loss is a batch mean without positions, bergson reads
text through a tokenizer), so their figures stand in the table without a fidelity, and no claim rests on them.
"""

import contextlib
import io
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._claims import PeerMissing
from benchmarks.influence._kronfluence import LAYERS, Arms
from benchmarks.peers import THREAD_VARIABLES, peer_python, require_peer

__all__ = ["bergson_attempt", "dattri_attempt"]

PATIENCE = 600.0  # seconds for a peer to finish its fit


def dattri_attempt(arms: Arms) -> dict[str, Any]:
    """CPU seconds of its EK-FAC fit on whole rows, in this process; or the error it ended with."""
    try:
        require_peer("dattri")
        from dattri.algorithm.influence_function import IFAttributorEKFAC
        from dattri.task import AttributionTask
    except (PeerMissing, ImportError) as error:
        return {"error": str(error)}
    model, length = arms.model, arms.shape.length
    whole = [row.input_ids for row in arms.train if len(row) == length] or [arms.train[0].input_ids]
    rows = torch.stack([torch.as_tensor(ids) for ids in whole])
    data = DataLoader(TensorDataset(rows), batch_size=arms.shape.batch)

    def loss(parameters: dict[str, torch.Tensor], batch: tuple[torch.Tensor]) -> torch.Tensor:
        options = {"input_ids": batch[0], "use_cache": False}
        logits = torch.func.functional_call(model, parameters, (), options).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten(), reduction="sum") / len(batch[0])

    names = [f"model.layers.{i}.{n}" for i in range(arms.shape.blocks) for n in LAYERS[arms.modules]]
    start = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
            IFAttributorEKFAC(task, module_name=names, damping=1e-3).cache(data)
    except Exception as error:  # whatever stops another library is what the table is to say
        return {"error": f"{type(error).__name__}: {str(error)[:300]}", "rows": len(rows)}
    return {"fit": time.process_time() - start, "rows": len(rows)}


def bergson_attempt(arms: Arms) -> dict[str, Any]:
    """CPU seconds of its EK-FAC fit as a command, start-up counted and given apart; or the error it ended with."""
    try:
        command = peer_python("bergson").with_name("bergson")
    except PeerMissing as error:
        return {"error": str(error)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arms.model.save_pretrained(folder / "model")
        _byte_tokenizer(folder / "model")
        texts = ["".join(chr(max(32, int(token))) for token in row.input_ids) for row in arms.train]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "train.jsonl").write_text(lines, encoding="utf-8")
        options = {
            "method": "kfac",
            "ev_correction": "true",
            "use_dataset_labels": "true",
            "model": folder / "model",
            "dataset": folder / "train.jsonl",
            "prompt_column": "text",
            "token_batch_size": 2 * arms.shape.length,  # no more than the model's positions is allowed
            "loss_reduction": "sum",
            "filter_modules": "*attn*",
        }
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        start_up = _run([str(command), "--help"])
        outcome = _run([str(command), "hessian", str(folder / "run"), *arguments])
    if "error" in outcome:
        return outcome
    return {"fit": outcome["seconds"], "of which start-up": start_up.get("seconds", 0.0), "rows": len(texts)}


def _byte_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [f"<{i}>" if i < 32 else chr(i) for i in range(256)]
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=names[0], pad_token=names[0]).save_pretrained(folder)


def _run(command: list[str]) -> dict[str, Any]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | offline
    environment.pop("PYTHONPATH", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {PATIENCE:g} s"}
    if child.returncode:
        return {"error": child.stderr[-300:]}
    return {"seconds": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before}
