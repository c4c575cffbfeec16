#!/usr/bin/env python3
"""Write the tokenizer.json of Llama 3.1 from Meta's tokenizer.model: `llama3_tokenizer.py tokenizer.model tokenizer.json`.

tokenizer.model lists the tokens by rank: two neighbours may join when what they make is a token, the lowest rank first. tokenizer.json
lists the pairs that may join, best first, so every way to cut a token into two tokens becomes a pair, ordered by the token's rank.
"""

import base64
import json
import pathlib
import sys

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The names of Llama 3.1; ids go on behind the tokens of text.
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
SPECIAL = 256


def alphabet():
    """Byte-level BPE writes every byte as one printable character (Radford et al. 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


def special_names():
    reserved = iter(f"<|reserved_special_token_{index}|>" for index in range(SPECIAL))
    return [NAMED.get(index) or next(reserved) for index in range(SPECIAL)]


def merges(ranks, spell):
    pairs = []
    for token, rank in ranks.items():
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        cuts = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        pairs += [(rank, *cut) for cut in sorted(cuts)]
    return [[spell(left), spell(right)] for _, _, _, left, right in sorted(pairs)]


def main():
    source, target = map(pathlib.Path, sys.argv[1:])
    lines = (line.split() for line in source.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = alphabet()
    spell = lambda token: "".join(letters[byte] for byte in token)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    begin = {"SpecialToken": {"id": NAMED[0], "type_id": 0}}
    sequence = lambda name, type_id: {"Sequence": {"id": name, "type_id": type_id}}
    added = [
        {"id": len(ranks) + index, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, name in enumerate(special_names())
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, sequence("A", 0)],
            "pair": [begin, sequence("A", 0), sequence("B", 1)],
            "special_tokens": {NAMED[0]: {"id": NAMED[0], "ids": [len(ranks)], "tokens": [NAMED[0]]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": merges(ranks, spell),
        },
    }
    scratch = target.with_suffix(".part")
    scratch.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    scratch.rename(target)


if __name__ == "__main__":
    main()
