"""Personal data is found by its form and its check digits; what only looks like it stays."""

from typing import get_args

import pytest

from lmstack.prep.privacy import Kind, is_chinese_id, is_public_address, mask_personal_data

ALL = list(get_args(Kind))


def masked(text: str) -> str:
    return mask_personal_data(text, ALL)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann.lee+x@mail.example.co.uk.", "write to [EMAIL]."),
        ("请联系wang@example.cn，谢谢", "请联系[EMAIL]，谢谢"),
        ("server 8.8.8.8, port 53", "server [IP], port 53"),
        ("http://8.8.8.8/x and ssh 8.8.8.8/32", "http://[IP]/x and ssh [IP]/32"),
        ("at 2001:4860:4860::8888 today", "at [IP] today"),
        ("call (212) 555-0187 or 212-555-0187", "call [PHONE] or [PHONE]"),
        ("call +44 20 7946 0958 now", "call [PHONE] now"),
        ("手机13812345678，备用+86 139 1234 5678", "手机[PHONE]，备用[PHONE]"),
        ("身份证11010519491231002X。", "身份证[ID_CN]。"),
        ("SSN 123-45-6789.", "SSN [ID_US]."),
        ("key AKIAIOSFODNN7EXAMPLE here", "key [KEY] here"),
        ("token=ghp_" + "a1B2" * 9, "token=[KEY]"),
        ("sk-proj-Ab3dE_fGh1jKlMn0pQrStUvWx-Yz12345678 is", "[KEY] is"),
        ("key sk-0123456789abcdef0123456789abcdef here", "key [KEY] here"),
        ("(call +44 (20) 7946 0958)", "(call [PHONE])"),
        ("call +49.30.1234567 or +49.3012345678", "call [PHONE] or +49.3012345678"),  # the second may be a number
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nrest", "[KEY]\nrest"),
    ],
)
def test_what_is_personal_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4.5 and 10.0.0.1 and 127.0.0.1",
        "section 3.1.4.1 of the manual",  # 3.1.4.1 is an address: see the next test
        "user@localhost, a @ b, @name",
        "110105194912310021 has a wrong check digit",
        "000-12-3456 and 666-12-3456 and 900-12-3456",
        "order 2024-01-15, sum 1,234,567.89",
        "3.14159265358979 and 1000000007",
        "in 1998 2003 2004",
        "skip-this-and-that-and-more-of-it",
        "time 12:30:45 to 13:00:00",
        "images[::2] + images[1::3], x[0::2]",
        "the address ::ffff:192.0.2.128",
        "group 230.0.0.4 of all listeners",
        "between +37.774929 and +40.712776 degrees, up +1234.5678 since",
        'class="sk-toggleable__content-fallback sk-estimator-doc-link"',
        "background: url(logo@2x.png), Mozilla/5.0 Chrome/120.0.0.0 Safari/537.36",
        "(random() * 9)+1000000000",
        "git clone git@github.com:someone/something.git",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    if "3.1.4.1" not in text:
        assert masked(text) == text


def test_an_address_like_number_cannot_be_told_from_an_address() -> None:
    """A limit that is known: four small numbers with dots are an address to everyone."""
    assert masked("section 3.1.4.1 of it") == "section [IP] of it"


def test_only_the_kinds_asked_for_are_masked_and_counted() -> None:
    text, found = mask_personal_data("a@b.com 8.8.8.8 c@d.org", ["email"])
    assert text == "[EMAIL] 8.8.8.8 [EMAIL]"
    assert found == {"email": 2}


def test_check_digits_and_ranges() -> None:
    assert is_chinese_id("11010519491231002X")
    assert not is_chinese_id("110105194912310021")
    assert is_public_address("8.8.8.8")
    assert not is_public_address("192.168.1.1")
    assert not is_public_address("999.1.1.1")
