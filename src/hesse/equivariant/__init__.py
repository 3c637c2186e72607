"""Layers that commute with rotations and with linear deformations."""

__all__: list[str] = []
