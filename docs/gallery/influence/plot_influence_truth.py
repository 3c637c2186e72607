"""
Is a score true? Predicted against measured
===========================================

A score says by how many nats one more copy of a training sequence would move a query. Here the sequences are really
added and taken away: in the objective that scores linearise, and by training from scratch on random halves of the data.
"""

# %%
# A small network, a tenth of whose labels are wrong
# --------------------------------------------------

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from hesse.influence import ClassificationLoss, Influence
from hesse.influence.evaluate import (
    cosine_rates,
    damped_ggn_scores,
    detect_mislabelled,
    draw_masks,
    lds,
    pbrf,
    retrain,
    train_model,
)
from hesse.influence.trajectory import SGD, TrainingSchedule

torch.set_num_threads(2)
rng = np.random.default_rng(0)
pictures = load_digits()
order = rng.permutation(len(pictures.target))
x = torch.tensor(pictures.data[order] / 16, dtype=torch.float32)
y = torch.tensor(pictures.target[order])
flipped = torch.zeros(300, dtype=torch.bool)
flipped[:30] = True
labels = torch.where(flipped, (y[:300] + torch.tensor(rng.integers(1, 10, 300))) % 10, y[:300])
train, queries = (x[:300], labels), (x[300:320], y[300:320])


def fresh(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 10)).eval()


loss = ClassificationLoss()
schedule = TrainingSchedule(SGD(momentum=0.9), tuple(cosine_rates(0.1, 150)), (tuple(range(300)),) * 150)
model = train_model(fresh(0), train, schedule, loss=loss, progress=False)
folder = tempfile.TemporaryDirectory()
influence = Influence(model, loss=loss)
factors = influence.fit(train, folder.name, progress=False)
ekfac = np.array(influence.score(queries, train, folder.name, rank=None, progress=False).values)

# %%
# What a score approximates
# -------------------------
# The proximal Bregman response keeps the network's outputs where they are, adds a tenth of a copy of one picture, and
# solves for the new weights. To first order that is the damped Gauss-Newton score, layers together; EK-FAC approximates
# the matrix in it.

points = list(range(40))
linear = damped_ggn_scores(influence, factors, train, queries, points)
small = pbrf(influence, factors, train, queries, points, copies=0.1, progress=False)
whole = pbrf(influence, factors, train, queries, points, copies=1.0, progress=False)


def line(predicted, measured):
    slope = (predicted * measured).sum() / (predicted**2).sum()
    return f"slope {slope:.2f}, correlation {np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]:.2f}"


panels = {
    "whole matrix, a tenth of a copy": (linear, small.values),
    "whole matrix, a whole copy removed": (linear, whole.removed),
    "EK-FAC, a tenth of a copy": (ekfac[:, points], small.values),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for axis, (title, (predicted, measured)) in zip(axes, panels.items(), strict=True):
    reach = np.quantile(np.abs(np.concatenate([predicted.ravel(), measured.ravel()])), 0.995)
    axis.axline((0, 0), slope=1, color="0.6", linewidth=1)
    axis.scatter(predicted, measured, s=5, color="#2166ac", alpha=0.5, linewidths=0)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="predicted (nats a copy)")
    axis.set_title(f"{title}\n{line(predicted, measured)}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("measured (nats a copy)")

# %%
# On the left the theory holds; in the middle a whole picture is too much for a straight line; on the right the points
# scatter because the factors are coarse. Neither error is the other.
#
# What prediction is worth
# ------------------------
# Sixty networks are trained from three starts on random halves of the data, all at once. Summed scores should rank how
# well each answers a query. What three starts agree on among themselves is the ceiling.

masks = draw_masks(20, 300)
starts = [fresh(seed) for seed in range(3)]
outcomes = retrain(starts, train, queries, 2.0 * masks, [schedule] * 3, loss=loss, progress=False)
found = lds(ekfac, masks, outcomes)
print(f"LDS {found.value:.2f}, 95 % {found.interval[0]:.2f} to {found.interval[1]:.2f}")
print(f"ceiling {found.reliability.ceiling:.2f}, of one network against another {found.reliability.split_half:.2f}")

own = influence.self_influence(train, folder.name, progress=False).numpy()
detected = detect_mislabelled(own, flipped)
print(f"wrong labels by self-influence: AUC {detected.auc:.2f}, {detected.precision:.0%} of the first thirty")

predicted, measured = masks @ ekfac.T, outcomes.mean(0).numpy()
best = int(np.argsort(found.per_query)[len(found.per_query) // 2])
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.scatter(predicted[:, best], measured[:, best], s=30, color="#2166ac")
left.set(xlabel="sum of the scores of the half (nats)", ylabel="log-probability after training on it (nats)")
left.set_title(f"the median query: rank correlation {found.per_query[best]:.2f}", fontsize=10)
bins = np.geomspace(own.min(), own.max(), 30)
right.hist(own[~flipped], bins, color="#2166ac", alpha=0.8, label="clean")
right.hist(own[flipped], bins, color="#b35806", alpha=0.8, label="wrong label")
right.set(xscale="log", xlabel="self-influence (nats a copy)", ylabel="pictures")
right.legend(frameon=False)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
plt.show()
folder.cleanup()
