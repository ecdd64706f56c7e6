"""Languages are told offline; two scripts in one document make it mixed."""

import pytest

from lmstack.prep.document import Document, Dropped
from lmstack.prep.language import IdentifyLanguage, identify, script_shares
from lmstack.prep.stage import Context

TEXTS = {
    "en": "The committee met on Thursday to discuss the budget, and nobody was surprised by the result.",
    "de": "Der Ausschuss traf sich am Donnerstag, um über den Haushalt zu sprechen, und niemand war überrascht.",
    "fr": "Le comité s'est réuni jeudi pour discuter du budget, et personne n'a été surpris du résultat.",
    "es": "El comité se reunió el jueves para discutir el presupuesto, y nadie se sorprendió del resultado.",
    "ru": "Комитет собрался в четверг, чтобы обсудить бюджет, и никто не был удивлён результатом.",
    "zh": "委员会于星期四开会讨论预算，没有人对结果感到意外。",
    "ja": "委員会は木曜日に予算について話し合うために集まり、誰も結果に驚かなかった。",
    "ko": "위원회는 목요일에 예산을 논의하기 위해 모였고 아무도 결과에 놀라지 않았다.",
    "ta": "வரவு செலவுத் திட்டம் குறித்து விவாதிக்க குழு வியாழக்கிழமை கூடியது; முடிவால் யாரும் ஆச்சரியப்படவில்லை.",
    "bn": "বাজেট নিয়ে আলোচনা করতে কমিটি বৃহস্পতিবার বৈঠক করেছে। ফলাফলে কেউ অবাক হয়নি।",
    "mixed": "委员会于星期四开会讨论预算，没有人对结果感到意外。 The committee met on Thursday to discuss the budget.",
    "und": "12:30 — 45 % (3.14)",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_sentence_is_recognised(language: str) -> None:
    assert identify(TEXTS[language]) == language
    assert identify((TEXTS[language] + " ") * 40) == language


def test_a_few_foreign_words_do_not_make_a_document_mixed() -> None:
    assert identify(TEXTS["zh"] * 5 + " GPU, Python and PyTorch") == "zh"
    assert identify(TEXTS["en"] * 5 + " 北京") == "en"


def test_letters_of_any_script_count() -> None:
    assert identify(TEXTS["ta"] * 5 + " GPU, Python and PyTorch") == "ta"
    assert identify(TEXTS["ta"] + TEXTS["en"]) == "mixed"


def test_a_long_document_is_looked_at_all_along_its_length() -> None:
    chinese, english = "预算委员会开会" * 2000, "the budget committee " * 1000
    assert identify(chinese + english + chinese + english + chinese) == "zh"
    assert identify(chinese[:10_000] + english * 2 + chinese[:10_000] + english * 2 + chinese[:10_000]) == "mixed"


def test_more_letters_are_looked_at_where_more_are_asked_for() -> None:
    text = "hmm " * 60 + TEXTS["de"] * 20 + "hmm " * 60
    assert identify(text, sample=600) == identify(text, sample=6000) == "de"
    with pytest.raises(ValueError, match=r"language\.sample=0"):
        IdentifyLanguage(sample=0)


def test_a_chinese_character_weighs_as_three_letters() -> None:
    assert script_shares("abc中") == {"latin": 0.5, "han": 0.5}


def test_what_is_not_wanted_is_dropped_and_the_rest_is_told_its_language() -> None:
    judge = IdentifyLanguage(keep=["en"]).filter(Context())
    kept = judge(Document(TEXTS["en"], "1", "s"))
    assert isinstance(kept, Document)
    assert kept.metadata["language"] == "en"
    dropped = judge(Document(TEXTS["ru"], "2", "s"))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "language ru"


def test_a_share_below_a_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_share=0\.3"):
        IdentifyLanguage(min_share=0.3)
