"""One small call of every method on one tensor, for the table of bad inputs: slug -> call, tensor, its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["METHODS_UNDER_TEST", "Call"]

F64 = torch.float64


@dataclass(frozen=True)
class Call:
    """A method called on one tensor, all else fixed and sane."""

    run: Callable[[Tensor], Any]
    x: Tensor
    argument: str  # a regular expression: what an error must call it
    user_code: bool = False  # a function or a module of the user's meets the tensor first
    meant: Mapping[str, str] = field(default_factory=dict)  # variants that are no mistake here, and why


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(*widths: int) -> nn.Sequential:
    """A tanh network with the same weights at every call."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layer = nn.Linear(a, b, dtype=F64)
        with torch.no_grad():
            layer.weight.copy_(normal(b, a, seed=i) / a**0.5)
            layer.bias.zero_()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


LABELS = torch.arange(12) % 3


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


# linear algebra and curvature


def cg(b: Tensor) -> Any:
    from hesse.linalg import Diagonal, cg

    return cg(Diagonal(torch.arange(1.0, 9.0, dtype=F64)), b, max_steps=20).x


def sketched_lstsq(A: Tensor) -> Any:
    from hesse.linalg import sketched_lstsq

    return sketched_lstsq(A, normal(60, seed=1), sketch_size=30, generator=seeded())


def spgemm(a: Tensor) -> Any:
    from hesse.linalg import spgemm

    return spgemm(a.to_sparse_csr() if a.ndim == 2 and a.device.type == "cpu" else a, normal(6, 5).to_sparse_csr())


def hessian(v: Tensor) -> Any:
    from hesse.curvature import hessian

    net = network(3, 4, 3)
    return hessian(cross_entropy, net, [(normal(12, 3), LABELS)]) @ v


def mfac(grads: Tensor) -> Any:
    from hesse.curvature import MFACInverse

    inverse = MFACInverse(grads, 1e-2)
    return inverse @ normal(10, seed=3).to(inverse.dtype)


def hessian_alignment(features: Tensor) -> Any:
    from hesse.curvature import HessianAlignmentLoss

    criterion = HessianAlignmentLoss(network(4, 3)[0], alpha=1.0, beta=1.0)
    return criterion([(features, LABELS), (normal(12, 4, seed=5), LABELS)])[0]


def curvature_noise(x: Tensor) -> Any:
    from hesse.curvature import curvature_noise

    found = curvature_noise(cross_entropy, network(3, 3), (x, LABELS), num_directions=2, generator=seeded())
    return found.eigenvalues


def stability(x: Tensor) -> Any:
    from hesse.curvature import stability_report

    net = network(3, 4, 1)
    targets = net(normal(6, 3)).detach()
    report = stability_report(net, (x, targets), 0.1, 2, lyapunov_steps=20, generator=seeded())
    return [report.lambda_max, report.trace, report.radius, report.max_lr]


# bilevel: the point to start from


def two_levels(x0: Tensor, **more: Any) -> Any:
    from hesse.bilevel import BilevelProblem

    return BilevelProblem(
        upper=lambda x, y, batch: (y - 1).square().sum() + x.square().sum() / 10,
        lower=lambda x, y, batch: (y - x).square().sum() / 2,
        x0=x0,
        y0=torch.zeros(4, dtype=F64),
        **more,
    )


def bilevel_core(x: Tensor) -> Any:
    from hesse.bilevel import hypergradient

    return hypergradient(two_levels(torch.zeros(4, dtype=F64)), x).grad


def bo_rep(x0: Tensor) -> Any:
    from hesse.bilevel import BOREP, Budget

    return BOREP(two_levels(x0), lr=0.1).run(Budget(iterations=3)).x


def penalty(x0: Tensor) -> Any:
    from hesse.bilevel import Budget, PenaltyBilevel

    return PenaltyBilevel(two_levels(x0), lr=0.05, lr_lower=0.5).run(Budget(iterations=3)).x


def lv_hba(x0: Tensor) -> Any:
    from hesse.bilevel import LVHBA, Budget, stacked
    from hesse.linalg import Halfspace

    half = stacked(Halfspace(torch.ones(8, dtype=F64), 9.0))
    problem = two_levels(x0, constraint=lambda x, y: (x.sum() + y.sum() - 9).reshape(1), project_joint=half)
    return LVHBA(problem).run(Budget(iterations=3)).x


