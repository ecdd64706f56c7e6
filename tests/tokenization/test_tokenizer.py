import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from lmstack.tokenization import END_OF_TEXT, Tokenizer, byte_tokenizer, char_tokenizer, train_bpe

TEXT = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock!\n\n\tdef f(x):\n        return x  # done\n",
    "Grüße aus Köln — naïve café, 漢字かな交じり文, emoji 👩‍👩‍👧 and e\u0301.",
] * 4
BPE = train_bpe(TEXT, 300)
BYTES = byte_tokenizer()


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "byte"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_byte_for_byte_and_its_tokens_lengths_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode())
    assert tokenizer.eot_id not in ids


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "byte"])
def test_what_looks_like_a_special_token_in_a_text_is_text(tokenizer: Tokenizer) -> None:
    for text in (END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT}{END_OF_TEXT}\n"):
        ids = tokenizer.encode(text)
        assert tokenizer.eot_id not in ids
        assert tokenizer.decode(ids) == text


def test_byte_tokens_are_the_bytes_and_the_end_of_text_is_256() -> None:
    assert BYTES.encode("hé\n") == list("hé\n".encode())
    assert (BYTES.vocab_size, BYTES.eot_id) == (257, 256)
    assert BYTES.byte_lengths.tolist() == [1] * 256 + [0]


def test_special_tokens_are_shown_or_left_out_when_decoding() -> None:
    ids = [BYTES.eot_id, *BYTES.encode("hi"), BYTES.eot_id]
    assert BYTES.decode(ids) == f"{END_OF_TEXT}hi{END_OF_TEXT}"
    assert BYTES.decode(ids, skip_special=True) == "hi"


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    assert BYTES.decode(BYTES.encode("é")[:1]) == "\ufffd"


def test_a_saved_tokenizer_loads_as_the_same_one_from_its_folder_or_its_file(tmp_path: Path) -> None:
    BPE.save(tmp_path / "t")
    for path in (tmp_path / "t", tmp_path / "t" / "tokenizer.json", str(tmp_path / "t")):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == BPE.fingerprint
        assert loaded.encode(TEXT[0]) == BPE.encode(TEXT[0])
        assert (loaded.eot_id, loaded.vocab_size) == (BPE.eot_id, BPE.vocab_size)


def test_a_pickled_tokenizer_is_the_same_one() -> None:
    copy = pickle.loads(pickle.dumps(BPE))
    assert (copy.fingerprint, copy.encode(TEXT[1])) == (BPE.fingerprint, BPE.encode(TEXT[1]))


def test_the_fingerprint_does_not_depend_on_the_layout_of_the_file_but_on_its_contents(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(dict(reversed(content.items()))))
    assert Tokenizer.load(file).fingerprint == BPE.fingerprint
    content["model"]["merges"].pop()
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    del content["model"]["vocab"][last]
    file.write_text(json.dumps(content))
    assert Tokenizer.load(file).fingerprint != BPE.fingerprint


def test_transformers_reads_what_is_saved_and_encodes_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BPE.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs(TEXT[0], add_special_tokens=False)["input_ids"] == BPE.encode(TEXT[0])
    assert theirs.eos_token_id == BPE.eot_id


def _foreign(folder: Path, *, special: bool = True, config: dict[str, object] | None = None) -> Path:
    """A tokenizer as others write them: padding, truncation, a template that adds tokens."""
    backend = tokenizers.Tokenizer(
        models.WordLevel({"a": 0, "b": 1, "</s>": 2, "<s>": 3, "[UNK]": 4}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>"])
    (backend.add_special_tokens if special else backend.add_tokens)(["</s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 3), ("</s>", 2)])
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_foreign_tokenizer_adds_cuts_and_pads_nothing(tmp_path: Path) -> None:
    loaded = Tokenizer.load(_foreign(tmp_path))
    assert loaded.encode("a b a") == [0, 1, 0]
    assert loaded.eot_id == 2


@pytest.mark.parametrize("name", ["<s>", {"content": "<s>", "lstrip": False}])
def test_tokenizer_config_names_the_end_of_text(tmp_path: Path, name: object) -> None:
    assert Tokenizer.load(_foreign(tmp_path, config={"eos_token": name})).eot_id == 3


def test_an_end_of_text_that_was_not_marked_special_cannot_be_injected_either(tmp_path: Path) -> None:
    loaded = Tokenizer.load(_foreign(tmp_path, special=False, config={"eos_token": "</s>"}))
    assert loaded.eot_id == 2
    assert 2 not in loaded.encode("a </s> b")
    assert loaded.byte_lengths[2] == 0


def test_an_unknown_end_of_text_is_refused_with_the_special_tokens_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eot_token='<eos>' is not in the vocabulary.*'<s>'"):
        Tokenizer.load(_foreign(tmp_path, config={"eos_token": "<eos>"}))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer at .*nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_sentencepiece_style_vocabulary_counts_spaces_and_single_bytes() -> None:
    vocabulary = {"▁the": 0, "<0x0A>": 1, "é": 2}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = tokenizers.decoders.Metaspace()
    assert Tokenizer(backend.to_str(), None).byte_lengths.tolist() == [4, 1, 2]


def test_characters_are_the_sorted_characters_of_the_text_without_end_of_text() -> None:
    tokenizer = char_tokenizer(["hello\n", "wörld"])
    assert tokenizer.vocab_size == len(set("hello\nwörld"))
    assert tokenizer.eot_id is None
    assert tokenizer.encode("\nd") == [0, 1]
    assert tokenizer.decode(tokenizer.encode("wörld\nhello")) == "wörld\nhello"
    assert sum(tokenizer.byte_lengths[i] for i in tokenizer.encode("wörld")) == 6


def test_a_character_outside_the_vocabulary_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"character 'x' is not in the vocabulary"):
        char_tokenizer(["abc"]).encode_batch(["ab", "axb"])


def test_importing_tokenization_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import lmstack.tokenization, sys; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
