"""Text from a model: sampling as pure functions, and the engine that everything else generates with."""

from lmstack.generation.decoding import NonFiniteLogitsError
from lmstack.generation.engine import GenerationEngine
from lmstack.generation.request import Completion, SamplingParams, StopReason

__all__ = ["Completion", "GenerationEngine", "NonFiniteLogitsError", "SamplingParams", "StopReason"]
