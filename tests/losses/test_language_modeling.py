import contextlib
import itertools
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lmstack.losses.output_head as output_head
from lmstack.losses.language_modeling import LossSums, chunked_cross_entropy_sum, token_log_probs
from lmstack.losses.reduction import IGNORE_INDEX

Z_LOSS_COEF = 0.07
FP64_TOLERANCE = 1e-10  # sums of a few hundred float64 terms of order one


@dataclass
class Problem:
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor

    def inputs(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias) if t is not None and t.requires_grad]


def make_problem(n=37, d=8, v=13, *, bias=True, dtype=torch.float64, ignored=0.3, seed=0, scale=1.0) -> Problem:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, v, (n,), generator=g)
    labels[torch.rand(n, generator=g) < ignored] = IGNORE_INDEX
    return Problem(
        (scale * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype).requires_grad_(),
        torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_(),
        torch.randn(v, generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None,
        labels,
    )


def plain_logits(p: Problem, logit_scale=1.0, logit_softcap=None, temperature=1.0) -> Tensor:
    logits = logit_scale * (p.hidden @ p.weight.T)
    if p.bias is not None:
        logits = logits + p.bias
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    return logits / temperature


def plain_sums(p: Problem, *, z_loss_coef=0.0, **options) -> LossSums:
    """The oracle: every logit at once, and torch's autograd."""
    logits = plain_logits(p, **options)
    counts = p.labels != IGNORE_INDEX
    cross_entropy = F.cross_entropy(logits, p.labels, reduction="sum", ignore_index=IGNORE_INDEX)
    return LossSums(cross_entropy, z_loss_coef * logits.logsumexp(-1)[counts].square().sum(), counts.sum())


def chunked(p: Problem, *, chunk_size=10, **options) -> LossSums:
    return chunked_cross_entropy_sum(p.hidden, p.weight, p.labels, chunk_size=chunk_size, head_bias=p.bias, **options)


def assert_all_close(ours, theirs, tolerance=FP64_TOLERANCE):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


UPSTREAMS = {
    "added, then divided": lambda s: (s.cross_entropy + s.z_loss) / 7,
    "divided, then added": lambda s: s.cross_entropy / 7 + s.z_loss / 3,
    "only the cross-entropy": lambda s: s.cross_entropy * 2,
    "only the z-loss": lambda s: s.z_loss * 2,
}


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("logit_softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
def test_sums_and_gradients_equal_those_of_all_logits_at_once(upstream, logit_softcap, bias):
    p = make_problem(bias=bias)
    options = {"logit_scale": 0.7, "logit_softcap": logit_softcap, "z_loss_coef": Z_LOSS_COEF}
    ours, theirs = chunked(p, **options), plain_sums(p, **options)
    assert_all_close(ours[:2], theirs[:2])
    assert ours.num_tokens == theirs.num_tokens
    loss = UPSTREAMS[upstream]
    assert_all_close(torch.autograd.grad(loss(ours), p.inputs()), torch.autograd.grad(loss(theirs), p.inputs()))


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_without_z_loss_equal_those_of_all_logits_at_once(bias):
    p = make_problem(bias=bias)
    ours, theirs = chunked(p).cross_entropy / 5, plain_sums(p).cross_entropy / 5
    assert_all_close(torch.autograd.grad(ours, p.inputs()), torch.autograd.grad(theirs, p.inputs()))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 20),
    v=st.integers(1, 17),
    chunk_size=st.integers(1, 25),
    ignored=st.floats(0.0, 1.0),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    z_loss_coef=st.sampled_from([0.0, 1e-3]),
    seed=st.integers(0, 1000),
)
def test_the_chunk_size_never_matters(n, v, chunk_size, ignored, scale, z_loss_coef, seed):
    p = make_problem(n, 5, v, ignored=ignored, seed=seed, scale=scale)
    ours = chunked(p, chunk_size=chunk_size, z_loss_coef=z_loss_coef)
    theirs = plain_sums(p, z_loss_coef=z_loss_coef)
    assert_all_close(ours[:2], theirs[:2])
    grads = [torch.autograd.grad(s.cross_entropy + s.z_loss, p.inputs()) for s in (ours, theirs)]
    assert_all_close(*grads)


