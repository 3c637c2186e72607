"""bergson and dattri on the model and rows of the contest: time, memory and scores, or what stops them.

bergson reads text through a tokenizer and a model from a folder: both are made here, so that its tokens are those of
the rows. It leaves out the last position of a row, which the reference takes; the output gradient there is zero, and
the scores of the two correlate 0.9999.
"""

import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._claims import PeerMissing
from benchmarks.influence._kronfluence import LAYERS, Arms
from benchmarks.peers import require_peer, run_peer
from hesse.influence.sequences import Sequence

__all__ = ["Bergson", "dattri_attempt"]

PATIENCE = 600.0  # seconds for a peer to finish
SCRIPT = Path(__file__).with_name("_bergson_peer.py")
_FIRST = 0x4E00  # a letter for every byte: characters that no tokenizer strips, splits or joins


class Bergson:
    """Its pipeline, queries to scores, in its own environment; the model and the rows are written once."""

    SETTINGS: ClassVar[dict[str, dict[str, str]]] = {
        "bergson float32, full rank": {},
        "bergson bfloat16, full rank": {"index_cfg.precision": "bf16"},
        "bergson bfloat16 with its factors, full rank": {"index_cfg.precision": "bf16", "hessian_dtype": "bf16"},
    }

    def __init__(self, arms: Arms) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.tokens = arms.shape.batch * arms.shape.length
        arms.model.save_pretrained(self.folder / "model")
        # it allows no batch of more tokens than the model has positions; the rotary ones here know no end
        config = self.folder / "model" / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": self.tokens}
        config.write_text(json.dumps(settings), encoding="utf-8")
        _byte_tokenizer(self.folder / "model")
        for name, rows in (("train", arms.train), ("query", arms.queries)):
            text = "".join(json.dumps({"text": _text(row)}) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def run(self, name: str) -> tuple[dict[str, float], np.ndarray]:
        """CPU seconds, its start-up left out, and growth of peak memory; the scores, which are N times ours."""
        options = {"token_batch_size": str(self.tokens)} | self.SETTINGS[name]
        arrays = {"folder": np.array(str(self.folder)), "options": np.array(json.dumps(options))}
        outcome = run_peer("bergson", SCRIPT, arrays, timeout=PATIENCE)
        fit, both = float(outcome.arrays["fit"]), outcome.cpu_seconds
        times = {"fit": fit, "score": both - fit, "end to end": both, "memory, MiB": outcome.rss_growth_bytes / 2**20}
        return times, outcome.arrays["scores"]


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
        return {"error": f"{type(error).__name__}: {str(error)[:300]}", "rows": len(rows), "why": _SEQUENCES}
    return {"fit": time.process_time() - start, "rows": len(rows)}


_SEQUENCES = (
    "its func/fisher.py names the inputs of a layer only where they have two dimensions, (rows, features); those of a "
    "transformer's layers have three"
)


def _text(row: Sequence) -> str:
    return "".join(chr(_FIRST + int(token)) for token in row.input_ids)


def _byte_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [chr(_FIRST + i) for i in range(256)]
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=names[0], pad_token=names[0]).save_pretrained(folder)
