"""Losses: pure functions of tensors, in plain torch."""

from lmstack.losses.language_modeling import LossSums, chunked_cross_entropy_sum, token_log_probs
from lmstack.losses.reduction import IGNORE_INDEX, count_supervised

__all__ = ["IGNORE_INDEX", "LossSums", "chunked_cross_entropy_sum", "count_supervised", "token_log_probs"]
