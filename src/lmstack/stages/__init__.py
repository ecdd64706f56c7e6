"""Training objectives, one a file."""

from lmstack.stages.base import LanguageModule
from lmstack.stages.causal_lm import CausalLM

__all__ = ["CausalLM", "LanguageModule"]
