"""Layers, losses and small networks that come with guarantees."""

__all__: list[str] = []
