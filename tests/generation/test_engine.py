"""The engine against a loop that knows no cache and no batch, and against the scorer of the losses."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lmstack.generation import Completion, GenerationEngine, NonFiniteLogitsError, SamplingParams, sampling
from lmstack.losses.language_modeling import token_log_probs
from lmstack.models.config import (
    AlibiConfig,
    AttentionConfig,
    DenseConfig,
    GaussianInit,
    LearnedConfig,
    NoPositionsConfig,
    NormConfig,
    RotaryConfig,
    TransformerConfig,
)
from lmstack.models.transformer import Transformer
from lmstack.tokenization import byte_tokenizer

TOKENIZER = byte_tokenizer()
ROTARY = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size,
    max_seq_len=48,
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    positions=RotaryConfig(),
    feed_forward=DenseConfig(hidden_dim=48),
    initialization=GaussianInit(std=0.2),  # sharp distributions: a wrong position or mask changes the argmax
)
CONFIGS = {
    "rotary": ROTARY,
    "learned, untied, head bias, soft-caps": dataclasses.replace(
        ROTARY,
        positions=LearnedConfig(),
        tied_embeddings=False,
        head_bias=True,
        logit_softcap=8.0,
        attention=AttentionConfig(softcap=5.0),
        norm=NormConfig(kind="layer", bias=True),
    ),
    "alibi, window": dataclasses.replace(ROTARY, positions=AlibiConfig(), attention=AttentionConfig(window=4)),
    "no positions, dropout": dataclasses.replace(ROTARY, positions=NoPositionsConfig(), dropout=0.3),
}
PROMPTS = [[256, 3, 4], [7], list(range(40, 57)), [256, 100, 101, 102, 103, 104, 105], [9, 9]]


def model(config: TransformerConfig = ROTARY, seed: int = 0) -> Transformer:
    transformer = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    transformer.reset_parameters(generator)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim == 1:  # biases start at zero; make them count
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return transformer


def naive(transformer: Transformer, prompt: list[int], params: SamplingParams, vocab_size: int) -> Completion:
    """One prompt, the whole text through the model for every token, one transformation after the other."""
    transformer.eval()
    generator = torch.Generator().manual_seed(params.seed)
    ids, log_probs, reason = list(prompt), [], None
    while reason is None:
        with torch.no_grad():
            logits = transformer.logits(transformer(torch.tensor([ids])))[:, -1]
        temperature = params.temperature or 1.0
        candidates = logits.clone()
        for seen in set(ids):
            x = candidates[0, seen]
            candidates[0, seen] = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        candidates[:, vocab_size:] = -float("inf")
        candidates /= temperature
        if params.top_k is not None:
            candidates = sampling.keep_top_k(candidates, torch.tensor([params.top_k]))
        if params.top_p is not None:
            candidates = sampling.keep_top_p(candidates, torch.tensor([params.top_p]).double())
        if params.min_p is not None:
            candidates = sampling.keep_min_p(candidates, torch.tensor([params.min_p]))
        if params.temperature == 0:
            token = int(candidates.argmax())
        else:
            uniform = torch.rand(1, generator=generator, dtype=torch.float64)
            token = int(sampling.sample_inverse_cdf(candidates, uniform))
        log_probs.append(float((logits / temperature).log_softmax(-1)[0, token]))
        ids.append(token)
        if token in params.stop_ids:
            reason = "stop_id"
        elif len(ids) - len(prompt) == params.max_new_tokens:
            reason = "length"
        elif len(ids) == transformer.config.max_seq_len:
            reason = "context"
    return Completion(ids[len(prompt) :], log_probs, "", reason)


def assert_same(actual: Completion, expected: Completion) -> None:
    assert (actual.token_ids, actual.stop_reason) == (expected.token_ids, expected.stop_reason)
    assert actual.token_log_probs == pytest.approx(expected.token_log_probs, abs=1e-5)


VARIED = [
    SamplingParams(max_new_tokens=20, temperature=0.0),
    SamplingParams(max_new_tokens=7, temperature=0.7, seed=3),
    SamplingParams(max_new_tokens=100, temperature=1.3, top_k=5, seed=4),
    SamplingParams(max_new_tokens=12, top_p=0.8, repetition_penalty=1.5, seed=5),
    SamplingParams(max_new_tokens=30, min_p=0.05, top_p=0.9, top_k=50, stop_ids=tuple(range(0, 256, 9)), seed=6),
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("greedy", [True, False])
def test_a_ragged_batch_equals_one_prompt_at_a_time_without_a_cache(name: str, greedy: bool) -> None:
    transformer = model(CONFIGS[name])
    params = [SamplingParams(max_new_tokens=24, temperature=0.0)] * len(PROMPTS) if greedy else VARIED
    completions = GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, params)
    for prompt, p, completion in zip(PROMPTS, params, completions, strict=True):
        assert_same(completion, naive(transformer, prompt, p, TOKENIZER.vocab_size))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_alone_is_the_row_in_a_batch(name: str) -> None:
    engine = GenerationEngine(model(CONFIGS[name]), TOKENIZER)
    together = engine.generate(PROMPTS, VARIED)
    for prompt, params, completion in zip(PROMPTS, VARIED, together, strict=True):
        (alone,) = engine.generate([prompt], params)
        assert_same(completion, alone)
        assert completion.text == alone.text
    backwards = engine.generate(PROMPTS[::-1], VARIED[::-1])
    for a, b in zip(together, backwards[::-1], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 2.0])
def test_log_probs_equal_the_scorers(name: str, temperature: float) -> None:
    transformer = model(CONFIGS[name])
    params = SamplingParams(max_new_tokens=15, temperature=temperature, top_k=20, top_p=0.9, repetition_penalty=1.2)
    completions = GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, params)
    transformer.eval()
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        scored = token_log_probs(
            transformer(ids[:, :-1]),
            transformer.head_weight,
            ids[:, 1:],
            chunk_size=7,
            head_bias=transformer.head_bias if transformer.config.head_bias else None,
            logit_scale=transformer.logit_scale,
            logit_softcap=transformer.config.logit_softcap,
            temperature=temperature or 1.0,
        )
        assert completion.token_log_probs == pytest.approx(scored[0, len(prompt) - 1 :].tolist(), abs=1e-5)


def test_the_seed_decides_a_row_and_nothing_else_does() -> None:
    engine = GenerationEngine(model(), TOKENIZER)
    params = [SamplingParams(max_new_tokens=20, seed=seed) for seed in (1, 2, 1)]
    a, b, c = engine.generate([PROMPTS[0]] * 3, params)
    assert a.token_ids == c.token_ids != b.token_ids
    torch.manual_seed(99)
    assert engine.generate([PROMPTS[0]], params[0])[0].token_ids == a.token_ids


def test_generation_changes_nothing_it_reads() -> None:
    transformer = model(CONFIGS["no positions, dropout"]).train()
    transformer.blocks[0].eval()  # a partly frozen model
    modes = [module.training for module in transformer.modules()]
    weights = {name: value.clone() for name, value in transformer.state_dict().items()}
    transformer.embedding.weight.grad = torch.ones_like(transformer.embedding.weight)
    torch.manual_seed(5), np.random.seed(5)
    engine = GenerationEngine(transformer, TOKENIZER)
    engine.generate(PROMPTS, VARIED)
    stream = engine.stream(PROMPTS[0], VARIED[1])
    next(stream)
    assert [module.training for module in transformer.modules()] == modes  # also while a stream waits
    assert torch.is_grad_enabled()
    list(stream)
    drawn = torch.rand(()).item(), np.random.rand()  # not Python's: the type checker of the tests draws from that
    torch.manual_seed(5), np.random.seed(5)
    assert drawn == (torch.rand(()).item(), np.random.rand())
    assert [module.training for module in transformer.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in transformer.state_dict().items())
    assert torch.equal(transformer.embedding.weight.grad, torch.ones_like(transformer.embedding.weight))


def test_no_graph_is_built() -> None:
    transformer, tracked = model(), []
    transformer.register_forward_hook(lambda _, args, hidden: tracked.append(hidden.requires_grad))
    engine = GenerationEngine(transformer, TOKENIZER)
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=2))
    list(engine.stream(PROMPTS[0], SamplingParams(max_new_tokens=2)))
    assert tracked == [False] * 4


def test_the_mode_is_restored_when_the_model_fails() -> None:
    transformer = model().train()
    with torch.no_grad():
        transformer.embedding.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLogitsError, match="not finite"):
        GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, SamplingParams())
    assert all(module.training for module in transformer.modules())


def test_a_model_in_training_generates_as_in_evaluation() -> None:
    transformer = model(CONFIGS["no positions, dropout"])
    engine = GenerationEngine(transformer, TOKENIZER)
    assert engine.generate(PROMPTS, VARIED) == engine.generate(PROMPTS, VARIED)


def test_new_weights_are_seen_by_the_next_call() -> None:
    transformer = model()
    engine = GenerationEngine(transformer, TOKENIZER)
    before = engine.generate([PROMPTS[0]], SamplingParams(temperature=0.0, max_new_tokens=20))
    transformer.load_state_dict(model(seed=1).state_dict())
    after = engine.generate([PROMPTS[0]], SamplingParams(temperature=0.0, max_new_tokens=20))
    assert before[0].token_ids != after[0].token_ids


def test_a_stop_id_is_kept_among_the_tokens_and_left_out_of_the_text() -> None:
    engine = GenerationEngine(model(), TOKENIZER)
    (free,) = engine.generate([PROMPTS[0]], SamplingParams(max_new_tokens=20, seed=1))
    stop = free.token_ids[5]
    (stopped,) = engine.generate([PROMPTS[0]], SamplingParams(max_new_tokens=20, seed=1, stop_ids=(stop,)))
    end = free.token_ids.index(stop) + 1
    assert stopped.stop_reason == "stop_id"
    assert stopped.token_ids == free.token_ids[:end]
    assert len(stopped.token_log_probs) == end
    assert stopped.text == TOKENIZER.decode(free.token_ids[: end - 1])


def spelling_model(text: str) -> Transformer:
    """A model that spells out a text of different bytes, each byte following from the last."""
    ids = [256, *TOKENIZER.encode(text), 256]
    transformer = model(dataclasses.replace(ROTARY, dim=264, num_heads=2, num_kv_heads=1, tied_embeddings=False))
    with torch.no_grad():
        for parameter in transformer.blocks.parameters():
            parameter.zero_()
        transformer.embedding.weight.copy_(torch.eye(transformer.config.vocab_size, 264))
        transformer.head.weight.zero_()
        for current, following in itertools.pairwise(ids):
            transformer.head.weight[following, current] = 100.0
    return transformer


def test_a_stop_string_across_token_borders_ends_the_text_and_keeps_the_tokens() -> None:
    engine = GenerationEngine(spelling_model("héllo wrd"), TOKENIZER)
    prompt = engine.encode_prompt("")
    (plain,) = engine.generate([prompt], SamplingParams(temperature=0.0, stop_ids=(256,)))
    assert plain.text[:2] == "hé"
    params = SamplingParams(temperature=0.0, stop_strings=("l", "éx"), max_new_tokens=20)
    (completion,) = engine.generate([prompt], params)
    assert (completion.text, completion.stop_reason) == ("hé", "stop_string")
    assert completion.token_ids == TOKENIZER.encode("hél")


def test_a_stream_joins_to_the_completions_text_without_broken_characters() -> None:
    engine = GenerationEngine(spelling_model("aé😀ç b"), TOKENIZER)
    params = SamplingParams(temperature=0.0, stop_ids=(256,), max_new_tokens=30)
    stream, pieces = engine.stream(engine.encode_prompt(""), params), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as stop:
            completion = stop.value
            break
    assert all(pieces)
    assert pieces[0] == "a"
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == completion.text
    assert engine.generate([engine.encode_prompt("")], params) == [completion]


@pytest.mark.parametrize("length", [46, 47, 48])
def test_prompt_and_completion_never_exceed_the_context(length: int) -> None:
    transformer = model(CONFIGS["learned, untied, head bias, soft-caps"])
    engine = GenerationEngine(transformer, TOKENIZER)
    long, short = engine.generate([[5] * length, [5]], SamplingParams(max_new_tokens=60))
    assert (len(long.token_ids), long.stop_reason) == (48 - length, "context")
    assert (len(short.token_ids), short.stop_reason) == (47, "context")
    assert len(engine.generate([[5] * length], SamplingParams(max_new_tokens=60))[0].token_ids) == 48 - length


def test_ids_beyond_the_tokenizer_are_never_sampled_but_count_in_the_log_probs() -> None:
    transformer = model(dataclasses.replace(ROTARY, vocab_size=320, tied_embeddings=False))
    with torch.no_grad():
        transformer.head.weight[300] *= 5  # the padded part of the vocabulary wins often
    without = GenerationEngine(transformer, None).generate(PROMPTS, SamplingParams(temperature=1.0))
    assert max(max(c.token_ids) for c in without) >= TOKENIZER.vocab_size
    for params in (SamplingParams(temperature=0.0, max_new_tokens=20), SamplingParams(top_p=0.5, max_new_tokens=20)):
        for prompt, completion in zip(
            PROMPTS, GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, params), strict=True
        ):
            assert max(completion.token_ids) < TOKENIZER.vocab_size
            assert_same(completion, naive(transformer, prompt, params, TOKENIZER.vocab_size))


def test_bfloat16_weights_generate() -> None:
    transformer = model().bfloat16()
    completions = GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, VARIED)
    assert all(completion.token_ids for completion in completions)
    assert transformer.embedding.weight.dtype == torch.bfloat16


def test_autocast_generates() -> None:
    engine = GenerationEngine(model(), TOKENIZER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(engine.generate([PROMPTS[0]], SamplingParams(max_new_tokens=5))[0].token_ids) == 5


def test_rows_that_stopped_leave_the_batch() -> None:
    transformer, widths = model(), []
    transformer.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[0]))
    params = [SamplingParams(max_new_tokens=n) for n in (1, 4, 2, 4, 3)]
    GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, params)
    assert widths == [5, 4, 3, 2]


def test_only_the_prefill_reads_more_than_one_token() -> None:
    transformer, lengths = model(), []
    transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, SamplingParams(max_new_tokens=4))
    assert lengths == [17, 1, 1, 1]


def test_compiled_blocks_are_not_compiled_for_every_step() -> None:
    transformer, calls = model(), []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]):
        calls.append(1)
        return graph.forward

    for block in transformer.blocks:
        block.compile(backend=backend)
    completions = GenerationEngine(transformer, TOKENIZER).generate(PROMPTS, VARIED)
    assert not calls
    for prompt, params, completion in zip(PROMPTS, VARIED, completions, strict=True):
        assert_same(completion, naive(model(), prompt, params, TOKENIZER.vocab_size))


def test_a_prompt_in_text_opens_a_document() -> None:
    engine = GenerationEngine(model(), TOKENIZER)
    assert engine.encode_prompt("ab") == [256, 97, 98]
    assert engine.encode_prompt("") == [256]
    bare = GenerationEngine(model(), byte_tokenizer(special_tokens=()))
    assert bare.encode_prompt("ab") == [97, 98]
    with pytest.raises(ValueError, match="no end-of-text token"):
        bare.encode_prompt("")


def test_no_prompts_give_no_completions() -> None:
    assert GenerationEngine(model(), TOKENIZER).generate([], SamplingParams()) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "Prompt 1 has 0 tokens"),
        ([[1] * 49], "Prompt 0 has 49 tokens: must be from 1 to the model's max_seq_len, 48"),
        ([[257]], "Prompt 0 holds the id 257, outside the model's vocabulary of 257"),
        ([[-1]], "Prompt 0 holds the id -1"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationEngine(model(), TOKENIZER).generate(prompts, SamplingParams())


def test_engines_and_params_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="causal"):
        GenerationEngine(model(dataclasses.replace(ROTARY, causal=False)), TOKENIZER)
    with pytest.raises(ValueError, match="tokenizer has 257 tokens, the model 200"):
        GenerationEngine(model(dataclasses.replace(ROTARY, vocab_size=200)), TOKENIZER)
    with pytest.raises(ValueError, match="2 prompts but 1 params"):
        GenerationEngine(model(), TOKENIZER).generate([[1], [2]], [SamplingParams()])
    with pytest.raises(ValueError, match="need a tokenizer"):
        GenerationEngine(model(), None).generate([[1]], SamplingParams(stop_strings=("a",)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("stop_strings", ("",)),
        ("seed", -1),
    ],
)
def test_sampling_parameters_out_of_range_are_refused_by_name(field: str, value) -> None:
    with pytest.raises(ValueError, match=rf"sampling\.{field}="):
        SamplingParams(**{field: value})
