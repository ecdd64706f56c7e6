"""PPO: its gradient against an independent formula, its critics, its entropy bonus, its pretraining mix."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lmstack.data.batch import IGNORE_INDEX
from lmstack.data.rank import Rank
from lmstack.models import load_transformer
from lmstack.models.heads import load_scorer
from lmstack.rl.kl_control import FixedKL
from lmstack.rl.pretraining_mix import PretrainingMix, PretrainingStream
from lmstack.rl.reward_model import RewardModelReward
from lmstack.rl.rollout import SamplingConfig
from lmstack.stages.ppo import PPO, SeparateCritic, SharedCritic
from lmstack.tokenization import byte_tokenizer
from ragged_rl import STOP, Moment, config, gradients_of, ppo, prompts, reward_model, train, update, weights
from tiny_corpus import tiny_corpus
from tiny_rl import PromptSteps
from tiny_run import tiny_trainer


def by_formula(
    moment: Moment, *, kl_coef: float, gamma: float, gae_lambda: float, value_coef: float, temperature: float
):
    """Each row alone, no padding, plain sums; at the first step, where all ratios are one."""
    log_probs, values, advantages, returns = [], [], [], []
    for (ids, slots), score in zip(moment.rows(), moment.rollout.scores.tolist(), strict=True):
        of_row, of_reference = (
            [(model.logits(model(ids))[0].double() / temperature).log_softmax(-1)[t, ids[0, t + 1]] for t in slots]
            for model in (moment.policy, moment.reference)
        )
        value = [moment.value(ids)[t].double() for t in slots]
        rewards = [-kl_coef * (a - b).item() for a, b in zip(of_row, of_reference, strict=True)]
        rewards[-1] += score
        known = [v.item() for v in value] + [0.0]
        errors = [r + gamma * known[i + 1] - known[i] for i, r in enumerate(rewards)]
        own = [
            sum((gamma * gae_lambda) ** (s - t) * errors[s] for s in range(t, len(errors))) for t in range(len(errors))
        ]
        log_probs += of_row
        values += value
        advantages += own
        returns += [a + v for a, v in zip(own, known)]
    whole = torch.tensor(advantages, dtype=torch.float64)
    white = (whole - whole.mean()) / whole.std(unbiased=False)
    error = torch.stack(values) - torch.tensor(returns, dtype=torch.float64)
    return -(white * torch.stack(log_probs)).mean() + value_coef * 0.5 * error.square().mean()


@pytest.mark.parametrize("critic", [SeparateCritic(), SharedCritic()])
def test_the_gradient_is_that_of_the_formula(tmp_path: Path, critic: Any) -> None:
    """Of the second rollout, when the policy has left its reference and the critic says something."""
    stage = ppo(
        critic=critic,
        gamma=0.9,
        gae_lambda=0.7,
        value_coef=0.3,
        kl=FixedKL(0.5),
        sampling=SamplingConfig(max_new_tokens=5, temperature=0.8),
        update=update(micro_batch_size=3),
    )
    moment = Moment(stage, 1)
    recorder, _ = train(stage, tmp_path, 2)
    assert recorder.rollouts[1]["kl/reference"] != 0.0
    assert moment.rollout.values.abs().max() > 0.01
    loss = by_formula(moment, kl_coef=0.5, gamma=0.9, gae_lambda=0.7, value_coef=0.3, temperature=0.8)
    expected = gradients_of(moment, loss)
    assert recorder.gradients.keys() == expected.keys()
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    for name, gradient in recorder.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=2e-6, msg=name)


def test_explained_variance_is_of_all_tokens(tmp_path: Path) -> None:
    stage = ppo()
    moment = Moment(stage, 1)
    recorder, _ = train(stage, tmp_path, 2)
    mask = moment.rollout.response_mask
    returns, values = moment.rollout.returns[mask].double(), moment.rollout.values[mask].double()
    expected = 1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False)
    assert recorder.rollouts[1]["value/explained_variance"] == pytest.approx(expected.item(), abs=1e-5)
    assert recorder.rollouts[1]["value/mean"] == pytest.approx(values.mean().item(), abs=1e-6)


# ---- critics --------------------------------------------------------------------------------------------------------


def test_a_critic_from_the_reward_model_says_its_score_at_the_last_token(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "rm")
    stage = ppo(critic=SeparateCritic(init_from=path), rewards={"rm": RewardModelReward(path)})
    moment = Moment(stage, 0)
    train(stage, tmp_path)
    assert moment.critic is not None
    values = moment.critic.scores(moment.rollout.input_ids, moment.rollout.lengths)
    torch.testing.assert_close(values, moment.rollout.scores, rtol=0, atol=1e-5)
    assert values.std() > 0.01
    trained = load_scorer(path)
    assert torch.equal(moment.critic.score_head.weight, trained.score_head.weight)


def test_a_critic_of_another_shape_is_read_from_its_folder(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "rm", num_layers=1)
    stage = ppo(critic=SeparateCritic(init_from=path))
    train(stage, tmp_path)
    assert stage.critic is not None
    assert len(stage.critic.transformer.blocks) == 1


def test_a_critic_without_a_start_is_the_policy_s_trunk_and_says_zero(tmp_path: Path) -> None:
    base = weights(tmp_path / "base")
    stage = ppo(init_from=base)
    moment = Moment(stage, 0)
    train(stage, tmp_path)
    assert moment.critic is not None
    start = load_transformer(base)
    assert torch.equal(moment.critic.transformer.embedding.weight, start.embedding.weight)
    assert not moment.rollout.values.any()
    assert stage.critic is not None
    assert not torch.equal(stage.critic.transformer.embedding.weight, stage.transformer.embedding.weight)


def test_a_critic_of_another_shape_without_a_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"configs differ|does not fit"):
        train(ppo(critic=SeparateCritic(transformer=config(num_layers=1))), tmp_path)


def test_a_critic_s_output_head_is_not_trained(tmp_path: Path) -> None:
    stage = ppo(transformer=config(tied_embeddings=False, head_bias=True))
    recorder, _ = train(stage, tmp_path)
    assert "transformer.head.weight" in recorder.gradients
    assert "critic.transformer.head.weight" not in recorder.gradients
    assert "critic.transformer.head_bias" not in recorder.gradients
    trained = [name for name, parameter in stage.named_parameters() if parameter.requires_grad]
    assert sorted(recorder.gradients) == sorted(trained)  # else a data-parallel strategy would wait for the others


@pytest.mark.parametrize("critic", [SeparateCritic(), SharedCritic()])
def test_while_the_critic_warms_up_the_policy_stays_bit_for_bit(tmp_path: Path, critic: Any) -> None:
    def run(num_rollouts: int) -> PPO:
        stage = ppo(critic=critic, critic_warmup_rollouts=2, update=update(num_epochs=2), entropy_coef=0.1)
        train(stage, tmp_path, num_rollouts)
        return stage

    fresh, warm, trained = ppo(critic=critic), run(2), run(3)
    for name, value in fresh.transformer.state_dict().items():
        assert torch.equal(warm.transformer.state_dict()[name], value), name
    assert not torch.equal(trained.transformer.embedding.weight, warm.transformer.embedding.weight)
    head = warm.value_head if warm.critic is None else warm.critic.score_head
    assert head.weight.abs().max() > 1e-3


# ---- entropy bonus --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [3, 4096])
def test_the_entropy_bonus_is_of_the_whole_distribution(tmp_path: Path, chunk_size: int) -> None:
    """Its gradient: by what the entropy, enumerated at every token's position, changes."""
    options = {"sampling": SamplingConfig(max_new_tokens=5, temperature=0.8), "loss_chunk_size": chunk_size}
    stage = ppo(entropy_coef=0.5, update=update(micro_batch_size=3), **options)
    moment = Moment(stage, 0)
    recorder, _ = train(stage, tmp_path)
    without, _ = train(ppo(entropy_coef=0.0, **options), tmp_path)
    entropies = []
    for ids, slots in moment.rows():
        probs = (moment.policy.logits(moment.policy(ids))[0].double() / 0.8).softmax(-1)
        entropies += [-(probs[t] * probs[t].log()).sum() for t in slots]
    mean = torch.stack(entropies).mean()
    expected = gradients_of(moment, -0.5 * mean)
    assert recorder.rollouts[0]["update/entropy"] == pytest.approx(mean.item(), abs=1e-5)
    for name, gradient in expected.items():
        difference = recorder.gradients[name] - without.gradients[name]
        torch.testing.assert_close(difference, gradient, rtol=0, atol=2e-6, msg=name)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3


