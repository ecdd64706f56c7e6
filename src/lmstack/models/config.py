"""The shape of a transformer: frozen, checked on construction, saved beside the weights."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023, arXiv:2306.15595).

    Attributes:
        factor: New context length over the trained one, above 1.
    """

    factor: float
    kind: Literal["linear"] = "linear"


@dataclass(frozen=True)
class NTKScaling:
    """Base raised so that the lowest frequency is stretched by `factor` and the highest is kept.

    Attributes:
        factor: New context length over the trained one, above 1.
    """

    factor: float
    kind: Literal["ntk"] = "ntk"


@dataclass(frozen=True)
class YarnScaling:
    """YaRN, "NTK-by-parts" with an attention temperature (Peng et al. 2023, arXiv:2309.00071).

    Attributes:
        factor: New context length over the trained one, above 1.
        original_max_seq_len: Context length the weights were trained with, in tokens.
        beta_fast: Rotations above which a frequency is left alone.
        beta_slow: Rotations below which a frequency is fully interpolated.
    """

    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    kind: Literal["yarn"] = "yarn"


@dataclass(frozen=True)
class Llama3Scaling:
    """The piecewise scaling of Llama 3.1 (arXiv:2407.21783).

    Attributes:
        factor: New context length over the trained one, above 1.
        original_max_seq_len: Context length the weights were trained with, in tokens.
        low_freq_factor: Wavelengths above `original_max_seq_len / low_freq_factor` are divided by `factor`.
        high_freq_factor: Wavelengths below `original_max_seq_len / high_freq_factor` are left alone.
    """

    factor: float = 8.0
    original_max_seq_len: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    kind: Literal["llama3"] = "llama3"


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embedding, half-split pairing (Su et al. 2021, arXiv:2104.09864).

    Attributes:
        theta: Base of the wavelengths.
        scaling: How angles change beyond the trained context; None keeps them.
    """

    theta: float = 10000.0
    scaling: LinearScaling | NTKScaling | YarnScaling | Llama3Scaling | None = None
    kind: Literal["rotary"] = "rotary"


@dataclass(frozen=True)
class LearnedConfig:
    """One learned vector for each of `max_seq_len` positions, added to the token embedding."""

    kind: Literal["learned"] = "learned"


@dataclass(frozen=True)
class AlibiConfig:
    """Linear distance penalty on attention scores, one slope a head (Press et al. 2021, arXiv:2108.12409)."""

    kind: Literal["alibi"] = "alibi"


@dataclass(frozen=True)
class NoPositionsConfig:
    """No position information but causality (Kazemnejad et al. 2023, arXiv:2305.19466)."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class NormConfig:
    """The normalization used everywhere in the model.

    Attributes:
        kind: `rms` (arXiv:1910.07467) or `layer` (arXiv:1607.06450).
        eps: Added to the variance.
        bias: A learned offset; only `layer` has one.
        placement: `pre` normalizes each branch's input, `post` the residual sum after it (the original
            transformer; there is then no final norm), `sandwich` both a branch's input and its output.
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    bias: bool = False
    placement: Literal["pre", "post", "sandwich"] = "pre"

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            ValueError: A field contradicts another.
        """
        if self.kind == "rms" and self.bias:
            raise ValueError("norm.bias=True: an RMS norm has no bias. Use norm.kind=layer, or norm.bias=false.")


