"""Diffusion models: inverse problems with a learnt prior, the geometry of score fields, likelihoods of thin sets."""

__all__: list[str] = []
