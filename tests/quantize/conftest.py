from export.conftest import exported, model

__all__ = ["exported", "model"]
