import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.tokenization import ChatTemplate, Rendered, Tokenizer, byte_tokenizer, train_bpe
from lmstack.tokenization.tokenizer import CHAT_TEMPLATE_FILE

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("chatml", "llama3", "plain")
CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Is <|im_end|> or <|eot_id|> an end?"},
    {"role": "assistant", "content": "No, text."},
    {"role": "tool", "content": '{"x": 1}'},
    {"role": "assistant", "content": "Not learnt.", "train": False},
    {"role": "user", "content": "Grüße\n"},
    {"role": "assistant", "content": "Tschüß"},
]
TEXT = ["Is this an end? No, text. Be kind. user assistant system tool\n\n Grüße und Tschüß\n"] * 8


def grown(kind: str, base: Tokenizer | None = None) -> Tokenizer:
    return (base or byte_tokenizer()).with_special_tokens(ChatTemplate(kind).special_tokens())  # type: ignore[arg-type]


def template(kind: str, form: str) -> ChatTemplate:
    """The built-in template, or its Jinja form with or without `{% generation %}`."""
    built_in = ChatTemplate(kind)  # type: ignore[arg-type]
    source = built_in.to_dict()["source"]
    if form == "built-in":
        return built_in
    return ChatTemplate("jinja", source if form == "blocks" else re.sub(r"\{% (end)?generation %\}", "", source))


def dump(rendered: Rendered, tokenizer: Tokenizer) -> list[list[Any]]:
    """Stretches of tokens with the same mask: trained or not, text, ids."""
    stretches: list[list[Any]] = []
    for token, is_trained in zip(rendered.input_ids, rendered.is_trained, strict=True):
        if not stretches or stretches[-1][0] != is_trained:
            stretches.append([is_trained, "", []])
        stretches[-1][2].append(token)
    return [[is_trained, tokenizer.decode(ids), ids] for is_trained, _, ids in stretches]