def bsvrb(x0: Tensor) -> Any:
    from hesse.bilevel import BSVRB, BilevelProblem, Budget

    data, sizes = normal(6, 8, 4), torch.full((6,), 8)

    def block(x: Tensor, y: Tensor, i: Tensor, batch: Tensor | None) -> Tensor:
        rows = data[i] if batch is None else data[i][batch]
        return (rows @ y - 1).square().mean() + (x.exp() * y.square()).sum() / 2

    y0 = torch.zeros(6, 4, dtype=F64)
    problem = BilevelProblem.from_blocks(block, block, x0, y0, upper_rows=sizes, lower_rows=sizes)
    solver = BSVRB(problem, 2, blocks_per_step=2, batch_size=4, lr=0.05, lr_lower=0.05)
    return solver.run(Budget(iterations=3)).x


# optimisers


def adasketch(x0: Tensor) -> Any:
    from hesse.optim import adasketch_newton

    result = adasketch_newton(
        lambda x: (x - 2).square().sum(), lambda x: x.sum().reshape(1) - 1, x0, max_steps=3, solver="exact"
    )
    return result.x


def cbo(x0: Tensor) -> Any:
    from hesse.optim import minimize_cbo

    return minimize_cbo(lambda x: x.square().sum(-1), x0, num_particles=8, max_steps=5, generator=seeded()).x


def diff2(X: Tensor) -> Any:
    from hesse.optim import DIFF2

    w = torch.zeros(4, dtype=F64, requires_grad=True)
    options = {"n_samples": 12, "rounds": 3, "clip_grad": 1.0, "clip_diff": 0.5, "noise_multipliers": (0.0, 0.0)}
    optimizer = DIFF2([("w", w)], lr=0.1, generator=seeded(), **options)
    for _ in range(2):
        optimizer.step(lambda p, row: nn.functional.softplus(row @ p["w"]).sum(), X)
    return w


def optimistic_omd(gradient: Tensor) -> Any:
    from hesse.optim import OptimisticOMD

    w = torch.zeros(4, dtype=F64, requires_grad=True)
    optimizer = OptimisticOMD([w], diameter=2.0)
    for _ in range(2):
        optimizer.play()
        w.grad = gradient.detach()
        optimizer.step()
    return w


def subgm(y: Tensor) -> Any:
    from hesse.optim import SubGM

    A = normal(40, 4, 4, seed=2)
    return SubGM(max_iter=20, random_state=0).fit(A + A.mT, y).matrix_


def sso(X: Tensor) -> Any:
    from hesse.optim import SSO

    net = network(4, 3)
    SSO(net.parameters(), eta=1.0).step(lambda: net(X), lambda z: z - 1)
    return weights_of(net)


def halpern(u0: Tensor) -> Any:
    from hesse.optim import FiniteSumOperator, vr_halpern

    centers = normal(9, 4)
    op = FiniteSumOperator(lambda u, i: u - centers[i].mean(0), 9, 4)
    return vr_halpern(op, u0, L=1.0, max_epochs=5, generator=seeded()).u


# networks


def comp_sum(logits: Tensor) -> Any:
    from hesse.nn import CompSumLoss

    return CompSumLoss(1.5)(logits, LABELS)


def convex_relu(X: Tensor) -> Any:
    from hesse.nn import ConvexReLUClassifier

    model = ConvexReLUClassifier(n_patterns=6, max_iter=20, random_state=0).fit(X, LABELS.numpy())
    return model.decision_function(normal(5, 4, seed=1))


def grassmann(features: Tensor) -> Any:
    from hesse.nn import GrassmannLinear

    return GrassmannLinear(6, 3, 2, generator=seeded(), dtype=F64)(features)


def hierarchical(X: Tensor) -> Any:
    from hesse.nn import HierarchicalPolynomialRegressor

    targets = normal(60, 3).square().sum(1).numpy()
    model = HierarchicalPolynomialRegressor(n_outer=10, random_state=0).fit(X, targets)
    return model.predict(normal(5, 3, seed=1))


def hawq(x: Tensor) -> Any:
    from hesse.compress import layer_traces

    return layer_traces(network(4, 5, 3), cross_entropy, (x, LABELS), num_probes=4, generator=seeded()).trace