def test_a_cpu_cuts_large_chunks_to_fit_its_cache_and_the_result_stays(monkeypatch):
    p = make_problem(n=50)
    whole = chunked(p, chunk_size=1000)
    monkeypatch.setattr(output_head, "CPU_CHUNK_ELEMENTS", 13 * 7)
    head = output_head.ChunkedHead(
        p.hidden, p.weight, None, p.labels, p.labels >= 0, output_head.HeadOptions(1000, 1.0, None, 1.0, torch.float64)
    )
    assert head.rows_in_chunk == 7
    assert_all_close(chunked(p, chunk_size=1000)[:2], whole[:2])


def test_a_uniform_prediction_costs_the_log_of_the_vocabulary():
    sums = chunked_cross_entropy_sum(torch.zeros(2, 3, 4), torch.ones(9, 4), torch.full((2, 3), 5), chunk_size=4)
    assert sums.cross_entropy.item() == pytest.approx(6 * math.log(9), rel=1e-6)
    assert sums.num_tokens.item() == 6


def test_a_hand_computed_pair_of_logits_gives_its_loss_z_loss_and_gradient():
    # logits (ln 3, 0): p = (3/4, 1/4), logsumexp = ln 4
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[math.log(3.0)], [0.0]], requires_grad=True)
    sums = chunked_cross_entropy_sum(hidden, weight, torch.tensor([1]), chunk_size=1, z_loss_coef=0.5)
    assert sums.cross_entropy.item() == pytest.approx(math.log(4.0), rel=1e-6)
    assert sums.z_loss.item() == pytest.approx(0.5 * math.log(4.0) ** 2, rel=1e-6)
    (sums.cross_entropy + sums.z_loss).backward()
    factor = 1.0 + math.log(4.0)  # 1 + 2 * 0.5 * logsumexp
    assert weight.grad.flatten().tolist() == pytest.approx([0.75 * factor, 0.25 * factor - 1.0], rel=1e-6)


def test_a_z_loss_coefficient_of_zero_is_bit_identical_to_none():
    p = make_problem(dtype=torch.float32)
    absent, zero = chunked(p), chunked(p, z_loss_coef=0.0)
    assert torch.equal(absent.cross_entropy, zero.cross_entropy)
    assert zero.z_loss.item() == 0.0
    grads = [
        torch.autograd.grad(loss, p.inputs())
        for loss in (absent.cross_entropy * 3, (zero.cross_entropy + zero.z_loss) * 3)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 37), max_size=4), seed=st.integers(0, 100))
def test_any_partition_into_micro_batches_has_the_same_sums_and_gradients(cuts, seed):
    p = make_problem(seed=seed, ignored=0.5)
    edges = sorted({0, 37, *cuts})
    whole = chunked(p, z_loss_coef=Z_LOSS_COEF)
    parts = [
        chunked(Problem(p.hidden[a:b], p.weight, p.bias, p.labels[a:b]), z_loss_coef=Z_LOSS_COEF)
        for a, b in itertools.pairwise(edges)
    ]
    totals = LossSums(*(sum(column) for column in zip(*parts, strict=True)))
    assert_all_close(totals[:2], whole[:2])
    assert totals.num_tokens == whole.num_tokens
    losses = [(s.cross_entropy + s.z_loss) / s.num_tokens.clamp(min=1) for s in (totals, whole)]
    assert_all_close(*(torch.autograd.grad(loss, p.inputs()) for loss in losses), tolerance=1e-12)