@pytest.mark.parametrize("form", ["built-in", "blocks", "no blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_mask_are_the_golden_ones(kind: str, form: str) -> None:
    tokenizer = grown(kind)
    rendered = template(kind, form).render(CONVERSATION, tokenizer)
    assert dump(rendered, tokenizer) == json.loads((GOLDEN / f"{kind}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", ["built-in", "blocks", "no blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_the_beginning_of_what_was_trained_on_and_special_tokens_come_once(kind: str, form: str) -> None:
    tokenizer = grown(kind, train_bpe(TEXT, 300))
    one = template(kind, form)
    whole = one.render(CONVERSATION, tokenizer)
    for turn in (2, 4, 6):
        prompt = one.render_prompt(CONVERSATION[:turn], tokenizer)
        assert whole.input_ids[: len(prompt)] == prompt
        if CONVERSATION[turn].get("train", True):
            assert not whole.is_trained[len(prompt) - 1]
            assert whole.is_trained[len(prompt)]
    first = tokenizer.token_id(
        {"chatml": "<|im_start|>", "llama3": "<|begin_of_text|>", "plain": "<|endoftext|>"}[kind]
    )
    assert whole.input_ids[0] == first
    assert whole.input_ids[1] != first
    assert whole.input_ids.count(first) == {"chatml": 7, "llama3": 1, "plain": 4}[kind]


@pytest.mark.parametrize("kind", ["chatml", "llama3"])
def test_the_whole_text_has_the_same_tokens_as_the_parts_joined(kind: str) -> None:
    import tokenizers

    tokenizer = grown(kind, train_bpe(TEXT, 300))
    messages = [{"role": "user", "content": "Is this text?"}, {"role": "assistant", "content": "No, Grüße."}]
    rendered = ChatTemplate(kind).render(messages, tokenizer)  # type: ignore[arg-type]
    recognizing = tokenizers.Tokenizer.from_str(json.dumps(tokenizer._definition))  # special tokens are special there
    whole = recognizing.encode(recognizing.decode(rendered.input_ids, skip_special_tokens=False))
    assert rendered.input_ids == whole.ids


@pytest.mark.parametrize("form", ["built-in", "blocks", "no blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_every_trained_turn_is_trained_and_is_where_generation_stops(kind: str, form: str) -> None:
    tokenizer = grown(kind)
    one = template(kind, form)
    (end,) = one.end_ids(tokenizer)
    ids, trained = one.render(CONVERSATION, tokenizer)
    ends = [i for i in range(len(ids)) if trained[i] and not [*trained, False][i + 1]]
    assert len(ends) == 2
    assert all(ids[i] == end for i in ends)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.sampled_from(["<|im_end|>", "<|eot_id|>", "<|endoftext|>", "a", " ", "\n", "é"]), min_size=1))
def test_no_content_can_write_a_special_token_in_any_form(kind: str, texts: list[str]) -> None:
    tokenizer = grown(kind)
    content = "x" + "".join(texts) + "x"
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    plain = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    special = {tokenizer.token_id(name) for name in tokenizer.special_tokens}
    rendered = [template(kind, form).render(messages, tokenizer) for form in ("built-in", "blocks", "no blocks")]
    assert rendered[0] == rendered[1] == rendered[2]
    expected = [i for i in ChatTemplate(kind).render(plain, tokenizer).input_ids if i in special]  # type: ignore[arg-type]
    assert [i for i in rendered[0].input_ids if i in special] == expected
    assert tokenizer.decode(rendered[0].input_ids).count(content) == 2


def test_roles_and_single_messages_choose_what_is_trained() -> None:
    tokenizer, one = grown("chatml"), ChatTemplate("chatml")

    def trained(train_on: tuple[str, ...], **changes: Any) -> str:
        messages = [{**m, **changes} if m["role"] == "tool" else m for m in CONVERSATION]
        ids, is_trained = one.render(messages, tokenizer, train_on=train_on)
        return tokenizer.decode([i for i, t in zip(ids, is_trained, strict=True) if t])

    assert trained(()) == ""
    assert trained(("system",)) == "Be kind.<|im_end|>"
    assert trained(("assistant",)) == "No, text.<|im_end|>Tschüß<|im_end|>"
    assert trained((), weight=1) == '{"x": 1}<|im_end|>'
    assert trained(("tool",), weight=0) == ""
    with pytest.raises(ValueError, match=r"weight=0\.5: must be 0 or 1"):
        trained((), weight=0.5)


def test_missing_special_tokens_are_named_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"<\|im_start\|>, <\|im_end\|>.*data\.add_special_tokens=true"):
        ChatTemplate("chatml").render(CONVERSATION, byte_tokenizer())
    with pytest.raises(ValueError, match="this tokenizer has none"):
        ChatTemplate("plain").render(CONVERSATION, byte_tokenizer(special_tokens=()))


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="The role 'narrator' is not known"):
        ChatTemplate("chatml").render([{"role": "narrator", "content": "x"}], grown("chatml"))


def test_a_template_is_saved_and_found_with_the_tokenizer(tmp_path: Path) -> None:
    for kind in KINDS:
        one = ChatTemplate(kind)  # type: ignore[arg-type]
        grown(kind).with_chat_template(one.to_dict()).save(tmp_path / kind)
        loaded = Tokenizer.load(tmp_path / kind)
        assert ChatTemplate.find(None, loaded) == one
        assert ChatTemplate.find(str(tmp_path / kind), loaded) == one
        (tmp_path / kind / CHAT_TEMPLATE_FILE).unlink()  # as a tool that knows only Transformers' files would leave it
        foreign = ChatTemplate.find(None, Tokenizer.load(tmp_path / kind))
        assert foreign == ChatTemplate("jinja", one.to_dict()["source"])
        assert foreign.render(CONVERSATION, loaded) == one.render(CONVERSATION, loaded)
    with pytest.raises(ValueError, match="comes without a chat template"):
        ChatTemplate.find(None, byte_tokenizer())
    with pytest.raises(ValueError, match="neither chatml, llama3, plain nor a file"):
        ChatTemplate.find("chatmll", byte_tokenizer())


def test_transformers_renders_the_same_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    messages = [{**m, "content": m["content"].replace("<|", "(").replace("|>", ")")} for m in CONVERSATION]
    for kind in KINDS:
        one, tokenizer = ChatTemplate(kind), grown(kind)  # type: ignore[arg-type]
        tokenizer.with_chat_template(one.to_dict()).save(tmp_path / kind)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / kind)
        ids = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        messages_all = [{key: value for key, value in m.items() if key != "train"} for m in messages]
        ours = one.render(messages_all, tokenizer)
        assert ids["input_ids"] == ours.input_ids
        assert [bool(m) for m in ids["assistant_masks"]] == ours.is_trained