def hesso(x: Tensor) -> Any:
    from hesse.compress import HESSO, DependencyGraph

    net = network(4, 6, 3)
    optimizer = HESSO(DependencyGraph(net, normal(2, 4)), lambda p: torch.optim.SGD(p, lr=0.1), 0.5, 0, 2, 1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(net, (x, LABELS)).backward()
        optimizer.step()
    return weights_of(net)


# fields, processes and transport


def dcdm(b: Tensor) -> Any:
    from hesse.linalg import PoissonStencil

    stencil = PoissonStencil(torch.ones(8, 8, dtype=torch.bool), dtype=F64)
    return pretrained().solve(stencil, b, max_steps=4, tol=1e-3).x


@cache
def pretrained() -> Any:
    from hesse.pde import DeepConjugateDirection

    return DeepConjugateDirection.pretrained(dim=2)


def gp_hm(source: Tensor) -> Any:
    from hesse.pde import GPHM, Poisson

    model = GPHM(Poisson(), [(0.0, 1.0)], 16, 0.0, n_components=3, f_max=3.0, max_iter=4).fit(source)
    return model.predict([torch.linspace(0, 1, 5, dtype=F64)])


def neural_pde(coefficients: Tensor) -> Any:
    from hesse.pde import EllipticEnergy, PreconditionedDescent, SineSeries

    source = SineSeries(torch.tensor([[1, 1], [2, 2], [1, 2]]), coefficients)
    solver = PreconditionedDescent(EllipticEnergy(2, source=source), backend="grid", num_modes=6, max_steps=5).fit()
    return solver.predict(normal(4, 2).sigmoid())


def funbat(X: Tensor) -> Any:
    from hesse.gp import FunBaT

    y = normal(30, seed=1).numpy()
    model = FunBaT(rank=2, max_iter=3, n_restarts=1, random_state=0).fit(X, y)
    return model.predict(normal(4, 2, seed=2))


def rvgp(F: Tensor) -> Any:
    from hesse.gp import RVGP

    return RVGP(sphere_bundle(), 20, optimize=False).fit(torch.arange(20), F).predict()


@cache
def sphere_bundle() -> Any:
    from hesse.gp import TangentBundle

    points = normal(80, 3)
    return TangentBundle(points / points.norm(dim=1, keepdim=True), 12)


def dds(y: Tensor) -> Any:
    from hesse.generative import DDS, DiffusionPrior, VariancePreserving
    from hesse.linalg import Dense

    prior = DiffusionPrior.from_denoiser(
        lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2), VariancePreserving(), (6,)
    )
    return DDS(prior, Dense(normal(4, 6)), num_steps=3, cg_steps=2).sample(y, generator=seeded())


def gauge(x: Tensor) -> Any:
    from hesse.generative import decompose

    split = decompose(lambda y, _: -y, x, 1.0, num_features=10, generator=seeded())
    return split.conservative(normal(5, 3, seed=1))


def singular(X: Tensor) -> Any:
    from hesse.generative import PerturbedGenerativeMLE

    torch.manual_seed(0)
    model = PerturbedGenerativeMLE(
        perturbation=0.1, latent_dim=1, hidden_sizes=(4,), max_iter=3, batch_size=10, random_state=0
    ).fit(X)
    return model.sample(4, generator=seeded())


def gaunt(x: Tensor) -> Any:
    from hesse.equivariant import gaunt_tensor_product

    return gaunt_tensor_product(x, normal(5, 9, seed=1), 2, 2, 2)


def lie(x: Tensor) -> Any:
    from hesse.equivariant import GLPlus, LieLift2d, SampleContext

    group = GLPlus(2)
    drawn = SampleContext(group, num_samples=4, sampling="independent").draw(2, generator=seeded(), dtype=F64)
    return LieLift2d(group, 2, 3, 5, padding=2, generator=seeded()).double()(x, drawn[0])


def monge_gap(X: Tensor) -> Any:
    from hesse.transport import MongeMap

    model = MongeMap(max_iter=2, batch_size=32, random_state=0).fit(X, normal(40, 2, seed=1))
    return model.transform(normal(5, 2, seed=2))


def sinkhorn_newton(M: Tensor) -> Any:
    from hesse.transport import sinkhorn_newton

    weights = torch.full((6,), 1 / 6, dtype=F64)
    return sinkhorn_newton(weights, weights, M, 0.1).plan


def mbat(v: Tensor) -> Any:
    from hesse.vsa import OrthogonalBinding

    return OrthogonalBinding(16).bind("role", v)


def policy_gradient(rewards: Tensor) -> Any:
    from hesse.rl import NPGIGT, CategoricalPolicy, TabularMDP, train

    transitions = torch.full((4, 3, 4), 0.25, dtype=F64)
    world = TabularMDP(transitions, rewards, torch.full((4,), 0.25, dtype=F64))
    policy = CategoricalPolicy(4, 3, (), bias=False, generator=seeded()).double()
    train(world, policy, NPGIGT(policy, 0.1), horizon=4, episodes=30, batch=10)
    return weights_of(policy)


