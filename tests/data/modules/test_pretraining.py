import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch

from lmstack.data import IGNORE_INDEX, BatchSizeWarmup, TokenBatch
from lmstack.data.mixture_plan import MixturePhase
from lmstack.data.modules import PretrainingData
from tiny_corpus import tiny_corpus

TRAIN = {"a": ["one two three " * 6, "four five " * 9], "b": [f"document number {i}" for i in range(12)]}
HELD_OUT = {"a": ["never seen, " * 5], "b": ["nor this", "nor that"]}
SHAPE = {"sequence_length": 8, "micro_batch_size": 2, "global_batch_size": 4}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return str(tiny_corpus(tmp_path, TRAIN, HELD_OUT))


def data(corpus: str, **arguments: Any) -> PretrainingData:
    module = PretrainingData(corpus, **(SHAPE | arguments))
    module.setup("fit")
    return module


class Sums(L.LightningModule):
    """Remembers the inputs of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: list[list[list[int]]] = []
        self.validated = 0

    def training_step(self, batch: list[TokenBatch], batch_idx: int) -> torch.Tensor:
        self.steps.append([row for micro in batch for row in micro.input_ids.tolist()])
        return self.weight.sum()

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.validated += int((batch.labels != IGNORE_INDEX).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **arguments: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **arguments,
    )


def test_steps_hold_all_micro_batches_and_count_their_tokens(corpus: str) -> None:
    module = data(corpus, max_tokens=100)
    steps = list(module.train_dataloader())
    assert [len(step) for step in steps] == [2, 2, 2, 1]
    assert [module.tokens_at_step(k) for k in range(5)] == [0, 32, 64, 96, 100]
    assert [module.samples_at_step(k) for k in range(5)] == [0, 4, 8, 12, 13]
    assert module.steps_for_tokens(65) == 3
    assert len(module.train_dataloader()) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lightning_run_stops_after_max_tokens_and_resumes_from_its_checkpoint_exactly(
    corpus: str, tmp_path: Path, workers: int
) -> None:
    arguments = SHAPE | {"max_tokens": 32 * 9 + 5, "num_workers": workers}

    class SaveEveryStep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    run = trainer(tmp_path, max_epochs=1, callbacks=[SaveEveryStep()])
    run.fit(whole := Sums(), datamodule=PretrainingData(corpus, **arguments))
    assert run.global_step == len(whole.steps) == 10
    assert whole.validated == sum(len(text) + 1 for texts in HELD_OUT.values() for text in texts)
    for done in (1, 4, 9):
        rest = trainer(tmp_path, max_epochs=1)
        rest.fit(after := Sums(), datamodule=PretrainingData(corpus, **arguments), ckpt_path=tmp_path / f"{done}.ckpt")
        assert after.steps == whole.steps[done:]


def test_ranks_come_from_the_strategy(corpus: str) -> None:
    class Strategy:
        distributed_sampler_kwargs: ClassVar = {"rank": 1, "num_replicas": 2}

    class Trainer:
        strategy: Any = Strategy()
        global_rank, world_size = 3, 4  # two ranks in each share their data: tensor parallel

    whole = [
        batch.input_ids.tolist() for step in itertools.islice(data(corpus).train_dataloader(), 3) for batch in step
    ]
    module = data(corpus)
    module.trainer = Trainer()  # type: ignore[assignment]
    second = [batch.input_ids.tolist() for step in itertools.islice(module.train_dataloader(), 3) for batch in step]
    assert second == whole[1::2]
    Trainer.strategy = object()
    with pytest.raises(
        ValueError, match=r"global_batch_size=4 is not a multiple of micro_batch_size=2 x 4 ranks. Use 8"
    ):
        module.train_dataloader()


def test_weights_name_every_source_and_change_the_shares(corpus: str) -> None:
    module = data(corpus, weights={"b": 3.0, "a": 1.0})
    rows = module.train_dataloader().rows.mixture
    assert rows.weights == (1.0, 3.0)  # in the order of the manifest
    with pytest.raises(ValueError, match=r"data.weights names \['a'\], there are \['a', 'b'\]"):
        data(corpus, weights={"a": 1.0}).train_dataloader()


def test_the_last_part_of_a_run_can_have_another_mixture_and_sources_a_cap(corpus: str) -> None:
    sizes = {name: source.train.tokens // 8 for name, source in data(corpus).manifest.sources.items()}
    phases = [MixturePhase("75%", {"a": 0.0, "b": 1.0})]
    module = data(corpus, max_tokens=8 * 40, weights={"a": 1.0, "b": 1.0}, max_epochs={"a": 0.5}, phases=phases)
    sources = [row["source"] for row in module.describe_rows(0, 40)]
    assert sources.count("a") == pytest.approx(sizes["a"] / 2, abs=1)
    assert set(sources[30:]) == {"b"}
    assert module.train_dataloader().state_dict()["phases"] == [[30, 0.0, 1.0]]
    table = module.mixture_plan.table(40)
    assert [(line.phase, line.source, line.is_capped) for line in table] == [
        (1, "a", True),
        (1, "b", False),
        (2, "a", False),
        (2, "b", False),
    ]
    assert sum(line.tokens for line in table) == 8 * 40


def test_batch_size_warmup_is_checked_against_the_ranks(corpus: str) -> None:
    warmup = BatchSizeWarmup(1, "4 steps")
    with pytest.raises(ValueError, match=r"batch_size_warmup.start=1 is not a multiple of micro_batch_size=2"):
        data(corpus, batch_size_warmup=warmup).train_dataloader()


def test_validation_takes_a_limit_and_testing_takes_everything(corpus: str) -> None:
    module = data(corpus, validation_max_tokens=16, validation_batch_size=3)
    assert sum(int((b.labels != IGNORE_INDEX).sum()) for b in module.val_dataloader()) <= 16
    expected = sum(len(text) + 1 for texts in HELD_OUT.values() for text in texts)
    assert sum(int((b.labels != IGNORE_INDEX).sum()) for b in module.test_dataloader()) == expected
    assert next(iter(module.val_dataloader())).input_ids.shape == (3, 8)


def test_a_model_with_too_small_a_vocabulary_is_refused(corpus: str) -> None:
    module = data(corpus)
    module.check_vocab(257)
    module.check_vocab(512)
    with pytest.raises(ValueError, match=r"vocab_size=256 is smaller than the 257 tokens .*vocab_size=257"):
        module.check_vocab(256)


def test_a_corpus_that_is_missing_unfinished_damaged_or_of_another_tokenizer_is_refused(
    corpus: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist.*lmstack data build"):
        data(str(tmp_path / "nowhere"))
    assert data(corpus).manifest.total("train").documents == 14
    chunk = next(Path(corpus, "train", "a").glob("*.bin"))
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=rf"{chunk.name} is damaged"):
        data(corpus).train_dataloader()
    chunk.write_bytes(content)
    tokenizer = Path(corpus, "tokenizer", "tokenizer.json")
    text = tokenizer.read_text(encoding="utf-8")
    tokenizer.write_text(json.dumps({**json.loads(text), "normalizer": {"type": "NFC"}}))
    with pytest.raises(ValueError, match="is not the one that the shards were made with"):
        data(corpus)
    tokenizer.write_text(text)
    Path(corpus, "manifest.json").unlink()
    with pytest.raises(ValueError, match="is unfinished"):
        data(corpus)


def test_a_corpus_without_validation_trains_but_does_not_validate(tmp_path: Path) -> None:
    module = data(str(tiny_corpus(tmp_path, TRAIN, {})))
    next(iter(module.train_dataloader()))
    with pytest.raises(ValueError, match="has no validation side"):
        module.val_dataloader()


def test_nothing_is_read_before_setup(tmp_path: Path) -> None:
    module = PretrainingData(str(tmp_path / "nowhere"), **SHAPE)
    with pytest.raises(ValueError, match=r"call setup\(\) first"):
        _ = module.tokenizer


def test_an_object_store_gives_the_same_rows_as_the_folder_and_is_fetched_once(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("litdata")
    monkeypatch.setenv("LMSTACK_CACHE", str(tmp_path / "cache"))
    local, remote = data(corpus), data(f"local:{corpus}")
    for one, other in zip(*(itertools.islice(m.train_dataloader(), 12) for m in (local, remote)), strict=True):
        assert [b.input_ids.tolist() for b in one] == [b.input_ids.tolist() for b in other]
    assert local.manifest == remote.manifest
    assert local.train_dataloader().state_dict() == remote.train_dataloader().state_dict()
    Path(corpus).rename(tmp_path / "gone")  # what was fetched is not asked for again
    again = data(f"local:{corpus}")
    assert (
        next(iter(again.train_dataloader()))[0].input_ids.tolist()
        == next(iter(remote.train_dataloader()))[0].input_ids.tolist()
    )
    with pytest.raises(ValueError, match=r"local:.*elsewhere/manifest.json cannot be fetched"):
        data(f"local:{tmp_path}/elsewhere")


def test_the_data_path_is_importable_without_lightning() -> None:
    code = (
        "import lmstack.data, lmstack.prep.build, lmstack.tokenization, sys\n"
        "assert 'torch' not in sys.modules\n"
        "from lmstack.data import Mixture, StepLoader, TokenBatch, TokenShards, pack_rows\n"
        "assert not {'lightning', 'hydra', 'jsonargparse', 'litdata'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_token_is_traced_to_its_document(corpus: str) -> None:
    for name in ("a", "b"):
        shards = data(corpus).corpus.shards("train", name)
        lengths = [len(shards.document(i)) for i in range(shards.num_documents)]
        owners = [i for i, length in enumerate(lengths) for _ in range(length)]
        assert [shards.document_at(token) for token in range(len(owners))] == owners
        assert shards.document_at(len(owners)) == 0  # the stream is a ring


@pytest.mark.parametrize("weights", [None, {"a": 0.5, "b": 0.5}])
def test_a_row_is_described_by_where_its_tokens_are(corpus: str, weights: dict[str, float] | None) -> None:
    module = data(corpus, weights=weights)
    rows = [row for step in itertools.islice(module.train_dataloader(), 3) for batch in step for row in batch.input_ids]
    for row, origin in zip(rows, module.describe_rows(0, 12), strict=True):
        shards = module.corpus.shards("train", origin["source"])
        stream = [int(t) for i in range(shards.num_documents) for t in shards.document(i)] * 2
        assert row.tolist() == stream[origin["token"] : origin["token"] + 8]
        assert origin["documents"] == [shards.document_at(origin["token"] + place) for place in (0, 7)]
    assert [origin["row"] for origin in module.describe_rows(5, 8)] == [5, 6, 7]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_rows_are_left_out_and_the_run_is_as_long_as_before(corpus: str, num_workers: int) -> None:
    def rows(steps: Any) -> list[list[int]]:
        return [row for step in steps for batch in step for row in batch.input_ids.tolist()]

    order = rows(itertools.islice(data(corpus).train_dataloader(), 9))
    loader = data(corpus, max_tokens=8 * 20, num_workers=num_workers).train_dataloader()
    taken = rows(itertools.islice(iter(loader), 1))
    loader.skip(6, 13)
    taken += rows(loader)
    assert taken == order[:6] + order[13:27]
