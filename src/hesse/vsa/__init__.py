"""Vector symbolic architectures: structured records as single vectors."""

__all__: list[str] = []
