"""
A little world of sentences and the regular expressions they describe, in the manner of NL-RX (Locascio et al. 2016)
but with a grammar, words and splits of its own: no regular expression of one split occurs in another.
"""

import random
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from hf_jepa.data.lexer import LEXER, lexer_tokenizer

CLASSES = {
    "[AEIOUaeiou]": ("a vowel",),
    "[A-Z]": ("a capital letter", "an upper-case letter"),
    "[a-z]": ("a small letter", "a lower-case letter"),
    "[A-Za-z]": ("a letter",),
    "[0-9]": ("a number", "a digit"),
    ".": ("a character",),
}
STRINGS = ("red", "moon", "tree", "fish", "stone", "wind")
# regex of the whole line, and ways to say it
LINES = {
    "{}": ("lines with {}", "lines having {}"),
    ".*{}.*": ("lines containing {}", "lines with {} anywhere"),
    "{}.*": ("lines starting with {}", "lines that start with {}"),
    ".*{}": ("lines ending with {}", "lines that end with {}"),
    "~({})": ("lines without {}", "lines not having {}"),
    "\\b{}\\b": ("lines with words with {}",),
}
JOINS = {
    "{}.*{}": ("{} before {}", "{} and later {}"),
    "({}|{})": ("{} or {}", "either {} or {}"),
    "({}&{})": ("{} and {}", "both {} and {}"),
}


def _atom(draw: random.Random) -> tuple[str, str]:
    if draw.random() < 0.5:
        word = draw.choice(STRINGS)
        return word, f"the string '{word}'"
    regex = draw.choice(list(CLASSES))
    return regex, draw.choice(CLASSES[regex])


def _term(draw: random.Random) -> tuple[str, str]:
    regex, text = _atom(draw)
    kind = draw.random()
    if kind < 0.4 and regex in STRINGS:
        regex = f"({regex})"
    if kind < 0.2:
        return f"~{regex}", f"not {text}"
    if kind < 0.4:
        number = draw.randint(2, 7)
        return f"{regex}{{{number},}}", f"{text}, {number} or more times"
    return regex, text


def make_pair(draw: random.Random) -> dict[str, str]:
    """One sentence (`text`) and its regular expression (`code`)."""
    regex, text = _term(draw)
    if draw.random() < 0.8:
        join = draw.choice(list(JOINS))
        other_regex, other_text = _term(draw)
        regex, text = join.format(regex, other_regex), draw.choice(JOINS[join]).format(text, other_text)
    line = draw.choice(list(LINES))
    return {"text": draw.choice(LINES[line]).format(text), "code": line.format(regex)}


def make_splits(sizes: Sequence[int], seed: int = 0) -> list[list[dict[str, str]]]:
    """
    Disjoint splits in which every regular expression occurs once, swapped sides of `|` and `&` counted as the same.

    Args:
        sizes (`Sequence[int]`): rows of each split.
        seed (`int`): of all of it.

    Returns:
        `list[list[dict]]`: rows with `text` and `code`.
    """
    draw = random.Random(seed)
    rows, seen = [], set()
    while len(rows) < sum(sizes):
        pair = make_pair(draw)
        # What a swap of sides leaves as it is.
        key = tuple(sorted(re.findall(LEXER, pair["code"])))
        if key not in seen:
            seen.add(key)
            rows.append(pair)
    splits, start = [], 0
    for size in sizes:
        splits.append(rows[start : start + size])
        start += size
    return splits


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of this world: every word and symbol that its grammar can say."""
    texts = [*CLASSES, *STRINGS, *LINES, *JOINS, "2 3 4 5 6 7 ' , ~ not the string or more times"]
    texts += [f"{{{number},}}" for number in range(2, 8)]
    for names in (*CLASSES.values(), *LINES.values(), *JOINS.values()):
        texts += names
    return lexer_tokenizer([text.replace("{}", " ") for text in texts])
