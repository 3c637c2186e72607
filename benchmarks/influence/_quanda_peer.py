"""quanda's metrics on scores and outcomes that were computed elsewhere; runs in the peer's own environment.

Arrays in: ``scores`` (Q, N), ``masks`` (M, N), ``outcomes`` (M, Q), ``self_influence`` (N,), ``mislabelled`` (N,).
"""

import torch

# quanda imports torchvision for its data sets of pictures; beside a torch without its compiled operators, those that
# its Python part registers have to be known by name
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from quanda.metrics.downstream_eval import MislabelingDetectionMetric  # noqa: E402
from quanda.metrics.ground_truth import LinearDatamodelingMetric  # noqa: E402


def measured(arrays):
    scores, masks = torch.from_numpy(arrays["scores"]), torch.from_numpy(arrays["masks"])
    outcomes = torch.from_numpy(arrays["outcomes"])
    net, rows = torch.nn.Linear(1, 1), torch.utils.data.TensorDataset(torch.zeros(masks.shape[1], 1))
    metric = LinearDatamodelingMetric(
        model=net,
        train_dataset=rows,
        m=len(masks),
        subset_ids=[mask.nonzero().flatten().tolist() for mask in masks],
        subset_ckpt_filenames=[""] * len(masks),
        checkpoints=[""],
        checkpoints_load_func=lambda *_: None,
    )
    metric.update(
        explanations=scores,
        test_targets=torch.zeros(len(scores), dtype=torch.int64),
        test_data=torch.zeros(len(scores), 1),
        subset_logits={i: row[:, None] for i, row in enumerate(outcomes)},
    )
    out = {"lds": torch.tensor(metric.compute()["score"]).numpy()}
    if "self_influence" in arrays:
        found = MislabelingDetectionMetric(
            model=net,
            train_dataset=rows,
            mislabeling_indices=torch.from_numpy(arrays["mislabelled"]).nonzero().flatten().tolist(),
            checkpoints=[""],
            checkpoints_load_func=lambda *_: None,
            precomputed_self_influence=torch.from_numpy(arrays["self_influence"]),
        )
        out["mislabelling"] = torch.tensor(found.compute()["score"]).numpy()
    return out
