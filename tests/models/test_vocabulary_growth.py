from pathlib import Path

import pytest
import torch

from lmstack.models import load_transformer, save_weights
from lmstack.models.vocabulary_growth import grow_vocabulary
from tiny_transformer import tokens, transformer

PIECES = {20: [3], 21: [1, 2, 5, 5], 22: [], 23: [19, 0]}


@pytest.mark.parametrize("tied", [True, False])
def test_old_logits_stay_and_new_ones_are_the_mean_of_their_pieces(tied: bool, tmp_path: Path) -> None:
    small = transformer(seed=1, vocab_size=20, tied_embeddings=tied, head_bias=True)
    torch.nn.init.normal_(small.head_bias)
    save_weights(tmp_path, grow_vocabulary(small.state_dict(), small.config, PIECES, num_tokens=24, multiple_of=16))
    big = load_transformer(tmp_path)
    assert big.config.vocab_size == 32
    assert (big.head_weight is big.embedding.weight) == tied
    ids = tokens(2, 8, vocab_size=20)
    with torch.no_grad():
        old, new = small.logits(small(ids)), big.logits(big(ids))
    torch.testing.assert_close(new[..., :20], old, rtol=0, atol=1e-6)
    for index in range(20, 32):
        parts = PIECES.get(index) or list(range(20))  # no pieces: the mean of all
        torch.testing.assert_close(new[..., index], old[..., parts].mean(-1), rtol=0, atol=1e-5)
        expected = small.embedding.weight[parts].mean(0)
        torch.testing.assert_close(big.embedding.weight[index], expected, rtol=0, atol=1e-6)


def test_rows_that_padded_the_old_vocabulary_go_to_new_tokens() -> None:
    padded = transformer(seed=1, vocab_size=24, tied_embeddings=False)
    state, config = grow_vocabulary(padded.state_dict(), padded.config, {20: [3], 21: [4, 5]}, num_tokens=22)
    assert config.vocab_size == 24
    for name in ("embedding.weight", "head.weight"):
        old = padded.state_dict()[name]
        assert torch.equal(state[name][:20], old[:20])
        torch.testing.assert_close(state[name][20:22], torch.stack([old[3], old[4:6].mean(0)]))


def test_noise_is_of_the_size_asked_for_seeded_and_on_new_rows_only() -> None:
    model = transformer(seed=1, vocab_size=20, tied_embeddings=False, head_bias=True)
    pieces = {index: [index % 20] for index in range(20, 2020)}
    grown = [
        grow_vocabulary(model.state_dict(), model.config, pieces, num_tokens=2020, noise=noise, seed=seed)[0]
        for noise, seed in ((0.0, 0), (0.5, 0), (0.5, 0), (0.5, 1))
    ]
    for name in ("embedding.weight", "head.weight"):
        plain, noisy, again, other = (state[name] for state in grown)
        assert torch.equal(noisy, again)
        assert not torch.equal(noisy[20:], other[20:])
        assert torch.equal(noisy[:20], plain[:20])
        ratio = (noisy - plain)[20:].std(0) / model.state_dict()[name].std(0)
        assert ratio.mean().item() == pytest.approx(0.5, rel=0.05)  # 64,000 draws
    assert torch.equal(grown[0]["head_bias"], grown[1]["head_bias"])


def test_what_cannot_be_grown_is_refused() -> None:
    model = transformer(vocab_size=20)
    state, config = model.state_dict(), model.config
    with pytest.raises(ValueError, match="multiple_of=0"):
        grow_vocabulary(state, config, {}, num_tokens=20, multiple_of=0)
    with pytest.raises(ValueError, match="noise=-1"):
        grow_vocabulary(state, config, {}, num_tokens=20, noise=-1.0)
    for pieces in ({20: [20]}, {25: [1]}):
        with pytest.raises(ValueError, match="do not follow the 20 rows of the model"):
            grow_vocabulary(state, config, pieces, num_tokens=26)
