"""Runs in deepinv's own environment: its DiffPIR, DPS and DDRM on a traced denoiser and a stored matrix."""

import io

import deepinv
import numpy as np
import torch

LEAST_NOISE = 0.005  # where training of the denoiser began


class _Denoiser(torch.nn.Module):
    """D(x, σ) = c_skip x + c_out F(c_in x, log(σ)/4), around the traced F."""

    def __init__(self, network: torch.nn.Module, data_sd: float) -> None:
        super().__init__()
        self.network, self.data_sd = network, data_sd

    def forward(self, x: torch.Tensor, sigma: float, **_: object) -> torch.Tensor:
        level = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1).expand(len(x))
        wide = level[:, None, None, None]
        variance = wide**2 + self.data_sd**2
        out = self.network(x.float() / variance.sqrt(), level.log() / 4)
        return (x * self.data_sd**2 / variance + out * wide * self.data_sd / variance.sqrt()).to(x.dtype)


def prepare(arrays: dict) -> dict:
    """Load the network and build the physics."""
    network = torch.jit.load(io.BytesIO(arrays["network"].tobytes()))
    matrix, size = torch.from_numpy(arrays["matrix"]), int(arrays["size"])
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: x.flatten(1) @ matrix.T.to(x.dtype),
        A_adjoint=lambda y, **_: (y @ matrix.to(y.dtype)).reshape(-1, 1, size, size),
    )
    physics.noise_model = deepinv.physics.GaussianNoise(float(arrays["sigma_y"]))
    # DDRM works on singular vectors: all of them, so that what the data leave open is a coordinate as well
    U, values, Vh = torch.linalg.svd(matrix.double(), full_matrices=True)
    U, V, padding = U.float(), Vh.T.float(), size * size - len(values)

    def to_spectrum(y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad((y.float() @ U)[:, : len(values)], (0, padding)).reshape(-1, 1, size, size)

    def from_spectrum(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(z.flatten(1)[:, : len(values)], (0, len(U) - len(values))) @ U.T

    spectral = deepinv.physics.DecomposablePhysics(
        U=from_spectrum,
        U_adjoint=to_spectrum,
        V=lambda z: (z.flatten(1) @ V.T).reshape(-1, 1, size, size),
        V_adjoint=lambda x: (x.flatten(1) @ V).reshape(-1, 1, size, size),
        img_size=(1, size, size),
        mask=torch.nn.functional.pad(values.float(), (0, padding)).reshape(1, 1, size, size),
        noise_model=physics.noise_model,
    )
    probe = torch.rand(2, 1, size, size)
    if not torch.allclose(spectral.A(probe), physics.A(probe), atol=1e-3 * float(values[0])):
        raise RuntimeError("the singular vectors do not give the matrix back")
    return {
        **arrays,
        "spectral": spectral,
        "denoiser": _Denoiser(network, float(arrays["data_sd"])),
        "physics": physics,
    }


def measured(state: dict) -> dict[str, np.ndarray]:
    """Every value of each method on the tuning pictures, the best on the others."""
    size, out = int(state["size"]), {}
    for name, values in (("DiffPIR", state["lambdas"]), ("DPS", state["weights"]), ("DDRM", state["etas"])):
        errors = []
        for value in values:
            found = _run(name, float(value), state, state["tune_y"])
            errors.append(float(((found - state["tune_x"].reshape(found.shape)) ** 2).mean()))
        best = int(np.nanargmin(errors))
        out[f"{name}_errors"], out[f"{name}_value"] = np.array(errors), np.array(values[best])
        found = _run(name, float(values[best]), state, state["test_y"])
        out[name] = found.reshape(-1, size * size)
    return out


def _run(name: str, value: float, state: dict, y: np.ndarray) -> np.ndarray:
    torch.manual_seed(int(state["seed"]))
    fidelity, steps = deepinv.optim.data_fidelity.L2(), int(state["num_steps"])
    if name == "DiffPIR":
        sampler = deepinv.sampling.DiffPIR(
            state["denoiser"], fidelity, sigma=float(state["sigma_y"]), max_iter=steps, lambda_=value
        )
        with torch.no_grad():
            return sampler(torch.from_numpy(y), state["physics"]).numpy()
    if name == "DDRM":
        levels = np.linspace(1.0, LEAST_NOISE, steps)  # its own grid, but for the end at no noise at all
        sampler = deepinv.sampling.DDRM(state["denoiser"], sigmas=levels, eta=value)
        with torch.no_grad():
            return sampler(torch.from_numpy(y), state["spectral"]).numpy()
    sampler = deepinv.sampling.DPS(
        state["denoiser"], num_steps=steps, weight=value, dtype=torch.float32, rng=torch.Generator().manual_seed(0)
    )
    size = int(state["size"])
    out = sampler(torch.from_numpy(y), state["physics"], x_init=(len(y), 1, size, size))
    return out.detach().numpy()
