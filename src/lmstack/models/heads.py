"""A transformer with one number at every position: reward models and critics."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmstack.models.checkpoint import load_transformer, save_weights, weights_folder
from lmstack.models.transformer import Transformer

SCORE_HEAD = "score_head.safetensors"
"""The file beside `model.safetensors` that makes a language model's folder a scorer's."""


class ScoreHead(nn.Module):
    """A linear map to one number, in float32 whatever the hidden states are, also under autocast.

    Weights start from N(0, 1 / (D + 1)) (Stiennon et al. 2020, arXiv:2009.01325, appendix B), the bias at 0.

    Args:
        dim: Width D of the hidden states.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.weight.normal_(0.0, (self.weight.shape[0] + 1) ** -0.5)
        self.bias.zero_()

    def forward(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """A number for each hidden state.

        Args:
            hidden: Hidden states after the final norm.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.to(dtype) @ self.weight.to(dtype) + self.bias.to(dtype)


class ScoringTransformer(nn.Module):
    """A transformer and a head that gives every position a number: a reward model, or a critic.

    The number at a position depends on the tokens up to it. A reward model's score of a text is the number at its last
    token.

    Args:
        transformer: Shared, not copied.
        score_head: Shared, not copied; None makes a new one.

    Raises:
        ValueError: The transformer sees later tokens.
    """

    def __init__(self, transformer: Transformer, score_head: ScoreHead | None = None) -> None:
        super().__init__()
        if not transformer.config.causal:
            raise ValueError(
                "transformer.causal=False: a score must depend on earlier tokens only. Use a causal model."
            )
        self.transformer = transformer
        self.score_head = ScoreHead(transformer.config.dim) if score_head is None else score_head

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """A number at every position, in float32.

        Args:
            input_ids: Tokens.
            position_ids: As for `Transformer`.
            document_ids: As for `Transformer`.
        """
        hidden = self.transformer(input_ids, position_ids=position_ids, document_ids=document_ids)
        return self.score_head(hidden)  # type: ignore[no-any-return]

    def scores(self, input_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The number at the last token of each row. What pads a row on the right is not seen by it.

        Args:
            input_ids: Tokens, padded on the right with any.
            lengths: Real tokens of each row; a row of none gets some number.
        """
        hidden = self.transformer(input_ids)
        rows = torch.arange(len(lengths), device=lengths.device)
        return self.score_head(hidden[rows, (lengths - 1).clamp(min=0)])  # type: ignore[no-any-return]


def save_scorer(folder: str | Path, scorer: ScoringTransformer) -> None:
    """Write the transformer as `save_weights` does, and `score_head.safetensors` beside it.

    Args:
        folder: Made when it does not exist.
        scorer: The model.
    """
    save_weights(folder, scorer.transformer)
    save_file(score_head_state(scorer.score_head), Path(folder) / SCORE_HEAD)


def load_scorer(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    new_head: bool = False,
) -> ScoringTransformer:
    """Build a scorer from a folder of weights.

    Args:
        path: A weights, checkpoint or run folder of a reward model; with `new_head`, of any model.
        device: Where the model goes.
        dtype: Type of the transformer's parameters, None keeps the file's. The head stays in float32.
        new_head: Draw the head anew, whether or not the folder has one.

    Raises:
        ValueError: The folder holds no score head, or one of another width.
    """
    folder = weights_folder(path)
    transformer = load_transformer(folder, dtype=dtype)
    head = ScoreHead(transformer.config.dim)
    if not new_head:
        load_score_head(head, folder)
    return ScoringTransformer(transformer, head).to(device)


def load_score_head(head: ScoreHead, folder: Path) -> None:
    """Fill a head from the file beside a reward model's weights.

    Args:
        head: Filled in place.
        folder: Of the weights.

    Raises:
        ValueError: The folder holds no score head, or one of another width.
    """
    if not (folder / SCORE_HEAD).is_file():
        raise ValueError(
            f"{folder}: no {SCORE_HEAD}: these weights are a language model's, not a reward model's. "
            "Give the run of stage reward_model, or take new_head=True for an untrained head."
        )
    state = load_file(folder / SCORE_HEAD)
    if state["weight"].shape != head.weight.shape:
        raise ValueError(
            f"{folder / SCORE_HEAD}: width {tuple(state['weight'].shape)}, the transformer's is "
            f"{tuple(head.weight.shape)}. The files are of different models."
        )
    head.load_state_dict(state)


def score_head_state(head: ScoreHead) -> dict[str, Tensor]:
    """What `score_head.safetensors` holds: `weight` and `bias` in float32.

    Args:
        head: The head.
    """
    return {name: tensor.detach().float().contiguous() for name, tensor in head.state_dict().items()}