@pytest.mark.parametrize("z_loss_coef", [0.0, Z_LOSS_COEF])
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (0, 8), (0, 4, 8)])
def test_without_any_label_loss_and_gradients_are_zero_even_where_hidden_states_are_not_finite(shape, z_loss_coef):
    hidden = torch.full(shape, math.nan, requires_grad=True)
    weight = torch.randn(13, 8, requires_grad=True)
    bias = torch.randn(13, requires_grad=True)
    labels = torch.full(shape[:-1], IGNORE_INDEX)
    sums = chunked_cross_entropy_sum(
        hidden, weight, labels, chunk_size=4, head_bias=bias, z_loss_coef=z_loss_coef, logit_softcap=5.0
    )
    assert [s.item() for s in sums] == [0.0, 0.0, 0]
    (sums.cross_entropy + sums.z_loss).backward()
    for tensor in (hidden, weight, bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))
    log_probs = token_log_probs(hidden, weight, labels, chunk_size=4, head_bias=bias)
    assert torch.equal(log_probs, torch.zeros(shape[:-1]))
    assert all(
        torch.equal(g, torch.zeros_like(g)) for g in torch.autograd.grad(log_probs.sum(), (hidden, weight, bias))
    )


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("z_loss_coef", [0.0, Z_LOSS_COEF])
def test_what_stands_at_a_position_without_label_changes_nothing(garbage, z_loss_coef):
    p = make_problem()
    spoilt = torch.where((p.labels == IGNORE_INDEX)[:, None], garbage, p.hidden.detach()).requires_grad_()
    q = Problem(spoilt, p.weight, p.bias, p.labels)
    results = []
    for problem in (p, q):
        sums = chunked(problem, z_loss_coef=z_loss_coef, logit_softcap=4.0)
        loss = sums.cross_entropy + sums.z_loss
        results.append((*sums, *torch.autograd.grad(loss, problem.inputs())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_label_outside_the_vocabulary_is_an_error_and_not_another_token():
    p = make_problem()
    for label in (13, -1):
        p.labels[4] = label
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            chunked(p)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("z_loss_coef", [0.0, Z_LOSS_COEF])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen, z_loss_coef):
    p = make_problem()
    sums = chunked(p, z_loss_coef=z_loss_coef)
    wanted = dict(zip(("hidden", "weight", "bias"), torch.autograd.grad(sums[0] + sums[1], p.inputs()), strict=True))
    getattr(p, frozen).requires_grad_(False)
    sums = chunked(p, z_loss_coef=z_loss_coef)
    (sums[0] + sums[1]).backward()
    assert getattr(p, frozen).grad is None
    for name in wanted.keys() - {frozen}:
        assert torch.equal(getattr(p, name).grad, wanted[name])


def test_no_gradient_is_computed_when_gradients_are_off(monkeypatch):
    p = make_problem()
    with_gradients = chunked(p, z_loss_coef=Z_LOSS_COEF)
    monkeypatch.setattr(output_head.Chunk, "backward", lambda *args, **kwargs: pytest.fail("computed a gradient"))
    with torch.no_grad():
        without = chunked(p, z_loss_coef=Z_LOSS_COEF)
    assert not without.cross_entropy.requires_grad
    assert torch.equal(without.cross_entropy, with_gradients.cross_entropy)
    assert torch.equal(without.z_loss, with_gradients.z_loss)


def test_losses_added_before_scaling_reuse_the_gradients_of_the_forward_pass(monkeypatch):
    p = make_problem()
    sums = chunked(p, z_loss_coef=Z_LOSS_COEF)
    loss = (sums.cross_entropy + sums.z_loss) / sums.num_tokens
    monkeypatch.setattr(output_head.Chunk, "backward", lambda *args, **kwargs: pytest.fail("computed them again"))
    loss.backward()
    assert p.weight.grad is not None


@pytest.mark.parametrize("z_loss_coef", [0.0, Z_LOSS_COEF])
def test_a_second_backward_through_a_retained_graph_gives_the_same_gradients(z_loss_coef):
    p = make_problem()
    sums = chunked(p, z_loss_coef=z_loss_coef)
    plain = plain_sums(p, z_loss_coef=z_loss_coef)
    wanted = torch.autograd.grad((plain.cross_entropy + plain.z_loss) / 3, p.inputs())
    loss = (sums.cross_entropy + sums.z_loss) / 3
    first = torch.autograd.grad(loss, p.inputs(), retain_graph=True)
    second = torch.autograd.grad(loss, p.inputs())
    assert_all_close(first, wanted)  # after the second: neither shares memory with the other
    assert_all_close(second, wanted)


def test_activation_checkpointing_around_the_loss_changes_nothing():
    p = make_problem()
    sums = torch.utils.checkpoint.checkpoint(lambda: chunked(p, z_loss_coef=Z_LOSS_COEF), use_reentrant=False)
    plain = plain_sums(p, z_loss_coef=Z_LOSS_COEF)
    assert_all_close(
        torch.autograd.grad(sums[0] + sums[1], p.inputs()), torch.autograd.grad(plain[0] + plain[1], p.inputs())
    )


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_a_chunk_size_below_one_is_refused(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size={chunk_size}: must be at least 1"):
        chunked(make_problem(), chunk_size=chunk_size)


def test_a_vocabulary_of_128k_in_bfloat16_agrees_with_float64():
    # Softmax in bfloat16 would be off by up to 2^-8 of logits around 12, a loss error near 0.03; see the next test.
    vocab_size, bound = 128_000, 2e-3
    p = make_problem(48, 16, vocab_size, bias=False, dtype=torch.bfloat16, scale=0.5)
    exact = Problem(p.hidden.double(), p.weight.double(), None, p.labels)
    ours, wanted = chunked(p, z_loss_coef=1e-4), plain_sums(exact, z_loss_coef=1e-4)
    assert ours.cross_entropy.dtype == torch.float32
    per_token = (ours.cross_entropy.double() - wanted.cross_entropy) / wanted.num_tokens
    assert abs(per_token.item()) < bound
    assert ours.z_loss.item() == pytest.approx(wanted.z_loss.item(), rel=1e-3)


def test_cross_entropy_in_bfloat16_would_miss_the_bound_of_the_test_above():
    p = make_problem(48, 16, 128_000, bias=False, dtype=torch.bfloat16, scale=0.5)
    exact = plain_sums(Problem(p.hidden.double(), p.weight.double(), None, p.labels))
    log_probs = torch.log_softmax(p.hidden @ p.weight.T, -1).gather(1, p.labels.clamp(min=0)[:, None]).squeeze(1)
    in_bfloat16 = -(log_probs * (p.labels >= 0)).sum()
    assert abs((in_bfloat16.double() - exact.cross_entropy) / exact.num_tokens).item() > 2e-3


def test_gradients_of_bfloat16_parameters_are_as_close_to_float64_as_bfloat16_allows():
    p = make_problem(300, 16, 50, dtype=torch.bfloat16)
    exact = Problem(*(t.detach().double().requires_grad_() for t in (p.hidden, p.weight, p.bias)), labels=p.labels)
    ours, wanted = chunked(p, chunk_size=64), plain_sums(exact)
    grads = torch.autograd.grad(ours.cross_entropy / 7, p.inputs())
    exact_grads = torch.autograd.grad(wanted.cross_entropy / 7, exact.inputs())
    for ours_grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert ours_grad.dtype == torch.bfloat16
        error = (ours_grad.double() - exact_grad).norm() / exact_grad.norm()
        assert error < 6e-3  # bfloat16 keeps 8 bits: 2^-9 a rounding, of logits, probabilities and result


def test_the_weight_gradient_is_summed_over_chunks_in_float32():
    # A bfloat16 sum of halves stops growing at 128.
    n = 512
    hidden = torch.ones(n, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    chunked_cross_entropy_sum(hidden, weight, torch.zeros(n, dtype=torch.int64), chunk_size=1).cross_entropy.backward()
    assert weight.grad.flatten().tolist() == [-n / 2, n / 2]


@pytest.mark.parametrize("autocast_backward", [False, True])
def test_autocast_multiplies_in_bfloat16_and_keeps_loss_and_gradients_in_float32(autocast_backward):
    p = make_problem(300, 16, 50, dtype=torch.float32)
    rounded = Problem(
        *(t.detach().bfloat16().double().requires_grad_() for t in (p.hidden, p.weight)),
        p.bias.detach().double(),
        p.labels,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = chunked(p, chunk_size=64)
        log_probs = token_log_probs(p.hidden, p.weight, p.labels, chunk_size=64, head_bias=p.bias)
    wanted = plain_sums(rounded).cross_entropy
    assert sums.cross_entropy.dtype == torch.float32
    assert log_probs.dtype == torch.float32
    assert sums.cross_entropy.item() == pytest.approx(wanted.item(), rel=1e-3)
    assert sums.cross_entropy.item() != pytest.approx(chunked(p).cross_entropy.item(), rel=1e-7)  # it did round
    exact_grads = torch.autograd.grad(wanted, rounded.inputs())
    for loss in (sums.cross_entropy, -log_probs.sum()):
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast_backward else contextlib.nullcontext():
            grads = torch.autograd.grad(loss, [p.hidden, p.weight])
        for grad, exact in zip(grads, exact_grads, strict=True):
            assert grad.dtype == torch.float32
            assert (grad.double() - exact).norm() / exact.norm() < 6e-3


def test_a_backward_inside_autocast_of_a_forward_outside_stays_in_float32():
    p = make_problem(dtype=torch.float32)
    grads = []
    for backward_region in (contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        sums = chunked(p, z_loss_coef=Z_LOSS_COEF)
        log_probs = token_log_probs(p.hidden, p.weight, p.labels, chunk_size=10)
        losses = (sums.cross_entropy + 2 * sums.z_loss, log_probs.sum())  # both compute logits again
        with backward_region:
            grads.append([torch.autograd.grad(loss, [p.hidden, p.weight]) for loss in losses])
    for outside, inside in zip(*grads, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_an_upstream_gradient_that_is_not_finite_at_an_ignored_token_does_not_spread():
    p = make_problem(bias=False)
    upstream = torch.where(p.labels == IGNORE_INDEX, math.nan, 1.0).double()
    log_probs = token_log_probs(p.hidden, p.weight, p.labels, chunk_size=10)
    clean = torch.autograd.grad(log_probs.sum(), p.inputs(), retain_graph=True)
    assert_all_close(torch.autograd.grad(log_probs, p.inputs(), upstream), clean)


def test_float64_is_left_alone_by_autocast():
    p = make_problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = chunked(p)
    assert_all_close(ours[:1], plain_sums(p)[:1])


COMPILED_CALLER = """
import torch
from lmstack.losses import IGNORE_INDEX, chunked_cross_entropy_sum, token_log_probs

torch.manual_seed(0)
hidden, weight = torch.randn(37, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
labels = torch.randint(0, 13, (37,))
labels[::5] = IGNORE_INDEX

def losses(hidden):
    sums = chunked_cross_entropy_sum(hidden * 2, weight, labels, chunk_size=20, z_loss_coef=0.1, logit_softcap=3.0)
    log_probs = token_log_probs(hidden * 2, weight, labels, chunk_size=20)
    return (sums.cross_entropy + sums.z_loss) / sums.num_tokens - log_probs.square().sum()

def gradients(loss):
    return torch.autograd.grad(loss, (hidden, weight))

eager, compiled = losses(hidden), torch.compile(losses, backend="aot_eager")(hidden)
torch.testing.assert_close(compiled, eager)
for ours, theirs in zip(gradients(compiled), gradients(eager)):
    torch.testing.assert_close(ours, theirs)
"""


@pytest.mark.slow
def test_a_compiled_caller_gets_the_same_loss_and_gradients():
    # In its own process: dynamo cannot trace the shape checks that are on in this one.
    done = subprocess.run([sys.executable, "-c", COMPILED_CALLER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def plain_log_probs(p: Problem, **options) -> Tensor:
    log_probs = torch.log_softmax(plain_logits(p, **options), -1)
    picked = log_probs.gather(-1, p.labels.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(p.labels == IGNORE_INDEX, 0.0, picked)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("logit_softcap", [None, 1.5])
def test_token_log_probs_and_their_gradients_equal_those_of_all_logits_at_once(temperature, logit_softcap):
    p = make_problem()
    options = {"logit_scale": 0.7, "logit_softcap": logit_softcap, "temperature": temperature}
    ours = token_log_probs(p.hidden, p.weight, p.labels, chunk_size=10, head_bias=p.bias, **options)
    theirs = plain_log_probs(p, **options)
    assert_all_close([ours], [theirs])
    upstream = torch.randn(37, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_all_close(
        torch.autograd.grad((ours * upstream).sum(), p.inputs()),
        torch.autograd.grad((theirs * upstream).sum(), p.inputs()),
    )


def test_token_log_probs_have_the_shape_of_the_labels_and_sum_to_minus_the_cross_entropy():
    p = make_problem(n=24)
    log_probs = token_log_probs(
        p.hidden.reshape(4, 6, 8), p.weight, p.labels.reshape(4, 6), chunk_size=5, head_bias=p.bias
    )
    assert log_probs.shape == (4, 6)
    assert_all_close([-log_probs.sum()], [chunked(p).cross_entropy])


def test_probabilities_of_all_tokens_sum_to_one():
    p = make_problem(n=1, ignored=0.0)
    labels = torch.arange(13)
    log_probs = token_log_probs(
        p.hidden.expand(13, 8), p.weight, labels, chunk_size=4, head_bias=p.bias, temperature=0.5
    )
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    p = make_problem()
    with pytest.raises(ValueError, match=r"temperature=.*must be above 0"):
        token_log_probs(p.hidden, p.weight, p.labels, chunk_size=4, temperature=temperature)


def test_the_memory_of_a_step_does_not_grow_with_the_number_of_tokens_times_the_vocabulary():
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    n, v, chunk_size = 500, 101, 16
    p = make_problem(n, 8, v)
    with Largest():
        sums = chunked(p, chunk_size=chunk_size, z_loss_coef=Z_LOSS_COEF)
        (sums.cross_entropy + sums.z_loss).backward()
    assert max(sizes) == n * 8 > chunk_size * v
