from lmstack.tokenization import byte_tokenizer, tokenizer_report


def test_the_report_counts_by_hand() -> None:
    report = tokenizer_report(byte_tokenizer(), {"a": ["one two", "é"], "nothing": []})
    found = report["a"]
    assert (found.documents, found.bytes, found.words, found.tokens) == (2, 9, 3, 9)
    assert (found.bytes_per_token, found.fertility) == (1.0, 3.0)
    assert (report["nothing"].bytes_per_token, report["nothing"].fertility) == (0.0, 0.0)