@dataclass(frozen=True)
class AttentionConfig:
    """What differs between attention layers, beyond the number of heads.

    Attributes:
        qkv_bias: Bias on the query, key and value projections.
        out_bias: Bias on the output projection.
        qk_norm: Normalize queries and keys over each head's channels before the rotation.
        window: A token sees itself and the `window - 1` tokens before it; None sees all.
        full_every: With a window, every `full_every`-th layer (the last of each group) sees all; None: no layer does.
        softcap: Scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv:2408.00118); None leaves them.
    """

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    full_every: int | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            ValueError: A field is out of range or contradicts another.
        """
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention.window={self.window}: must be at least 1, or null for no window.")
        if self.full_every is not None and self.window is None:
            raise ValueError(
                f"attention.full_every={self.full_every} has no effect without attention.window. "
                "Set a window, or drop it."
            )


@dataclass(frozen=True)
class DenseConfig:
    """A feed-forward block.

    Attributes:
        hidden_dim: Width F of the hidden layer.
        activation: Non-linearity. `gelu_tanh` is GPT-2's approximation.
        gated: Multiply the activation by a second projection (SwiGLU for `silu`; Shazeer 2020, arXiv:2002.05202).
        bias: Bias on every projection.
    """

    hidden_dim: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    gated: bool = True
    bias: bool = False
    kind: Literal["dense"] = "dense"


@dataclass(frozen=True)
class GaussianInit:
    """Every matrix and embedding from N(0, std).

    Attributes:
        std: Standard deviation.
    """

    std: float = 0.02
    kind: Literal["gaussian"] = "gaussian"


@dataclass(frozen=True)
class DepthScaledInit:
    """GPT-2: N(0, std), with the projections that write to the residual stream at std / sqrt(2 L).

    Attributes:
        std: Standard deviation before depth scaling.
    """

    std: float = 0.02
    kind: Literal["depth_scaled"] = "depth_scaled"


@dataclass(frozen=True)
class TFixupInit:
    """In the manner of T-Fixup (Huang et al., ICML 2020).

    Xavier, with value, output and feed-forward matrices and the embedding scaled down by depth, so that post-norm
    stacks train without warm-up.
    """

    kind: Literal["tfixup"] = "tfixup"


@dataclass(frozen=True)
class MuPInit:
    """Maximal update parametrization (Yang et al. 2022, arXiv:2203.03466): hyper-parameters tuned at `base_dim` hold
    at every width. Hidden matrices start at std * sqrt(base_dim / dim), attention divides by C instead of
    sqrt(C) (equal at the base head size), the logits are multiplied by base_dim / dim, and the optimizer divides the
    learning rate of hidden matrices by dim / base_dim.

    Attributes:
        base_dim: Width D at which the hyper-parameters were tuned.
        base_head_dim: Channels C of a head at that width.
        std: Standard deviation at the base width.
    """

    base_dim: int
    base_head_dim: int
    std: float = 0.02
    kind: Literal["mup"] = "mup"


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides a transformer's function and initial weights.

    Attributes:
        vocab_size: Rows V of the embedding.
        max_seq_len: Longest sequence in tokens; sizes learned positions and caches.
        dim: Width D of the residual stream.
        num_layers: Number L of blocks.
        num_heads: Number H of query heads.
        positions: How order enters.
        feed_forward: The block after attention.
        initialization: How weights start.
        num_kv_heads: Number K of key-value heads: H is multi-head attention (None means this), 1 multi-query, between
            them grouped-query.
        head_dim: Channels C of a head; None means D / H.
        attention: Biases, query-key norm, window, soft-cap.
        norm: Kind and placement of normalization.
        parallel_residual: Attention and feed-forward read the same normalized input and are added together (GPT-J).
        tied_embeddings: The output head is the embedding matrix.
        head_bias: Bias on the output head.
        embedding_norm: Normalize the embedding before the first block.
        embedding_scale: Multiply the embedding by sqrt(D) (Gemma).
        logit_softcap: Logits become `softcap * tanh(logits / softcap)`; None leaves them.
        dropout: Probability, on the embedding and on what each branch adds to the residual stream.
        causal: A token sees only what came before it; False for masked language models.
    """

    vocab_size: int
    max_seq_len: int
    dim: int
    num_layers: int
    num_heads: int
    positions: RotaryConfig | LearnedConfig | AlibiConfig | NoPositionsConfig
    feed_forward: DenseConfig
    initialization: GaussianInit | DepthScaledInit | TFixupInit | MuPInit
    num_kv_heads: int | None = None
    head_dim: int | None = None
    attention: AttentionConfig = AttentionConfig()
    norm: NormConfig = NormConfig()
    parallel_residual: bool = False
    tied_embeddings: bool = True
    head_bias: bool = False
    embedding_norm: bool = False
    embedding_scale: bool = False
    logit_softcap: float | None = None
    dropout: float = 0.0
    causal: bool = True

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            ValueError: A size is out of range or does not divide another; the message names the nearest that would.
        """
        for name in ("vocab_size", "max_seq_len", "dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"transformer.{name}={getattr(self, name)}: must be at least 1.")
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"transformer.dim={self.dim} is not a multiple of num_heads={self.num_heads}. "
                f"Use dim={round(self.dim / self.num_heads) * self.num_heads}, or set head_dim."
            )
        if self.num_heads % self.kv_heads:
            divisors = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ValueError(
                f"transformer.num_kv_heads={self.kv_heads} does not divide num_heads={self.num_heads}. "
                f"Use one of {divisors}."
            )
        if self.positions.kind == "rotary" and self.channels % 2:
            raise ValueError(f"transformer.head_dim={self.channels} is odd: rotary positions turn channels in pairs.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"transformer.dropout={self.dropout}: must be in [0, 1).")
        if self.norm.placement == "post" and self.parallel_residual:
            raise ValueError("transformer.parallel_residual=True needs norm.placement=pre or sandwich.")

    @property
    def kv_heads(self) -> int:
        """Number K of key-value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def channels(self) -> int:
        """Channels C of a head."""
        return self.head_dim or self.dim // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to `config.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """The inverse of `to_dict`.

        Args:
            values: Plain values, nested as the fields are.

        Raises:
            ValueError: A key is unknown or missing, or a `kind` has no such choice.
        """
        return typing.cast(TransformerConfig, _build(cls, values, "transformer"))


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where} has no field {unknown[0]!r}. Fields: {', '.join(hints)}.")
    try:
        return cls(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}.") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    configs = [member for member in members if dataclasses.is_dataclass(member)]
    if not configs or not isinstance(value, dict):
        return value
    if len(configs) == 1:
        return _build(typing.cast(type, configs[0]), value, where)
    by_kind = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in configs}
    if value.get("kind") not in by_kind:
        raise ValueError(f"{where}.kind={value.get('kind')!r}: must be one of {', '.join(by_kind)}.")
    return _build(typing.cast(type, by_kind[value["kind"]]), value, where)
