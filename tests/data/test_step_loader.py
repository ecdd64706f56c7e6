import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from lmstack.data.batch_size import BatchSizePlan, BatchSizeWarmup
from lmstack.data.mixture import Mixture, Phase
from lmstack.data.pretraining_rows import TrainRows, ValidationRows, order_identity
from lmstack.data.rank import Rank
from lmstack.data.step_loader import StepLoader, ValidationLoader
from lmstack.data.token_shards import TokenShards
from lmstack.tokenization import byte_tokenizer, char_tokenizer
from tiny_corpus import write_shards

T = 4
TOKENIZER = byte_tokenizer()


@pytest.fixture
def shards(tmp_path: Path) -> list[TokenShards]:
    """Two sources in which every token of text is another one, so that tokens tell rows apart."""
    ids = iter(range(250))
    sources = [[[256, *itertools.islice(ids, n)] for n in sizes] for sizes in ((5, 1, 9, 30, 3), (7, 20, 2))]
    return [TokenShards(write_shards(tmp_path / str(i), documents)) for i, documents in enumerate(sources)]


def loader(
    shards: list[TokenShards],
    *,
    rank: Rank | None = None,
    workers: int = 0,
    weights: tuple[float, ...] | None = None,
    later: tuple[Phase, ...] = (),
    max_tokens: int | None = None,
    warmup: BatchSizeWarmup | None = None,
    seed: int = 3,
    global_batch_size: int = 4,
    micro_batch_size: int = 2,
) -> StepLoader:
    mixture = Mixture(tuple(s.num_tokens for s in shards), T, weights, seed, later)
    plan = BatchSizePlan(global_batch_size, T, max_tokens, warmup)
    rows = TrainRows(shards, mixture, plan, TOKENIZER, micro_batch_size, rank or Rank())
    return StepLoader(rows, order_identity("abc", mixture, plan), workers)


def rows_of(step: list[TokenBatch]) -> list[tuple[int, ...]]:
    """The rows of a step with something in them, in order, inputs and labels."""
    return [
        (*inputs, *labels)
        for batch in step
        for inputs, labels, documents in zip(
            batch.input_ids.tolist(), batch.labels.tolist(), batch.document_ids.tolist(), strict=True
        )
        if documents[0] != PADDING_DOCUMENT
    ]


def take(loader: StepLoader, count: int) -> list[list[tuple[int, ...]]]:
    return [rows_of(step) for step in itertools.islice(loader, count)]


