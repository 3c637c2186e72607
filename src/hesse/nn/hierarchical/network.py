"""The fitted network as a torch module, and the joint refinement of its upper layers.

Shapes: B points of d coordinates, M inner features, m_1 outer neurons.
"""

import copy

import torch
from torch import Tensor, nn

from hesse.nn.hierarchical.features import InnerName, inner_features
from hesse.nn.hierarchical.stages import outer_features

__all__ = ["LayerwiseNetwork", "refine_network"]


class LayerwiseNetwork(nn.Module):
    """f(x) = Σ a_i ReLU(±(<w, h0(x)> - c) + b_i) + f_0: three layers, the first frozen.

    Parameters
    ----------
    directions : Tensor, shape (M, d)
        V.
    weights : Tensor, shape (M,)
        w, so scaled that <w, h0(x)> - c has variance one on the data.
    center : Tensor, shape ()
        c.
    signs, biases, outer : Tensor, shape (m_1,)
        ±, b and a.
    shift : Tensor, shape ()
        f_0.
    degree : int
        k.
    inner : str
        Name of the inner layer.
    """

    directions: Tensor
    signs: Tensor
    biases: Tensor

    def __init__(
        self,
        directions: Tensor,
        weights: Tensor,
        center: Tensor,
        signs: Tensor,
        biases: Tensor,
        outer: Tensor,
        shift: Tensor,
        degree: int,
        inner: InnerName,
    ) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("signs", signs)
        self.register_buffer("biases", biases)
        self.weights, self.center = nn.Parameter(weights.clone()), nn.Parameter(center.clone())
        self.outer, self.shift = nn.Parameter(outer.clone()), nn.Parameter(shift.clone())
        self.degree = degree
        self.inner: InnerName = inner

    def inner_layer(self, x: Tensor) -> Tensor:
        """h0(x), which no training changes.

        Parameters
        ----------
        x : Tensor, shape (B, d)
            Inputs.

        Returns
        -------
        Tensor, shape (B, M)
            Features.
        """
        return inner_features(x, self.directions, self.degree, self.inner)

    def feature_of(self, inner: Tensor) -> Tensor:
        """Combine the inner layer into the learnt polynomial, <w, h0> - c.

        Parameters
        ----------
        inner : Tensor, shape (B, M)
            From `inner_layer`.

        Returns
        -------
        Tensor, shape (B,)
            About standardised.
        """
        return inner @ self.weights - self.center

    def link(self, q: Tensor) -> Tensor:
        """Apply g, the learnt function of one variable.

        Parameters
        ----------
        q : Tensor, shape (B,)
            Values of the feature.

        Returns
        -------
        Tensor, shape (B,)
            Linear beyond the range of the biases.
        """
        return outer_features(q, self.signs, self.biases) @ self.outer + self.shift

    def forward(self, x: Tensor) -> Tensor:
        """Predict.

        Parameters
        ----------
        x : Tensor, shape (B, d)
            Inputs.

        Returns
        -------
        Tensor, shape (B,)
            f(x).
        """
        return self.link(self.feature_of(self.inner_layer(x)))


def refine_network(
    net: LayerwiseNetwork,
    H: Tensor,
    y: Tensor,
    H_held: Tensor,
    y_held: Tensor,
    max_steps: int,
    learning_rate: float = 0.02,
) -> tuple[LayerwiseNetwork, list[float]]:
    """Train w, c, a and f_0 together by full-batch Adam, and keep the step of least held-out error.

    Parameters
    ----------
    net : LayerwiseNetwork
        Where to start; not changed.
    H, H_held : Tensor, shapes (N, M)
        Its inner layer at the points to fit and at those held out.
    y, y_held : Tensor, shape (N,)
        Targets.
    max_steps : int
        Steps.
    learning_rate : float, default 0.02
        In units of the size of each group of weights, so that no scale has to be known.

    Returns
    -------
    LayerwiseNetwork
        The best seen, the start among them.
    list of float
        Held-out mean squared error at the start and after every step.
    """
    moving = copy.deepcopy(net)
    sizes = {name: float(p.detach().square().mean().sqrt()) or 1.0 for name, p in moving.named_parameters()}
    sizes |= {"center": 1.0, "shift": float(y.std())}  # of what they move, not of where they are
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": learning_rate * sizes[name]} for name, p in moving.named_parameters()]
    )

    def held_error() -> float:
        with torch.no_grad():
            return float((moving.link(moving.feature_of(H_held)) - y_held).square().mean())

    errors = [held_error()]
    best = copy.deepcopy(moving.state_dict())
    for _ in range(max_steps):
        optimizer.zero_grad()
        (moving.link(moving.feature_of(H)) - y).square().mean().backward()
        optimizer.step()
        errors.append(held_error())
        if errors[-1] <= min(errors[:-1]):
            best = copy.deepcopy(moving.state_dict())
    moving.load_state_dict(best)
    return moving, errors