SHAPELESS = dict.fromkeys(("0-d", "an axis too many", "empty"), "x may have any shape that the losses take")
LEADING = {"an axis too many": "leading axes are a batch"}

DROPPED = dict.fromkeys(("NaN", "Inf", "-Inf", "all NaN"), "records that are not finite count as zero, and are counted")

METHODS_UNDER_TEST: dict[str, Call] = {
    "adasketch_newton": Call(adasketch, normal(5), r"x0"),
    "bilevel_core": Call(bilevel_core, normal(4), r"\bx\b"),
    "bo_rep": Call(bo_rep, normal(4), r"x0|\bx\b", meant=SHAPELESS),
    "bsvrb": Call(bsvrb, normal(4), r"x0|\bx\b", meant=SHAPELESS),
    "cbo": Call(cbo, normal(5), r"x0|[Ss]tart|dim|dtype"),
    "comp_sum_losses": Call(comp_sum, normal(12, 3), r"logits|labels", meant={"-Inf": "a class ruled out"}),
    "convex_relu": Call(convex_relu, normal(12, 4), r"\bX\b|array"),
    "curvature_core": Call(hessian, normal(31), r"operand"),
    "dcdm": Call(dcdm, normal(64), r"\bb\b"),
    "dds": Call(dds, normal(4), r"\by\b"),
    "diff2": Call(diff2, normal(12, 4), r"data|record|loss", user_code=True, meant=DROPPED),
    "funbat": Call(funbat, normal(30, 2), r"\bX\b|sample"),
    "gauge_freedom": Call(gauge, normal(40, 3), r"\bx\b|samples"),
    "gaunt_tensor_product": Call(gaunt, normal(5, 9), r"\bx\b", meant=LEADING),
    "gp_hm": Call(gp_hm, normal(16), r"source", meant={"0-d": "a constant source"}),
    "grassmann_class": Call(grassmann, normal(5, 6), r"features", meant=LEADING),
    "hawq_v2": Call(hawq, normal(12, 4), r"loss|batch", user_code=True),
    "hessian_alignment": Call(hessian_alignment, normal(12, 4), r"features|domain"),
    "hesso": Call(hesso, normal(12, 4), r"grad|loss|weight", user_code=True),
    "hierarchical_polynomials": Call(hierarchical, normal(60, 3), r"\bX\b|array"),
    "lie_decompositions": Call(lie, normal(1, 2, 6, 6), r"\bx\b|features|images|input"),
    "linalg_core": Call(cg, normal(8), r"\bb\b"),
    "linf_regression": Call(sketched_lstsq, normal(60, 4), r"\bA\b|operator|matrix|tensor"),
    "lv_hba": Call(lv_hba, normal(4), r"x0|\bx\b"),
    "mbat_vsa": Call(mbat, normal(16).float(), r"expected \(\.\.\., 16\)|\bv\b", meant=LEADING),
    "mfac": Call(mfac, normal(5, 10), r"grads|gradient"),
    "monge_gap": Call(monge_gap, normal(40, 2), r"\bX\b"),
    "neural_pde": Call(neural_pde, normal(3), r"coef"),
    "optimistic_omd": Call(optimistic_omd, normal(4), r"grad", user_code=True),
    "penalty_bilevel": Call(penalty, normal(4), r"x0|\bx\b", meant=SHAPELESS),
    "policy_gradient": Call(policy_gradient, normal(4, 3), r"rewards?\b"),
    "rmt_learning_rates": Call(curvature_noise, normal(12, 3), r"data|loss|batch", user_code=True),
    "rvgp": Call(rvgp, normal(20, 3), r"\bF\b"),
    "sgd_stability": Call(stability, normal(6, 3), r"data|features|inputs|\bx\b", user_code=True),
    "singular_likelihood": Call(singular, normal(60, 3), r"\bX\b"),
    "sinkhorn_newton_sparse": Call(
        sinkhorn_newton, normal(6, 6).abs(), r"\bM\b", meant={"Inf": "a pair that may not be matched"}
    ),
    "smash_spgemm": Call(spgemm, normal(4, 6), r"\ba\b"),
    "subgm": Call(subgm, normal(40), r"\by\b|targets"),
    "target_surrogates": Call(sso, normal(12, 4), r"model|output|closure|gradient", user_code=True, meant=LEADING),
    "vr_halpern": Call(halpern, normal(4), r"u0"),
}