def joined(ranks: list[list[list[tuple[int, ...]]]]) -> list[list[tuple[int, ...]]]:
    """Steps over all ranks: each rank's rows one after another."""
    return [[row for rank in step for row in rank] for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("weights", [None, (0.75, 0.25)])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_offset_in_an_epoch_and_across_epochs_goes_on_exactly(
    shards: list[TokenShards], weights: tuple[float, ...] | None, workers: int
) -> None:
    steps_per_epoch = sum(s.num_tokens // T for s in shards) // 4
    total = 2 * steps_per_epoch + 3
    whole = take(loader(shards, weights=weights), total)
    offsets = range(total) if workers == 0 else (0, 1, steps_per_epoch, total - 2)
    for done in offsets:
        first = loader(shards, weights=weights, workers=workers)
        assert take(first, done) == whole[:done]
        second = loader(shards, weights=weights, workers=workers)
        second.load_state_dict(first.state_dict())
        assert second.state_dict() == first.state_dict()
        assert take(second, total - done) == whole[done:]


PHASES = (Phase(22, (0.0, 1.0)), Phase(50, (0.5, 0.5)))  # inside the sixth step, and inside the thirteenth


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_offset_around_a_phase_goes_on_exactly(shards: list[TokenShards], workers: int) -> None:
    options = {"weights": (0.75, 0.25), "later": PHASES}
    whole = take(loader(shards, **options), 16)
    for done in range(3, 15) if workers == 0 else (5, 6):
        first = loader(shards, **options, workers=workers)
        assert take(first, done) == whole[:done]
        second = loader(shards, **options, workers=workers)
        second.load_state_dict(first.state_dict())
        assert take(second, 16 - done) == whole[done:]


def test_phases_are_the_same_for_any_number_of_ranks(shards: list[TokenShards]) -> None:
    options = {"weights": (0.75, 0.25), "later": PHASES}
    whole = take(loader(shards, **options), 16)
    for world_size in (2, 4):
        ranks = [loader(shards, **options, rank=Rank(r, world_size), micro_batch_size=1) for r in range(world_size)]
        assert joined([take(one, 16) for one in ranks]) == whole


def test_a_position_in_other_phases_is_refused(shards: list[TokenShards]) -> None:
    state = loader(shards, weights=(0.75, 0.25)).state_dict()
    with pytest.raises(ValueError, match=r"its phases is \[\]"):
        loader(shards, weights=(0.75, 0.25), later=PHASES).load_state_dict(state)
    with_phases = loader(shards, weights=(0.75, 0.25), later=PHASES).state_dict()
    with pytest.raises(ValueError, match="its phases is "):
        loader(shards, weights=(0.75, 0.25), later=PHASES[:1]).load_state_dict(with_phases)
    with pytest.raises(ValueError, match="its phases is "):
        loader(shards, weights=(0.75, 0.25)).load_state_dict(with_phases)
    del state["phases"]  # a checkpoint from before there were phases
    loader(shards, weights=(0.75, 0.25)).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_one_then_two_then_one_rank_take_every_sample_exactly_once_in_the_order_of_the_seed(
    shards: list[TokenShards], workers: int
) -> None:
    whole = take(loader(shards), 24)
    alone = loader(shards, workers=workers)
    seen = take(alone, 7)
    pair = [loader(shards, rank=Rank(r, 2), workers=workers) for r in range(2)]
    for one in pair:
        one.load_state_dict(alone.state_dict())
    seen += joined([take(one, 9) for one in pair])
    assert pair[0].state_dict() == pair[1].state_dict()
    last = loader(shards, workers=(workers + 1) % 4)
    last.load_state_dict(pair[1].state_dict())
    seen += take(last, 8)
    assert seen == whole
    per_epoch = sum(s.num_tokens // T for s in shards)
    first_epoch = [row for step in seen for row in step][:per_epoch]
    assert max(Counter(first_epoch).values()) == 1
    inputs = Counter(token for row in first_epoch for token in row[:T] if token != 256)
    assert max(inputs.values()) == 1  # no token of text twice in an epoch


def test_the_state_counts_what_was_handed_out_not_what_workers_prepared(shards: list[TokenShards]) -> None:
    one = loader(shards, workers=2)
    for count, _ in enumerate(itertools.islice(one, 5), 1):
        assert one.state_dict()["samples_seen"] == 4 * count


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_step_has_the_same_rows_for_any_number_of_ranks_and_as_many_micro_batches_on_each(
    shards: list[TokenShards], world_size: int
) -> None:
    arguments = {"global_batch_size": 12, "micro_batch_size": 1, "max_tokens": 12 * T * 2 + 5 * T + 2}
    whole = take(loader(shards, **arguments), 9)  # type: ignore[arg-type]
    ranks = [loader(shards, rank=Rank(r, world_size), **arguments) for r in range(world_size)]  # type: ignore[arg-type]
    steps = [list(one) for one in ranks]
    assert [len(step) for step in steps[0]] == [len(step) for step in steps[-1]]
    assert joined([[rows_of(step) for step in rank] for rank in steps]) == whole
    assert [len(step) for step in whole] == [12, 12, 6]


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 15, 16, 17, 50, 203])
def test_max_tokens_is_exact_to_the_token(shards: list[TokenShards], max_tokens: int) -> None:
    one = loader(shards, max_tokens=max_tokens)
    steps = list(one)
    assert len(steps) == len(one) == -(-max_tokens // 16)
    assert sum(int((b.document_ids != PADDING_DOCUMENT).sum()) for step in steps for b in step) == max_tokens
    assert sum(int((b.labels != IGNORE_INDEX).sum()) for step in steps for b in step) == max_tokens
    assert {tuple(b.input_ids.shape) for step in steps for b in step} == {(2, T)}
    assert list(one) == []  # the run is over, also for a loader that is asked again


def test_batch_size_warmup_gives_the_sizes_of_the_plan_and_resumes_in_the_middle(shards: list[TokenShards]) -> None:
    arguments = {"warmup": BatchSizeWarmup(2, "5 steps"), "global_batch_size": 6, "max_tokens": 300}
    whole = list(loader(shards, **arguments))  # type: ignore[arg-type]
    plan = BatchSizePlan(6, T, 300, BatchSizeWarmup(2, "5 steps"))
    assert [len(rows_of(step)) for step in whole] == [2, 2, 2, 4, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 1]
    for done in range(len(whole)):
        rest = loader(shards, **arguments)  # type: ignore[arg-type]
        rest.load_state_dict({**rest.state_dict(), "samples_seen": plan.samples_at_step(done)})
        assert [rows_of(step) for step in rest] == [rows_of(step) for step in whole[done:]]


def test_a_position_in_other_data_is_refused_by_name(shards: list[TokenShards]) -> None:
    state = loader(shards).state_dict()
    changes = {
        "seed": loader(shards, seed=4),
        "weights": loader(shards, weights=(0.5, 0.5)),
        "global_batch_size": loader(shards, global_batch_size=8),  # steps done would be other rows, and other tokens
        "batch_size_warmup": loader(shards, warmup=BatchSizeWarmup(2, 8)),
    }
    other = loader(shards)
    other.identity["data"] = "xyz"
    for name, one in {**changes, "data": other}.items():
        with pytest.raises(ValueError, match=rf"position in other data: its {name} is .*model\.init_from"):
            one.load_state_dict(state)
    with pytest.raises(ValueError, match="its data is None"):
        other.load_state_dict({"samples_seen": 3})


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_random_state_of_the_process_alone(shards: list[TokenShards], workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    take(loader(shards, workers=workers), 3)
    list(ValidationLoader(ValidationRows(shards, TOKENIZER, T, 2, Rank()), workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("world_size", "workers", "stride"),
    [
        *((world_size, 0, stride) for world_size in (1, 2, 3, 5) for stride in (None, 1, 3, T - 1)),
        *((world_size, 2, None) for world_size in (1, 2, 3)),
    ],
)
def test_validation_scores_every_token_and_every_end_exactly_once_over_all_ranks(
    shards: list[TokenShards], world_size: int, workers: int, stride: int | None
) -> None:
    loaders = [
        ValidationLoader(ValidationRows(shards, TOKENIZER, T, 2, Rank(r, world_size), stride=stride), workers)
        for r in range(world_size)
    ]
    assert len({len(one) for one in loaders}) == 1
    batches = [batch for one in loaders for batch in one]
    assert len(batches) == world_size * len(loaders[0])
    scored = Counter(
        label for batch in batches for row in batch.labels.tolist() for label in row if label != IGNORE_INDEX
    )
    expected = Counter(
        token for s in shards for i in range(s.num_documents) for token in [*s.document(i).tolist()[1:], 256]
    )
    assert scored == expected
    assert sum(int(batch.num_bytes.sum()) for batch in batches) == sum(
        n for token, n in expected.items() if token != 256
    )
    assert {tuple(batch.input_ids.shape) for batch in batches} == {(2, T)}


def test_a_stride_gives_every_token_but_the_first_few_of_a_stream_that_much_context(shards: list[TokenShards]) -> None:
    rows = ValidationRows(shards[:1], TOKENIZER, T, 100, Rank(), stride=2)
    labels = rows[0].labels.numpy()
    for row, counted in enumerate(labels != IGNORE_INDEX):
        scored = np.flatnonzero(counted)
        assert len(scored) <= 2
        if len(scored):
            assert scored[0] >= min(2 * row, T - 2)


@pytest.mark.parametrize("stride", [0, -1, T + 1])
def test_a_stride_out_of_range_is_refused(shards: list[TokenShards], stride: int) -> None:
    with pytest.raises(ValueError, match=f"validation_stride={stride}"):
        ValidationRows(shards, TOKENIZER, T, 2, Rank(), stride=stride)


def test_validation_can_be_read_again_and_gives_the_same(shards: list[TokenShards]) -> None:
    one = ValidationLoader(ValidationRows(shards, TOKENIZER, T, 2, Rank()))
    first, second = ([batch.labels.tolist() for batch in one] for _ in range(2))
    assert first == second
    assert len(first) == len(one)


def test_a_validation_limit_spreads_its_rows_over_the_sources(shards: list[TokenShards]) -> None:
    rows = ValidationRows(shards, TOKENIZER, T, 2, Rank(), max_tokens=6 * T + 1)
    batches = [rows[i] for i in range(len(rows))]
    kept = [row for batch in batches for row in rows_of([batch])]
    assert len(kept) == 6
    everything = [
        row for batch in ValidationLoader(ValidationRows(shards, TOKENIZER, T, 2, Rank())) for row in rows_of([batch])
    ]
    places = [everything.index(row) for row in kept]
    assert places == [i * len(everything) // 6 for i in range(6)]


def test_bare_documents_validate_all_but_the_first_token_of_each(tmp_path: Path) -> None:
    documents = [[0, 1, 2, 0, 1], [2], [1, 0, 2]]
    tokenizer = char_tokenizer(["abc"])
    shard = TokenShards(write_shards(tmp_path, documents))
    rows = ValidationRows([shard], tokenizer, T, 2, Rank())
    labels = [x for i in range(len(rows)) for row in rows[i].labels.tolist() for x in row if x != IGNORE_INDEX]
    assert labels == [1, 2, 0, 1, 0, 2]
