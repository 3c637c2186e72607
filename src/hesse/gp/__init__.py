"""Gaussian processes on surfaces known by points alone, and under tensors with continuous indices."""

__all__: list[str] = []
