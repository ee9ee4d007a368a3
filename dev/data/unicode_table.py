#!/usr/bin/env python3
"""Prints the literal UNICODE_CLASSES of tokenizer.h: which characters are letters, numbers, white space.

    unicode_table.py              from this Python's unicodedata
    unicode_table.py RANGES.json  from {"letter": [[first, last], ...], "number": [...], "whitespace": [...]}
    unicode_table.py --check [RANGES.json]   compares with the committed literal instead, exit 1 if they differ

The committed literal is Unicode 16.0, which is what the current GPT-2 tokenizers use (Python has it from 3.14 on). An
older or newer Python gives a table that differs in the characters assigned between the two versions, and nowhere else.

The form: for every range, in ascending order, the gap since the end of the range before it, then
(last - first) * 3 + class, where class is 0 letter, 1 number, 2 white space. A number n is written as the digits of
n // 72 in base 20, each plus 72 (none when n < 72), and then n % 72; a digit d is the character '#' + d. The alphabet
'#'..'~' has no quotation mark, so the text is safe in a raw string; line breaks in it mean nothing.
"""
import json
import os
import re
import sys
import unicodedata

KINDS = ["letter", "number", "whitespace"]
# White space as \s means it is the property White_Space, which unicodedata has no function for. It is the
# separators Z* and these controls; str.isspace() adds U+001C..U+001F, which \s leaves out.
SPACE_CONTROLS = {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85}


def class_of(code):
    category = unicodedata.category(chr(code))
    if category[0] == "L":
        return 0
    if category[0] == "N":
        return 1
    return 2 if category[0] == "Z" or code in SPACE_CONTROLS else None


def ranges_from_python():
    ranges = []
    for code in range(0x110000):
        kind = class_of(code)
        if kind is None:
            continue
        if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == kind:
            ranges[-1][1] = code
        else:
            ranges.append([code, code, kind])
    return ranges


def ranges_from_json(path):
    with open(path, encoding="utf-8") as f:
        tables = json.load(f)
    return sorted([first, last, kind] for kind, name in enumerate(KINDS) for first, last in tables[name])


def number(n):
    digits = [n % 72]
    n //= 72
    while n:
        digits.append(72 + n % 20)
        n //= 20
    return "".join(chr(ord("#") + d) for d in reversed(digits))


def literal(ranges):
    text, end = "", 0
    for first, last, kind in ranges:
        text += number(first - end) + number((last - first) * 3 + kind)
        end = last + 1
    return text


def main():
    arguments = sys.argv[1:]
    check = arguments[:1] == ["--check"]
    path = (arguments[1:] if check else arguments)[:1]
    source = path[0] if path else "unicodedata " + unicodedata.unidata_version
    text = literal(ranges_from_json(path[0]) if path else ranges_from_python())
    if not check:
        print("\n".join(text[i:i + 118] for i in range(0, len(text), 118)))
        return 0
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "host", "tokenizer.h")
    with open(program, encoding="utf-8") as f:
        found = re.search(r'UNICODE_CLASSES\[\] = R"\((.*?)\)"', f.read(), re.S)
    same = found is not None and found.group(1).replace("\n", "") == text
    print("%s tokenizer/unicode_table %s" % ("ok" if same else "FAIL", source))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
