"""Networks trained on coarse labels of the digits, and what a linear probe still reads off their features.

A seed decides the split, the partition of the ten digits into three, the start and the order of batches: the same for
every arm, so that differences between arms are paired.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.data import Split, digits
from benchmarks.peers import require_peer
from hesse.linalg import orthonormalize
from hesse.nn.grassmann import GrassmannLinear, intra_class_variability
from hesse.optim.riemannian import RiemannianSGD

__all__ = ["HEADS", "RIVALS", "Scores", "train"]

FEATURES, SUPER_CLASSES, GAMMA = 64, 3, 25.0
BATCH, LR, MOMENTUM, DECAY = 64, 0.05, 0.9, 1e-4
PROBE_C = (1.0, 10.0, 100.0, 1000.0)
SHOTS, SHOT_DRAWS = 5, 10


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one network: per cent on the test digits, and degrees."""

    coarse: float
    fine: float
    five_shot: float
    angle: float


class CosineLinear(nn.Module):
    """Logits gamma cos(f, w_c): softmax over directions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SUPER_CLASSES, FEATURES))

    def forward(self, features: Tensor) -> Tensor:
        return GAMMA * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class StiefelHead(nn.Module):
    """The same logits as GrassmannLinear, with geoopt's parameter on the Stiefel manifold."""

    def __init__(self, subspace_dim: int) -> None:
        super().__init__()
        geoopt = require_peer("geoopt")
        start = orthonormalize(torch.randn(SUPER_CLASSES, FEATURES, subspace_dim))
        self.weight = geoopt.ManifoldParameter(start, manifold=geoopt.EuclideanStiefel())

    def forward(self, features: Tensor) -> Tensor:
        z = torch.einsum("nd,cdk->nck", F.normalize(features, dim=-1), self.weight)
        return GAMMA * (z.square().sum(-1) + 1e-12).sqrt()


def _grassmann(k: int) -> Callable[[], nn.Module]:
    return lambda: GrassmannLinear(FEATURES, SUPER_CLASSES, k, GAMMA)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(FEATURES, SUPER_CLASSES),
    "cosine": CosineLinear,
    **{f"k={k}": _grassmann(k) for k in (1, 2, 4, 8, 16)},
}
RIVALS: dict[str, Callable[[], nn.Module]] = {
    "Euclidean SGD + QR, k=8": _grassmann(8),
    "geoopt, k=8": lambda: StiefelHead(8),
}


def _layer(fan_in: int, fan_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()


def _optimizer(model: nn.Module, arm: str) -> Optimizer:
    if arm.startswith("geoopt"):
        geoopt = require_peer("geoopt")
        points = [p for p in model.parameters() if isinstance(p, geoopt.ManifoldParameter)]
        rest = [p for p in model.parameters() if not isinstance(p, geoopt.ManifoldParameter)]
        groups = [{"params": rest, "weight_decay": DECAY}, {"params": points}]
        return geoopt.optim.RiemannianSGD(groups, lr=LR, momentum=MOMENTUM, stabilize=5)
    manifold = "euclidean" if arm.startswith("Euclidean") else "grassmann"
    return RiemannianSGD(model.parameters(), LR, MOMENTUM, DECAY, manifold=manifold)


@cache
def train(arm: str, seed: int, epochs: int) -> Scores:
    """Pre-train one arm on the coarse labels, then judge its frozen, normalised features."""
    data = digits(seed=seed, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coarse_of = torch.arange(10)[torch.randperm(10)] % SUPER_CLASSES
        backbone = nn.Sequential(*_layer(64, 256), *_layer(256, 256), *_layer(256, FEATURES))
        model = nn.Sequential(backbone, (HEADS | RIVALS)[arm]())
        batches = torch.Generator().manual_seed(seed + 1)
        optimizer = _optimizer(model, arm)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(data.train_x) // BATCH))
        for _ in range(epochs):
            order = torch.randperm(len(data.train_x), generator=batches)
            for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(data.train_x[rows]), coarse_of[data.train_y[rows]]).backward()
                optimizer.step()
                schedule.step()
    model.eval()
    with torch.no_grad():
        coarse = (model(data.test_x).argmax(1) == coarse_of[data.test_y]).float().mean()
        seen, unseen = (F.normalize(backbone(x), dim=-1).double() for x in (data.train_x, data.test_x))
        alive = unseen.any(dim=1)  # a zero vector, which rectified features may be, has no angle
        angle = intra_class_variability(unseen[alive], coarse_of[data.test_y[alive]])
    fine, five_shot = _probe(seen, unseen, data, seed)
    return Scores(100 * float(coarse), fine, five_shot, math.degrees(float(angle)))


def _probe(seen: Tensor, unseen: Tensor, data: Split, seed: int) -> tuple[float, float]:
    """Logistic regression on the ten digits, its strength chosen on a quarter of the training rows; and with 5 shots.

    The features of all arms have unit length, so that one strength means the same for each.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = seen.numpy(), data.train_y.numpy()

    def fitted(rows: slice | Tensor, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=2000, tol=1e-3).fit(x[rows], y[rows])

    chosen = max(PROBE_C, key=lambda strength: fitted(slice(300, None), strength).score(x[:300], y[:300]))
    fine = fitted(slice(None), chosen).score(unseen.numpy(), data.test_y.numpy())
    generator = torch.Generator().manual_seed(seed + 2)
    few = []
    for _ in range(SHOT_DRAWS):
        order = torch.randperm(len(x), generator=generator)
        rows = torch.cat([order[data.train_y[order] == digit][:SHOTS] for digit in range(10)])
        few.append(fitted(rows, 10.0).score(unseen.numpy(), data.test_y.numpy()))
    return 100 * fine, 100 * sum(few) / len(few)
