import copy
import io
import pickle

import pytest
import torch
from tests.optim.tiny_transformer import set_gradients, tiny_transformer

from lmstack.optim.muon import MuonAdamW
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer

CONFIGS = [AdamWConfig(lr=0.01), MuonConfig(lr=0.02, adamw_lr=0.01), MuonConfig(lr=0.02, adamw_lr=0.01, momentum=0.8)]


def step_range(transformer, optimizer, steps, scheduler=None):
    for step in steps:
        set_gradients(transformer, step)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def weights(transformer):
    return [p.detach().clone() for p in transformer.parameters()]


def all_equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def halving(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_five_steps_a_saved_state_and_five_more_are_ten_steps_bit_for_bit(config, dtype):
    transformer = tiny_transformer().to(dtype)
    optimizer = build_optimizer(config, transformer)
    step_range(transformer, optimizer, range(10), halving(optimizer))

    interrupted = tiny_transformer().to(dtype)
    first = build_optimizer(config, interrupted)
    first_scheduler = halving(first)
    step_range(interrupted, first, range(5), first_scheduler)
    resumed = tiny_transformer(seed=1).to(dtype)
    resumed.load_state_dict(interrupted.state_dict())
    second = build_optimizer(config, resumed)
    second_scheduler = halving(second)
    second.load_state_dict(through_a_file(first.state_dict()))
    second_scheduler.load_state_dict(first_scheduler.state_dict())
    step_range(resumed, second, range(5, 10), second_scheduler)

    assert all_equal(weights(resumed), weights(transformer))
    for a, b in zip(second.state.values(), optimizer.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all_equal(a.values(), b.values())
    assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copied_model_and_optimizer_go_on_as_the_originals(config, copied):
    transformer = tiny_transformer()
    optimizer = build_optimizer(config, transformer)
    step_range(transformer, optimizer, range(3))
    other_transformer, other = copied((transformer, optimizer))
    step_range(transformer, optimizer, range(3, 6))
    assert not all_equal(weights(other_transformer), weights(transformer))
    step_range(other_transformer, other, range(3, 6))
    assert all_equal(weights(other_transformer), weights(transformer))


def test_the_parts_work_on_the_very_groups_and_state_of_the_whole_also_after_loading():
    transformer = tiny_transformer()
    optimizer = build_optimizer(CONFIGS[1], transformer)
    step_range(transformer, optimizer, range(1))
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    inner_groups = [group for part in optimizer._parts for group in part.param_groups]
    assert {id(group) for group in inner_groups} == {id(group) for group in optimizer.param_groups}
    assert all(part.state is optimizer.state for part in optimizer._parts)
    assert set(optimizer.state) == set(transformer.parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_a_learning_rate_of_zero_set_from_outside_stops_every_group(config):
    transformer = tiny_transformer()
    optimizer = build_optimizer(config, transformer)
    step_range(transformer, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = weights(transformer)
    step_range(transformer, optimizer, range(1, 2))
    assert all_equal(weights(transformer), before)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_closure_runs_once_before_the_step_with_gradients_on_and_its_loss_is_returned(config):
    transformer = tiny_transformer()
    optimizer = build_optimizer(config, transformer)
    before, calls = weights(transformer), []

    def closure():
        calls.append(all_equal(weights(transformer), before))
        loss = transformer(torch.arange(8)[None]).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.requires_grad
    assert not all_equal(weights(transformer), before)


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_without_gradient_stay_and_have_no_state(config):
    transformer = tiny_transformer()
    optimizer = build_optimizer(config, transformer)
    set_gradients(transformer, 0)
    skipped = [transformer.embedding.weight, transformer.blocks[0].feed_forward.down.weight]
    for parameter in skipped:
        parameter.grad = None
    before = [p.detach().clone() for p in skipped]
    optimizer.step()
    assert all_equal(skipped, before)
    assert all(p not in optimizer.state for p in skipped)


def test_muon_and_adamw_equal_torchs_two_optimizers_side_by_side():
    config = MuonConfig(lr=0.02, adamw_lr=0.01, weight_decay=0.2)
    transformer, twin = tiny_transformer(tied=False), tiny_transformer(tied=False)
    optimizer = build_optimizer(config, transformer)
    hidden, rest_with_decay, rest = [], [], []
    for name, parameter in twin.named_parameters():
        if parameter.ndim == 2 and name.startswith("blocks."):
            hidden.append(parameter)
        else:
            (rest_with_decay if name == "head.weight" else rest).append(parameter)
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.2, momentum=0.95)
    adamw = torch.optim.AdamW(
        [{"params": rest_with_decay, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    for step in range(4):
        set_gradients(transformer, step)
        set_gradients(twin, step)
        optimizer.step()
        muon.step()
        adamw.step()
    assert all_equal(weights(transformer), weights(twin))


def test_adamw_takes_the_step_of_its_equation():
    # One step from zero state: m / (1 - b1) = g, sqrt(v / (1 - b2)) = |g|; so x (1 - lr wd) - lr g / (|g| + eps).
    transformer = tiny_transformer(tied=False)
    optimizer = build_optimizer(AdamWConfig(lr=0.01, weight_decay=0.5, eps=1e-3), transformer)
    set_gradients(transformer, 0)
    expected = {}
    for name, p in transformer.named_parameters():
        decays = p.ndim == 2 and "embedding" not in name
        expected[name] = p.detach() * (1 - 0.01 * 0.5 * decays) - 0.01 * p.grad / (p.grad.abs() + 1e-3)
    optimizer.step()
    for name, p in transformer.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-7)


def test_muon_moves_hidden_matrices_by_near_orthogonal_updates():
    transformer = tiny_transformer()
    optimizer = build_optimizer(MuonConfig(lr=1.0, adamw_lr=0.01, weight_decay=0.0), transformer)
    name = "blocks.0.feed_forward.down.weight"
    before = transformer.get_parameter(name).detach().clone()
    set_gradients(transformer, 0)
    optimizer.step()
    singular_values = torch.linalg.svdvals(before - transformer.get_parameter(name).detach())
    assert 0.5 < singular_values.min() < singular_values.max() < 1.5


def learning_rates(config, **options):
    return {g["name"]: g["lr"] for g in build_optimizer(config, tiny_transformer(tied=False, **options)).param_groups}


def test_mup_divides_adamws_learning_rate_of_hidden_matrices_by_the_growth_in_width():
    assert learning_rates(AdamWConfig(lr=0.8)) == {"hidden": 0.8, "embeddings": 0.8, "head": 0.8, "vectors": 0.8}
    rates = learning_rates(AdamWConfig(lr=0.8), mup=True)  # base width 4, width 16
    assert rates == {"hidden": 0.2, "embeddings": 0.8, "head": 0.8, "vectors": 0.8}
    assert learning_rates(AdamWConfig(lr=0.8), mup=True, dim=4)["hidden"] == 0.8


@pytest.mark.parametrize(("adjust_lr", "hidden"), [("original", 0.8), ("match_rms_adamw", 0.4)])
def test_mup_leaves_muon_only_what_its_own_adjustment_does_not_already_do(adjust_lr, hidden):
    config = MuonConfig(lr=0.8, adamw_lr=0.1, adjust_lr=adjust_lr)
    assert learning_rates(config, mup=True) == {"hidden": hidden, "embeddings": 0.1, "head": 0.1, "vectors": 0.1}


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_under_mup_the_spectral_norm_of_a_muon_update_does_not_depend_on_the_width(adjust_lr):
    norms = []
    for dim in (8, 32):
        transformer = tiny_transformer(mup=True, dim=dim)
        optimizer = build_optimizer(MuonConfig(1.0, 0.1, adjust_lr=adjust_lr, weight_decay=0.0), transformer)
        weight = transformer.blocks[0].attention.output.weight
        before = weight.detach().clone()
        set_gradients(transformer, 0)
        optimizer.step()
        norms.append(torch.linalg.matrix_norm(before - weight.detach(), 2).item())
    # Newton-Schulz leaves singular values anywhere between 0.7 and 1.2; a wrong factor would be 2 or 1/2.
    assert norms[1] / norms[0] == pytest.approx(1.0, abs=0.35)


def test_floating_point_parameters_on_a_cpu_are_updated_by_the_fused_kernel():
    for dtype in (torch.float32, torch.bfloat16):
        for config in CONFIGS[:2]:
            optimizer = build_optimizer(config, tiny_transformer().to(dtype))
            assert all(g["fused"] for g in optimizer.param_groups if g.get("algorithm") != "muon")


def test_muon_without_a_hidden_matrix_is_refused():
    transformer = tiny_transformer()
    transformer.blocks.requires_grad_(False)
    with pytest.raises(ValueError, match=r"optimizer.kind=muon: no matrix inside `blocks` is trainable"):
        build_optimizer(CONFIGS[1], transformer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamWConfig(lr=0.0), r"optimizer.lr=0.0: must be above 0"),
        (lambda: AdamWConfig(lr=0.1, betas=(0.9, 1.0)), r"optimizer.betas=\(0.9, 1.0\): both must be in \[0, 1\)"),
        (lambda: AdamWConfig(lr=0.1, eps=0.0), r"optimizer.eps=0.0: must be above 0"),
        (lambda: AdamWConfig(lr=0.1, weight_decay=-0.1), r"optimizer.weight_decay=-0.1: must not be negative"),
        (lambda: MuonConfig(lr=0.1, adamw_lr=-1.0), r"optimizer.adamw_lr=-1.0: must be above 0"),
        (lambda: MuonConfig(lr=0.1, adamw_lr=0.1, momentum=1.0), r"optimizer.momentum=1.0: must be in \[0, 1\)"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_muons_optimizer_is_one_object():
    assert isinstance(build_optimizer(CONFIGS[1], tiny_transformer()), MuonAdamW)
