"""Text from a model: sampling as pure functions, and the engine that everything else generates with."""

from lmstack.generation.engine import Completion, GenerationEngine, NonFiniteLogitsError, SamplingParams

__all__ = ["Completion", "GenerationEngine", "NonFiniteLogitsError", "SamplingParams"]
