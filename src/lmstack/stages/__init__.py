"""Training objectives, one a file."""

from lmstack.stages.base import LanguageModule
from lmstack.stages.causal_lm import CausalLM
from lmstack.stages.supervised import ObjectiveSums, SupervisedModule
from lmstack.stages.token_objective import TokenObjective

__all__ = ["CausalLM", "LanguageModule", "ObjectiveSums", "SupervisedModule", "TokenObjective"]
