"""The networks, the training runs and the judges of ``comp_sum_losses``: one budget for every arm."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import Split, flip_labels
from benchmarks.peers import require_peer
from hesse.nn.attacks import PGDAttack, ensemble_attack, pgd
from hesse.nn.comp_sum import mart_loss, pgd_at_loss, smooth_adversarial_loss, trades_loss, warmed_up

EPS = 0.15  # of pixels in [0, 1]
BATCH = 100
PEAK_RATE = 0.1
WEIGHT_DECAY = 5e-4

Objective = Callable[[nn.Module, Tensor, Tensor, PGDAttack, int, int], Tensor]
"""(model, x, y, attack, step, number of steps) -> loss."""


def network(seed: int, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """64-128-128-10, drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 128), activation(), nn.Linear(128, 128), activation(), nn.Linear(128, 10))


def adv_comp_sum(tau: float, nu: float, *, warm: bool = False) -> Objective:
    """The smooth adversarial loss with ρ = 1, ν rising over the first third where ``warm``."""

    def objective(model: nn.Module, x: Tensor, y: Tensor, attack: PGDAttack, step: int, num_steps: int) -> Tensor:
        weight = warmed_up(nu, step, num_steps) if warm else nu
        return smooth_adversarial_loss(model, x, y, attack=attack, tau=tau, nu=weight)

    return objective


def trades(beta: float) -> Objective:
    """TRADES at one β."""
    return lambda model, x, y, attack, _step, _steps: trades_loss(model, x, y, attack=attack, beta=beta)


OURS = "tau=0.2 nu=1"
TRADES = {f"TRADES beta={beta}": trades(beta) for beta in (1, 2, 6)}
RIVALS: dict[str, Objective] = {
    "plain": lambda model, x, y, _attack, _step, _steps: F.cross_entropy(model(x), y),
    "PGD-AT": lambda model, x, y, attack, _step, _steps: pgd_at_loss(model, x, y, attack=attack),
    "MART beta=5": lambda model, x, y, attack, _step, _steps: mart_loss(model, x, y, attack=attack),
    **TRADES,
}
SWEEP: dict[str, Objective] = {
    OURS: adv_comp_sum(0.2, 1.0),
    "tau=0 nu=3": adv_comp_sum(0.0, 3.0),
    "tau=0.2 nu=2": adv_comp_sum(0.2, 2.0),
    "tau=0.4 nu=1": adv_comp_sum(0.4, 1.0),
    "tau=0.4 nu=0.3": adv_comp_sum(0.4, 0.3),
    "tau=0.6 nu=0.6": adv_comp_sum(0.6, 0.6),
    "tau=1 nu=0.3": adv_comp_sum(1.0, 0.3),
    "tau=1 nu=1": adv_comp_sum(1.0, 1.0),
    "tau=1 nu=1 warmed up": adv_comp_sum(1.0, 1.0, warm=True),
}


def train_robust(objective: Objective, data: Split, seed: int, epochs: int) -> nn.Sequential:
    """Nesterov momentum on one cycle of the rate, five attack steps to each step of training."""
    model = network(seed)
    generator = torch.Generator().manual_seed(seed)
    attack = PGDAttack(EPS, num_steps=5, generator=generator)
    optimiser = torch.optim.SGD(model.parameters(), PEAK_RATE, 0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    num_steps = epochs * -(-len(data.train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=num_steps)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train_x), generator=generator).split(BATCH):
            optimiser.zero_grad()
            objective(model, data.train_x[rows], data.train_y[rows], attack, step, num_steps).backward()
            optimiser.step()
            schedule.step()
            step += 1
    return model.eval()


def judge(model: nn.Module, data: Split, seed: int) -> dict[str, float]:
    """Accuracies in per cent: clean, under PGD-20, and under the worst of PGD-40 on three losses per input."""
    generator = torch.Generator().manual_seed(seed + 1)
    moved = pgd(model, data.test_x, data.test_y, eps=EPS, num_steps=20, generator=generator)
    with torch.no_grad():
        stood = (model(moved).argmax(-1) == data.test_y).double().mean()
    worst = ensemble_attack(
        model, data.test_x, data.test_y, eps=EPS, attacks=("ce", "dlr", "margin"), generator=generator
    )
    return {"clean": 100 * worst.clean_accuracy, "pgd20": 100 * float(stood), "ensemble": 100 * worst.robust_accuracy}


def auto_attacked(model: nn.Module, data: Split, num_points: int, seed: int) -> float:
    """Accuracy in per cent on the first test points under torchattacks' AutoAttack, its standard set."""
    torchattacks = require_peer("torchattacks")
    images = nn.Sequential(nn.Flatten(), model).eval()
    x, y = data.test_x[:num_points].view(-1, 1, 8, 8), data.test_y[:num_points]
    with torch.random.fork_rng(devices=[]):  # it seeds torch's global generator
        attack = torchattacks.AutoAttack(images, norm="Linf", eps=EPS, version="standard", n_classes=10, seed=seed)
        moved = attack(x, y)
    with torch.no_grad():
        return 100 * float((images(moved).argmax(-1) == y).double().mean())


def train_noisy(loss_fn: Callable[[Tensor, Tensor], Tensor], data: Split, noise: float, seed: int, epochs: int):
    """Clean test accuracy and accuracy on 200 noisy held-out rows, in per cent, after Adam on the other noisy rows."""
    labels, _ = flip_labels(data.train_y, noise, 10, seed=seed)
    held = len(labels) // 6
    model = network(seed, nn.ReLU)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in (held + torch.randperm(len(labels) - held, generator=generator)).split(BATCH):
            optimiser.zero_grad()
            loss_fn(model(data.train_x[rows]), labels[rows]).backward()
            optimiser.step()
    with torch.no_grad():
        clean = (model(data.test_x).argmax(-1) == data.test_y).double().mean()
        noisy = (model(data.train_x[:held]).argmax(-1) == labels[:held]).double().mean()
    return 100 * float(clean), 100 * float(noisy)
