"""Lightning data modules, one per batch type."""

from lmstack.data.modules.pretraining import PretrainingData

__all__ = ["PretrainingData"]
