"""A tokenizer for sentences and regular expressions, made from the texts themselves."""

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# A token of the regular expressions, a word, or a single character.
LEXER = r"\[[^\]]*\]|\{\d,\}|\.\*|\\b|[A-Za-z]+(?:-[a-z]+)?|\S"
_SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<end>"}
_ROLES = ["<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}<end>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def lexer_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """
    One token per word, or symbol of a regular expression, that occurs in the texts; decoded without spaces, as regular
    expressions are written; with a chat template.
    """
    symbols = sorted({token for text in texts for token in re.findall(LEXER, text)})
    words = {token: index for index, token in enumerate([*_SPECIAL.values(), *_ROLES, *symbols])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(LEXER), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)
    fast.add_special_tokens({"additional_special_tokens": _ROLES})
    fast.chat_template = CHAT_TEMPLATE
    return fast
