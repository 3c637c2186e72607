"""
An expert by the hour: one question, many updates
=================================================

Training as usual pays for one gradient of the loss with every update of the parameters. That is a bad bargain where
the loss is what costs: an expert labels actions, a simulator runs, a paid teacher answers. The expensive part is the
gradient with respect to the *outputs* of the model; going on from there to the parameters is cheap.

`Lavington et al. (2023) <https://arxiv.org/abs/2302.02607>`_ spend one such gradient on a surrogate: a paraboloid over
the outputs that lies above the loss and touches it where the model stands. Lowering it takes the model alone, so it may
as well be done thoroughly.
"""

import copy

import matplotlib.pyplot as plt
import torch

from hesse.optim import SSO, OracleCounter, target_surrogate

torch.set_num_threads(1)
torch.manual_seed(0)
F64 = torch.float64
COLOURS = {
    "m = 1": "#a9d6e5",
    "m = 10": "#2a6f97",
    "m = 100": "#012a4a",
    "Adam": "#e09f3e",
    "gradient descent": "#9e2a2b",
}

# %%
# Above the loss, whatever the model
# ----------------------------------
# A network with one hidden layer is to separate two spirals, and has begun to. Below is its loss on lines through the
# parameters: it bends as nonconvex losses do. The surrogate bends with it, since only the loss was replaced and not the
# network, and it stays above. A paraboloid over the parameters would need the curvature of the network; this one needs
# that of the loss in one output, which is at most a quarter for logistic loss: hence η = 4.

turns = torch.rand(200, 1, dtype=F64) * 2.2 + 0.4
signs = torch.where(torch.arange(200) % 2 == 0, 1.0, -1.0).to(F64)
X = signs.unsqueeze(1) * torch.cat([turns * torch.cos(2.4 * turns), turns * torch.sin(2.4 * turns)], 1)
X = X + 0.06 * torch.randn(200, 2, dtype=F64)


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1)).double()


def loss(z):
    return torch.nn.functional.softplus(-signs * z.squeeze(1)).mean()


net = network()
optimizer = SSO(net.parameters(), eta="logistic", inner_steps=100)
for _ in range(2):
    optimizer.step(lambda: net(X), target_loss=loss)
start = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
z_t = net(X).detach()
gradient = OracleCounter(loss).gradient(z_t)
steps = torch.linspace(-8, 8, 161, dtype=F64)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), constrained_layout=True)
for axis, seed in zip(axes, (3, 8), strict=True):
    direction = torch.randn(len(start), generator=torch.Generator().manual_seed(seed), dtype=F64)
    direction = direction / direction.norm()
    true, above = [], []
    for step in steps:
        torch.nn.utils.vector_to_parameters(start + step * direction, net.parameters())
        z = net(X).detach()
        true.append(float(loss(z)))
        above.append(float(loss(z_t) + target_surrogate(z, z_t, gradient, eta=4.0)))
    axis.plot(steps, true, color="0.3", label="loss")
    axis.plot(steps, above, color="#2a6f97", label="surrogate")
    axis.fill_between(steps, true, above, color="#2a6f97", alpha=0.12, linewidth=0)
    axis.plot(0, float(loss(z_t)), "o", color="#9e2a2b", zorder=3)
    axis.set(xlabel="along a random direction")
axes[0].set_ylabel("loss")
axes[0].legend(frameon=False)
fig.suptitle("One gradient at the red point; every point of the blue curve costs a forward pass of the model")
plt.show()

# %%
# Sixty questions
# ---------------
# The optimiser is given a function that evaluates the model, and the oracle. ``eta="logistic"`` names the loss, by its
# smoothness; nothing else is tuned, and the loss never rises. The peers are shown at their best learning rate of four.
# More inner steps buy more of each of the first questions, which is what counts if there is money for a dozen: see
# what each has learnt from twelve. Adam needs some thirty to overtake.

few, many = 12, 60
histories, answers = {}, {}
for m in (1, 10, 100):
    name, net, oracle = f"m = {m}", network(), OracleCounter(loss)
    optimizer = SSO(net.parameters(), eta="logistic", inner_steps=m)
    infos = []
    for t in range(many):
        if t == few:
            answers[name] = copy.deepcopy(net)
        infos.append(optimizer.step(lambda net=net: net(X), target_loss=oracle))
    histories[name] = [info.target_loss for info in infos]
    evaluations = sum(info.num_forwards for info in infos)
    print(f"{name}: {oracle.num_gradients} gradients of the oracle, {evaluations} evaluations of the model")

