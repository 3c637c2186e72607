"""SGD preconditioned layer by layer with Kronecker factors of the Gauss-Newton matrix (K-FAC, EK-FAC).

w ← w - lr · v,   v ← μ v + u,   vec U = (G_layer + λI)⁻¹ vec V,   V the gradient of one layer's weight and bias
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from hesse._optimizer import ClosureOptimizer
from hesse.curvature import TrackedLayer, output_hessian_columns, select_layers
from hesse.curvature.fisher import Likelihood, sampled_score
from hesse.errors import ArgumentError, ArgumentTypeError, NumericalError, ShapeError
from hesse.optim._kfac_factors import Collector, average_in, eigenvalues, new_basis, precondition
from hesse.optim._kfac_tap import LayerTap

__all__ = ["KFAC"]

Correction = Literal["ekfac", "kfac"]
Fisher = Literal["sampled", "exact", "empirical"]


class KFAC(ClosureOptimizer):
    """Approximate natural-gradient descent: Linear, Conv1d, Conv2d and Conv1D layers are preconditioned, the rest not.

    Hooks read every layer's inputs and output gradients on the steps that update the factors; the training loop stays
    that of SGD, gradient accumulation and closures included. Call the model as a whole, evaluate under
    `torch.no_grad`, and keep examples on the first axis. Parameters outside those layers (norms, embeddings, grouped
    convolutions left out by ``layers``) take a step of SGD with the same lr and momentum, or belong to ``inner``.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    lr : float, default 0.1
        Step length; 1 with ``momentum=0`` and ``kl_clip=None`` is the damped Newton step.
    params : iterable of Tensor, of (name, Tensor), or of dict, optional
        Parameters of the model, as of any torch optimiser; lr, momentum, damping and weight_decay may differ by group.
        Default: all that require a gradient, less those of ``inner``.
    momentum : float, default 0.9
        μ.
    damping : float, default 1e-2
        λ > 0, in the units of the Gauss-Newton matrix of the loss (nats per squared parameter). A layer takes that of
        its weight's group.
    weight_decay : float, default 0.0
        η: η w joins the gradient before preconditioning and η joins the damping, so that the objective is the loss plus
        η ‖w‖² / 2.
    correction : {"ekfac", "kfac"}, default "ekfac"
        Eigenvalues measured in the basis of the factors plus λ, or the factors' own, √λ split between the two by π.
    fisher : {"sampled", "exact", "empirical"}, default "sampled"
        Whose output gradients make S. "sampled": one label a row of the outputs, drawn from the model, backpropagated
        through activations at the end of the forward pass, whatever the loss looks like. "exact": the expectation over
        labels, V such passes, for outputs (B, V). "empirical": the loss's own gradients, free of charge; not the
        Gauss-Newton matrix, and useless near a perfect fit.
    likelihood : {"categorical", "bernoulli", "gaussian"}, default "categorical"
        What the outputs parametrise; not read by "empirical". "gaussian" is ½ ‖z - y‖² an example: `nn.MSELoss` over V
        outputs has 2 / V times its curvature.
    reduction : {"mean", "sum"}, default "mean"
        Of the loss over rows of the outputs, all rows since the last step: with gradient accumulation over k passes the
        loss of each is divided by k, as usual.
    layers : str or callable, default "all-linear"
        As of `select_layers`. "all-linear" leaves the output embedding of a language model out.
    update_every : int, default 1
        Steps between updates of the factors.
    eigen_every : int, default 10
        Steps between eigendecompositions.
    decay : float, default 0.95
        ρ of the running averages, an update each; the k-th update counts by 1/k at least.
    kl_clip : float or None, default 1e-3
        κ: shortens the step until lr² Σ uᵀ(G + λI)u <= κ over all layers. None: never.
    inner : Optimizer, optional
        Makes the steps of the parameters it holds; stepped, zeroed and saved together with this one.
    outputs_fn : callable, optional
        What the model returned -> outputs (B, ..., V), or (B,) for V = 1. Default: a tensor itself, or its ``.logits``.
    seed : int, default 0
        Of the sampled labels; they follow from it, the step and the pass, not from a global generator.

    Raises
    ------
    ArgumentError
        If an option is out of range, or no layer is left to precondition.
    ArgumentTypeError
        If ``model`` is no module, or a parameter no real floating tensor.

    Notes
    -----
    Factors, and the momentum of their layers, are kept in float32, or float64 for float64 activations; parameters in
    half precision get the step rounded. An update costs two Gram matrices a layer, for "ekfac" a rotation too, and for
    "sampled" a backward pass through activations; a new basis about 9 (m³ + p³) in float64; a step 2 p m (p + m)
    multiplications. Memory 2 (m² + p²) + 2 p m a layer of p outputs and m inputs (with the bias). Convolutions and
    shared weights count positions as independent (the "expand" setting). Statistics are those of this process: with
    DistributedDataParallel every rank has factors of its own. "empirical" needs an unscaled loss (no GradScaler) and
    one backward pass a forward pass. A step raises NumericalError for NaN or Inf in a gradient or factor, and
    ArgumentError for a layer with a gradient whose module was not called with gradients enabled; nothing has moved
    then.

    References
    ----------
    J. Martens, R. Grosse (2015), ICML, arXiv 1503.05671. R. Grosse, J. Martens (2016), ICML, arXiv 1602.01407.
    T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent (2018), NeurIPS, arXiv 1806.03884.
    J. Ba, R. Grosse, J. Martens (2017), ICLR (the step's bound).

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> optimizer = KFAC(net, 1.0, momentum=0, damping=1e-6, kl_clip=None, likelihood="gaussian", fisher="exact")
    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0], [5.0]])
    >>> ((net(x) - y).square().mean() / 2).backward()
    >>> optimizer.step()
    >>> net.weight.detach().round(decimals=3)
    tensor([[1., 2.]])
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        *,
        params: ParamsT | None = None,
        momentum: float = 0.9,
        damping: float = 1e-2,
        weight_decay: float = 0.0,
        correction: Correction = "ekfac",
        fisher: Fisher = "sampled",
        likelihood: Likelihood = "categorical",
        reduction: Literal["mean", "sum"] = "mean",
        layers: str | Callable[[str, nn.Module], bool] = "all-linear",
        update_every: int = 1,
        eigen_every: int = 10,
        decay: float = 0.95,
        kl_clip: float | None = 1e-3,
        inner: Optimizer | None = None,
        outputs_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"KFAC: model must be a module, got {type(model).__name__}")
        _check_choice("correction", correction, ("ekfac", "kfac"))
        _check_choice("fisher", fisher, ("sampled", "exact", "empirical"))
        _check_choice("likelihood", likelihood, ("categorical", "bernoulli", "gaussian"))
        _check_choice("reduction", reduction, ("mean", "sum"))
        for name, count in (("update_every", update_every), ("eigen_every", eigen_every)):
            if not isinstance(count, int) or count < 1:
                raise ArgumentError(f"KFAC: expected an integer {name} >= 1, got {count!r}")
        if not 0 <= decay < 1:
            raise ArgumentError(f"KFAC: expected 0 <= decay < 1, got {decay}")
        if kl_clip is not None and not (math.isfinite(kl_clip) and kl_clip > 0):
            raise ArgumentError(f"KFAC: expected a finite kl_clip > 0 or None, got {kl_clip}")
        self.correction: Correction = correction
        self.fisher: Fisher = fisher
        self.likelihood: Likelihood = likelihood
        self.reduction, self.seed, self.inner = reduction, seed, inner
        self.update_every, self.eigen_every, self.decay, self.kl_clip = update_every, eigen_every, decay, kl_clip
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._collector = Collector()
        chosen = _parameters(model, inner) if params is None else params
        super().__init__(chosen, {"lr": lr, "momentum": momentum, "damping": damping, "weight_decay": weight_decay})
        shared = {id(p) for p, _group in self._owned()} & {id(p) for p in _held(inner)}
        if shared:
            raise ArgumentError(
                f"KFAC: inner holds {len(shared)} parameters that params holds too; both would move them"
            )
        every = select_layers(model, layers)
        self._layers = {name: layer for name, layer in every.items() if _weight(layer).requires_grad}
        if not self._tracked():
            raise ArgumentError(
                "KFAC: params holds the weight of no layer that layers= picks, so there is nothing to precondition; "
                f"picked: {', '.join(every)}"
            )
        self._tap = LayerTap(model, self._layers, self._collector, outputs_fn or _default_outputs)
        self._plan()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters of the model; a layer is preconditioned from its next update on.

        Parameters
        ----------
        param_group : dict
            "params", and any hyper-parameter that shall differ from the defaults.

        Raises
        ------
        ArgumentError
            If a hyper-parameter is out of range; nothing is added then.
        ArgumentTypeError
            If a parameter is not a real floating tensor; nothing is added then.
        """
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups.pop()  # back in its place when it has passed
        for i, p in enumerate(group["params"]):
            if not p.is_floating_point():
                raise ArgumentTypeError(f"KFAC: parameter {i} must be a real floating tensor, got {p.dtype}")
        self.param_groups.append(group)
        if hasattr(self, "_tap"):  # not while the constructor adds the first groups
            self._plan()

    def _take_step(self, loss: float | Tensor | None) -> None:
        try:
            steps = {id(p): self._gradient(p, group) for p, group in self._owned() if p.grad is not None}
            self._tap.flush()
            self._precondition(steps)
        finally:
            self._plan()
        for p, group in self._owned():
            if id(p) in steps:
                self._move(p, steps[id(p)], group)
        if self.inner is not None:
            self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, the inner optimiser's too, and what "empirical" has read of their backward passes.

        Parameters
        ----------
        set_to_none : bool, default True
            As of any torch optimiser.
        """
        super().zero_grad(set_to_none)
        if self.fisher == "empirical":
            self._collector.sums.clear()
            self._tap.forget_backward_passes()
        if self.inner is not None:
            self.inner.zero_grad(set_to_none)

    def remove_hooks(self) -> None:
        """Take the hooks off the model; the factors stay as they are in further steps."""
        self._tap.remove()

    def state_dict(self) -> StateDict:
        """Return the state as any torch optimiser does, with that of the inner optimiser under "inner".

        Returns
        -------
        dict
            Numbers and tensors only. The settings of the constructor that groups do not hold are not in it.
        """
        state = super().state_dict()
        if self.inner is not None:
            state["inner"] = self.inner.state_dict()
        return state

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take over the state of another K-FAC optimiser; the next steps are those it would have made, bit by bit.

        Parameters
        ----------
        state_dict : dict
            From ``state_dict``; its tensors are copied. Passes made since its last step are not in it.

        Raises
        ------
        ShapeError
            If a factor is of another order than its layer needs.
        ArgumentError
            If groups do not match, or one of the two has an inner optimiser. Also a ValueError.
        """
        if ("inner" in state_dict) != (self.inner is not None):
            raise ArgumentError("KFAC.load_state_dict: one of the two has an inner optimiser, the other has none")
        saved_state = {
            id(p): state_dict["state"].get(number, {})
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False)
            for p, number in zip(group["params"], saved["params"], strict=False)
        }
        for name, (layer, _group) in self._tracked().items():
            state = saved_state.get(id(_weight(layer)), {})
            found = (len(state["S"]), len(state["A"])) if "A" in state else (layer.out_features, layer.columns)
            if found != (layer.out_features, layer.columns):
                raise ShapeError(
                    f"KFAC.load_state_dict: factors of orders {found} for layer {name!r}, which needs "
                    f"{(layer.out_features, layer.columns)}"
                )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        # torch casts state to the dtype of the parameter; factors of a bfloat16 layer are float32 for a reason
        for p, _group in self._owned():
            for key, value in saved_state.get(id(p), {}).items():
                kept = value.detach().to(p.device, copy=True) if isinstance(value, Tensor) else value
                self.state[p][key] = kept
        if self.inner is not None:
            self.inner.load_state_dict(state_dict["inner"])
        self._plan()

    # parts of a step --------------------------------------------------------------------------------------------------

    def _owned(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        return ((p, group) for group in self.param_groups for p in group["params"])

    def _tracked(self) -> dict[str, tuple[TrackedLayer, dict[str, Any]]]:
        # layers whose weight is in a group, with that group; a bias that is in none is left out of the layer
        owner = {id(p): group for p, group in self._owned()}
        return {
            name: (
                replace(layer, has_bias=layer.has_bias and id(_bias(layer)) in owner),
                owner[id(_weight(layer))],
            )
            for name, layer in self._layers.items()
            if id(_weight(layer)) in owner
        }

    def _gradient(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        gradient = p.grad
        name = self._names.get(id(p), f"of shape {tuple(p.shape)}")
        if gradient is None or gradient.layout != torch.strided:
            raise ArgumentTypeError(f"KFAC: the gradient of parameter {name} is a sparse tensor; give it to inner=")
        if not bool(torch.isfinite(gradient).all()):
            raise NumericalError(f"KFAC: the gradient of parameter {name} has NaN or Inf; nothing has moved")
        return gradient.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else gradient

    def _plan(self) -> None:
        # forget the passes so far, and say what is read in those before the next step
        due: dict[str, TrackedLayer] = {}
        self._collector.sums.clear()
        self._collector.states.clear()
        for name, (layer, _group) in self._tracked().items():
            state = self.state.get(_weight(layer), {})
            if len(state.get("A", ())) not in (0, layer.columns):
                state.clear()  # the bias has joined: other factors
            if "A" not in state or state["num_steps"] % self.update_every == 0:
                due[name] = layer
                if self.correction == "ekfac" and "left" in state:
                    self._collector.states[name] = state
        step = max((state.get("num_steps", 0) for state in self.state.values()), default=0)
        scores = None if self.fisher == "empirical" else partial(_scores, self.fisher, self.likelihood, self.seed, step)
        self._tap.plan(due, scores)

    def _precondition(self, steps: dict[int, Tensor]) -> None:
        # replace the gradients of the layers by their preconditioned ones
        terms = max(1, self._tap.num_terms)
        scale = 1.0 if self.reduction == "sum" else float(terms) if self.fisher == "empirical" else 1 / terms
        moved: dict[int, Tensor] = {}
        length = 0.0
        for name, (layer, group) in self._tracked().items():
            if id(_weight(layer)) not in steps:
                continue
            parameters, state = _parameters_of(layer), self.state[_weight(layer)]
            matrix = layer.matrix_from_grads({key: steps[id(p)] for key, p in parameters.items() if id(p) in steps})
            if name in self._collector.sums:
                average_in(state, self._collector.sums[name], scale, self.decay)
            if "A" not in state:
                raise ArgumentError(
                    f"KFAC: layer {name!r} has a gradient, but its module was not called in a pass of the model with "
                    "gradients enabled (is its weight used functionally?); leave it out with layers="
                )
            number = state.get("num_steps", 0)
            if "left" not in state or number % self.eigen_every == 0:
                new_basis(state, name)
            state["num_steps"] = number + 1
            table = eigenvalues(state, group["damping"] + group["weight_decay"], corrected=self.correction == "ekfac")
            update = precondition(matrix, state, table)
            length += float(group["lr"]) ** 2 * float((update * matrix).sum())
            found = layer.grads_from_matrix(update)
            moved |= {id(p): found[key] for key, p in parameters.items()}
        shrink = 1.0 if self.kl_clip is None or length <= self.kl_clip else math.sqrt(self.kl_clip / length)
        steps |= {key: value * shrink if shrink < 1 else value for key, value in moved.items()}

    def _move(self, p: Tensor, step: Tensor, group: dict[str, Any]) -> None:
        if group["momentum"]:
            state = self.state[p]
            if "momentum_buffer" in state:
                step = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
            else:
                step = state["momentum_buffer"] = step.detach().clone()
        p.sub_((step * float(group["lr"])).to(p.dtype))


def _scores(
    fisher: Fisher, likelihood: Likelihood, seed: int, step: int, outputs: Tensor, pass_number: int
) -> Iterator[Tensor]:
    if fisher == "exact":
        if outputs.ndim != 2:
            raise ShapeError(
                f'KFAC: fisher="exact" needs outputs of shape (B, V), got {tuple(outputs.shape)}; use "sampled"'
            )
        yield from output_hessian_columns(outputs, likelihood)
        return
    number = seed + step * 0x9E3779B97F4A7C15 + pass_number * 0xBF58476D1CE4E5B9
    yield sampled_score(outputs, likelihood, Generator().manual_seed(number % 2**63))


def _weight(layer: TrackedLayer) -> Tensor:
    return getattr(layer.module, "weight")  # noqa: B009  (nn.Module's stub has no such attribute)


def _bias(layer: TrackedLayer) -> Tensor:
    return getattr(layer.module, "bias")  # noqa: B009


def _parameters_of(layer: TrackedLayer) -> dict[str, Tensor]:
    prefix = f"{layer.name}." if layer.name else ""
    found = {f"{prefix}weight": _weight(layer)}
    return found | {f"{prefix}bias": _bias(layer)} if layer.has_bias else found


def _held(inner: Optimizer | None) -> list[Tensor]:
    return [] if inner is None else [p for group in inner.param_groups for p in group["params"]]


def _parameters(model: nn.Module, inner: Optimizer | None) -> list[Tensor]:
    held = {id(p) for p in _held(inner)}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in held]


def _default_outputs(result: Any) -> Tensor:
    outputs = getattr(result, "logits", result)
    if not isinstance(outputs, Tensor):
        raise ArgumentTypeError(
            f"KFAC: the model returned a {type(result).__name__} without .logits; say with outputs_fn= where the "
            "outputs are"
        )
    return outputs


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ArgumentError(f"KFAC: {name} must be one of {', '.join(choices)}; got {value!r}")


def _check_options(options: dict[str, Any]) -> None:
    for name, strict in (("lr", False), ("damping", True), ("weight_decay", False)):
        value = float(options[name])
        if not (math.isfinite(value) and (value > 0 if strict else value >= 0)):
            raise ArgumentError(f"KFAC: expected a finite {name} {'>' if strict else '>='} 0, got {value}")
    if not 0 <= options["momentum"] < 1:
        raise ArgumentError(f"KFAC: expected 0 <= momentum < 1, got {options['momentum']}")