# ---- pretraining mix ------------------------------------------------------------------------------------------------

BYTES = 260


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    letters = random.Random(0)
    texts = {"a": ["".join(letters.choices("abcdefgh ", k=30 + 7 * i)) for i in range(9)]}
    return str(tiny_corpus(tmp_path_factory.mktemp("corpus"), texts, {}))


def mix(corpus: str, **changes: Any) -> PretrainingMix:
    return PretrainingMix(corpus, **({"sequence_length": 12, "rows_per_step": 6, "micro_batch_size": 2} | changes))


@pytest.mark.parametrize("coef", [27.8, 0.5])
def test_the_joint_gradient_is_the_policy_s_plus_gamma_times_the_text_s(
    tmp_path: Path, corpus: str, coef: float
) -> None:
    shape = config(vocab_size=BYTES)
    joint, alone = (ppo(transformer=shape, pretraining_mix=m) for m in (mix(corpus, coef=coef), None))
    moment = Moment(joint, 0)
    with_text, _ = train(joint, tmp_path)
    without, _ = train(alone, tmp_path)
    losses = []
    for batch in PretrainingStream(mix(corpus), Rank()).micro_batches(0):
        hidden = moment.policy(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids)
        log_probs = moment.policy.logits(hidden).double().log_softmax(-1)
        counts = batch.labels != IGNORE_INDEX
        losses.append(-log_probs[counts].gather(1, batch.labels[counts][:, None])[:, 0])
    loss = torch.cat(losses).mean()
    text = gradients_of(moment, coef * loss)
    assert with_text.rollouts[0]["ptx/loss"] == pytest.approx(loss.item(), abs=1e-5)
    norm = torch.stack([gradient.square().sum() for gradient in text.values()]).sum().sqrt()
    assert with_text.rollouts[0]["ptx/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for name, gradient in with_text.gradients.items():
        expected = without.gradients[name] + text.get(name, torch.zeros(()))
        torch.testing.assert_close(gradient, expected, rtol=0, atol=coef * 2e-6, msg=name)


def test_every_step_reads_on_in_the_text(tmp_path: Path, corpus: str) -> None:
    stage = ppo(transformer=config(vocab_size=BYTES), pretraining_mix=mix(corpus), update=update(num_minibatches=2))
    seen: list[int] = []

    class Watched(PretrainingStream):
        def micro_batches(self, step: int) -> Any:
            seen.append(step)
            return super().micro_batches(step)

    stage._pretraining_stream = lambda config, _: Watched(config, Rank())  # type: ignore[method-assign]
    train(stage, tmp_path, 3)
    assert seen == list(range(6))


def test_text_of_another_tokenizer_is_refused(tmp_path: Path, corpus: str) -> None:
    data = PromptSteps(prompts(1), STOP)
    data.tokenizer = byte_tokenizer(["<|other|>"])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="was built with another tokenizer than the policy's"):
        tiny_trainer(tmp_path).fit(ppo(transformer=config(vocab_size=BYTES), pretraining_mix=mix(corpus)), data)
