"""Reports and probes: how a fitted model behaves beyond its accuracy."""

__all__: list[str] = []
