"""How lines are split into words."""

from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import RatedText
from datamodules.reader import Reader
from datamodules.words import simple_words, unicode_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("फिल्म अच्छी है।", ["फिल्म", "अच्छी", "है", "।"]),  # Hindi
        ("திரைப்படம் நன்று", ["திரைப்படம்", "நன்று"]),  # Tamil
        ("ภาพยนตร์เรื่องนี้ดีมาก", ["ภาพยนตร์", "เรื่อง", "นี้", "ดี", "มาก"]),  # Thai
        ("الكِتَابُ مُفِيدٌ", ["الكِتَابُ", "مُفِيدٌ"]),  # Arabic with vowels
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("İstanbul'da", ["i\u0307stanbul'da"]),  # Turkish
        ("Don’t, don't!", ["don’t", ",", "don't", "!"]),
        ("A <unk> well @-@ made, <UNK>.", ["a", "<unk>", "well", "@-@", "made", ",", "<unk>", "."]),
        ("1 @,@ 000 @.@ 5 <eos>", ["1", "@,@", "000", "@.@", "5", "<eos>"]),
        ("👩‍👩‍👧 👍🏽!", ["👩‍👩‍👧", "👍🏽", "!"]),
        ("3.14 or 1,000.", ["3.14", "or", "1,000", "."]),
        ("很好看的电影", ["很好", "看", "的", "电影"]),  # Chinese
        ("It's ''good'' -- (really)...", ["it's", *"''", "good", *"''", *"--", "(", "really", ")", *"..."]),
        (" \t\u00a0\u3000 ", []),
    ],
)
def test_words_are_those_of_their_language_and_marks_are_single(text: str, words: list[str]) -> None:
    assert unicode_words(text) == words


@given(st.text())
def test_no_character_but_blanks_is_lost_and_equivalent_texts_have_the_same_words(text: str) -> None:
    words = unicode_words(text)
    assert "".join("".join(words).split()) == "".join(normalize("NFC", text).lower().split())
    assert unicode_words(normalize("NFD", text)) == words


def test_a_model_saved_with_the_old_rule_reads_texts_as_it_was_trained() -> None:
    state = {"vocabulary": ["<unk>", "<eos>", "don", "’", "t"], "tokens": "words", "chunk_length": None, "window": 5}
    assert Reader(**state).words("Don’t 3.14") == ["don", "’", "t", "3", ".", "14", "<eos>"]
    assert Reader(**state).difference(Reader(**state | {"tokens": "unicode_words"})) is not None


def test_texts_of_your_own_are_split_by_the_rule_that_the_model_is_saved_with() -> None:
    assert RatedText("somewhere", tokens="words").tokens == "unicode_words"
    assert RatedText("somewhere", tokens="spaces").tokens == "spaces"


def test_the_demo_corpus_keeps_its_rule() -> None:
    assert simple_words("It's ''Conan'', (not) J.R.'s!") == (
        ["it's", "'", "'", "conan", "'", "'", ",", "(", "not", ")", "j", ".", "r", ".", "'", "s", "!"]
    )