peers = (
    ("gradient descent", torch.optim.SGD, (0.1, 0.3, 1.0, 3.0)),
    ("Adam", torch.optim.Adam, (0.01, 0.03, 0.1, 0.3)),
)
for name, kind, rates in peers:
    runs = []
    for lr in rates:
        net, values = network(), []
        optimizer = kind(net.parameters(), lr=lr)
        for t in range(many):
            if t == few:
                early = copy.deepcopy(net)
            optimizer.zero_grad()
            value = loss(net(X))
            value.backward()
            values.append(float(value.detach()))
            optimizer.step()
        runs.append((values, early))
    histories[name], answers[name] = min(runs, key=lambda run: run[0][-1])

side = torch.linspace(-3, 3, 121, dtype=F64)
grid = torch.cartesian_prod(side, side)
fig = plt.figure(figsize=(11, 5.6), constrained_layout=True)
left, right = fig.subfigures(1, 2, width_ratios=(1.1, 1))
axis = left.subplots()
for name, values in histories.items():
    axis.semilogy(values, color=COLOURS[name], label=name)
axis.axvline(few, color="0.6", linewidth=0.8)
axis.set(xlabel="gradients asked of the oracle", ylabel="loss")
axis.legend(frameon=False)
for panel, name in zip(right.subplots(2, 2).flat, ("gradient descent", "Adam", "m = 10", "m = 100"), strict=True):
    with torch.no_grad():
        field = torch.sigmoid(answers[name](grid)).reshape(121, 121).T
    panel.imshow(field, extent=(-3, 3, -3, 3), origin="lower", cmap="RdBu", vmin=0, vmax=1, alpha=0.75)
    panel.scatter(*X.T, c=signs, cmap="RdBu", s=9, edgecolors="white", linewidths=0.4)
    panel.set(title=name, xticks=[], yticks=[])
right.suptitle(f"what the network has learnt from {few} gradients")
plt.show()

# %%
# The exact step, and a longer one
# --------------------------------
# A model that is linear in its parameters minimises the surrogate in one least-squares solve. With half the squared
# error that is the answer, after one question. Logistic loss is flatter away from the boundary than η = 4 allows for;
# ``schedule="line-search"`` tries longer steps by *values* of the loss, if the oracle gives these cheaply.

generator = torch.Generator().manual_seed(1)
A = torch.randn(800, 30, generator=generator, dtype=F64) * torch.logspace(0, -1.5, 30, dtype=F64)
signal = A @ torch.randn(30, generator=generator, dtype=F64)
b = torch.sign(signal + 0.3 * signal.std() * torch.randn(800, generator=generator, dtype=F64))


def logistic(z):
    return torch.nn.functional.softplus(-b * z).mean()


def run(calls, **options):
    w = torch.zeros(30, dtype=F64, requires_grad=True)
    optimizer = SSO([w], eta="logistic", **options)
    return [optimizer.step(lambda: A @ w, target_loss=logistic) for _ in range(calls)]


exact = {"inner": "gauss-newton", "inner_tol": 1e-10}
curves = {
    "10 descent steps": run(40),
    "exact": run(40, inner_steps=1, **exact),
    "exact, line search": run(40, schedule="line-search", **exact),
}
best = min(info.target_loss for info in run(70, schedule="line-search", **exact))
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), constrained_layout=True)
for (name, infos), colour in zip(curves.items(), ("#e09f3e", "#2a6f97", "#5aa469"), strict=True):
    axes[0].semilogy([max(info.target_loss - best, 1e-12) for info in infos], color=colour, label=name)
    axes[1].semilogy([info.eta for info in infos], color=colour)
axes[0].set(xlabel="gradients asked of the oracle", ylabel="loss − optimum")
axes[0].legend(frameon=False)
axes[1].set(xlabel="gradients asked of the oracle", ylabel="target step η")
print(f"values of the loss beside 40 gradients: {sum(info.oracle_values for info in curves['exact, line search'])}")
plt.show()

# %%
# When not to use it
# ------------------
# Where the loss is as cheap as the model, tuned Adam or L-BFGS need less time, and on convex problems L-BFGS needs
# fewer gradients too. On a small batch a hundred inner steps fit the batch rather than the data: stay with
# ten, and ``schedule="sqrt"``.
