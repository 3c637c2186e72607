"""Target-based surrogates: one expensive gradient on a model's outputs pays for many updates of its parameters."""

from hesse.optim.target_surrogates.oracle import OracleCounter
from hesse.optim.target_surrogates.sso import SSO, StepInfo
from hesse.optim.target_surrogates.surrogate import target_surrogate

__all__ = ["SSO", "OracleCounter", "StepInfo", "target_surrogate"]
