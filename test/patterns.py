#!/usr/bin/env python3
"""test/patterns.py [--live CHECKER] [SEED [PATTERNS]] -- random patterns, texts and vocabularies for
test/test_pattern.cpp. It prints those of seed 1, which are test/patterns.tsv; with --live CHECKER, build/test_pattern,
that has to be right on fresh ones.

A line is a kind and fields with tabs between; a backslash is \\\\, and bytes that do not print are \\xhh:
  R pattern                     is refused
  P pattern                     is taken; the lines below are about it
  T text viable matches...      how much of the text a match can begin with; the lengths of its beginnings that match
  V tokens...                   a vocabulary, for the lines below; N in place of V: its tokens make no match
  A ids... : allowed...         tokens of a text, and those that may come next, so that others can complete a match
What matches, re.fullmatch says. What a match can begin with, derivatives (Brzozowski 1964, doi:10.1145/321239.321249)
of the tree that Python's parser makes of the pattern."""
import bisect, functools, os, random, re, subprocess, sys, warnings
try:
    from re import _parser as parser
except ImportError:                                  # before Python 3.11
    import sre_parse as parser

warnings.simplefilter("ignore")
LETTERS = [chr(c).encode() for c in range(0x110000) if not 0xD800 <= c < 0xE000]         # in order, as UTF-8 keeps it
TREES, NUMBERS = [], {}


def make(*tree):
    """the number of a tree: (none) (empty) (letter, ranges of LETTERS, its bytes so far) (then, a, b) (either, all)
    (repeat, a, least, most), where a, b and all are numbers"""
    if tree not in NUMBERS:
        NUMBERS[tree] = len(TREES)
        TREES.append(tree)
    return NUMBERS[tree]


NONE, EMPTY = make("none"), make("empty")


def letter(ranges):
    if not ranges:
        raise re.error("no letter")
    return make("letter", tuple(ranges), b"")


def then(a, b):
    if NONE in (a, b) or EMPTY in (a, b):
        return NONE if NONE in (a, b) else max(a, b)
    kind, *rest = TREES[a]
    return make("then", rest[0], then(rest[1], b)) if kind == "then" else make("then", a, b)


def either(parts):
    every = frozenset(q for p in parts for q in (TREES[p][1] if TREES[p][0] == "either" else [p]) if q != NONE)
    return make("either", every) if len(every) > 1 else next(iter(every), NONE)


def repeat(a, least, most):
    if most == 0 or a == EMPTY or (a == NONE and least == 0):
        return EMPTY
    return NONE if a == NONE else make("repeat", a, least, most)


@functools.lru_cache(None)
def nullable(r):
    kind, *of = TREES[r]
    return kind == "empty" or (kind == "then" and nullable(of[0]) and nullable(of[1])) or (
        kind == "either" and any(map(nullable, of[0]))) or (kind == "repeat" and (of[1] == 0 or nullable(of[0])))


@functools.lru_cache(None)
def after(r, byte):
    """what may follow the byte; NONE if no match begins with it"""
    kind, *of = TREES[r]
    if kind == "letter":
        so_far = of[1] + bytes([byte])
        low, high = (bisect.bisect_left(LETTERS, so_far + end) for end in (b"", b"\xff"))
        if not any(max(a, low) < min(b, high) for a, b in of[0]):
            return NONE
        return EMPTY if LETTERS[low] == so_far else make("letter", of[0], so_far)
    if kind == "then":
        return either([then(after(of[0], byte), of[1])] + ([after(of[1], byte)] if nullable(of[0]) else []))
    if kind == "repeat":
        return then(after(of[0], byte), repeat(of[0], max(of[1] - 1, 0), of[2] and of[2] - 1))
    return either([after(p, byte) for p in of[0]]) if kind == "either" else NONE


def read(r, text):
    return functools.reduce(after, text, r)


def members(items):
    """the ranges of a class"""
    bounds, known = [], {"DIGIT": "09", "SPACE": "\t\r  ", "WORD": "09AZ__az"}

    def at(c):
        if c >= 0x110000:
            return len(LETTERS)
        return bisect.bisect_left(LETTERS, chr(c).encode("utf-8", "surrogatepass"))

    def outside(ends):
        return list(zip([0] + ends[1::2], ends[::2] + [len(LETTERS)]))

    for kind, value in items:
        if str(kind) == "CATEGORY":
            name = str(value).split("_")
            ends = [at(ord(c) + k % 2) for k, c in enumerate(known[name[-1]])]
            bounds += outside(ends) if "NOT" in name else zip(ends[::2], ends[1::2])
        elif str(kind) != "NEGATE":
            first, last = value if str(kind) == "RANGE" else (value, value)
            bounds.append((at(first), at(last + 1)))
    ends = []
    for a, b in sorted((a, b) for a, b in bounds if a < b):
        ends[-1:] = [max(b, ends[-1])] if ends and a <= ends[-1] else ends[-1:] + [a, b]
    ranges = outside(ends) if str(items[0][0]) == "NEGATE" else zip(ends[::2], ends[1::2])
    return [(a, b) for a, b in ranges if a < b]


def regex(tree):
    out = EMPTY
    for kind, value in reversed(list(tree)):
        kind = str(kind)
        if kind in ("LITERAL", "NOT_LITERAL", "ANY"):
            one = letter(members([("NEGATE", 0)] * (kind != "LITERAL") + [("LITERAL", 10 if value is None else value)]))
        elif kind == "IN":
            one = letter(members(value))
        elif kind == "BRANCH":
            one = either(map(regex, value[1]))
        elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
            one = repeat(regex(value[2]), value[0], None if value[1] == parser.MAXREPEAT else value[1])
        elif kind == "SUBPATTERN" and not value[1] and not value[2]:
            one = regex(value[3])
        else:
            raise re.error(kind)
        out = then(one, out)
    return out


def parsed(pattern):
    """NONE if it is refused: by Python, or as something that no automaton has, or that Python alone has"""
    if re.search(r"\\[0-9bBAZNU]", pattern.replace("\\\\", "")):
        return NONE
    try:
        tree = parser.parse(pattern, re.ASCII)
        return NONE if tree.state.groupdict or tree.state.flags & re.IGNORECASE else regex(tree)
    except (re.error, OverflowError):
        return NONE


# ---- cases ----
ALPHABET, SIGNS = [*"bc0Z -\näöé€\ud7ff😀"], [*"()[]|*+?{}.-,\\01"] + (
    r"\d \W \s \n \x62 \u00e4 \b \1 \q \. (?: (?= (?P<b> (?i) {} {0} {2} {,2} {1,} [^ [] *? (bc) [0]".split())
MEMBERS = ALPHABET + r"b-e 0-9 ä-ö \u0080-€ ÿ-\uffff \d \w \s \S \n \x00-Z".split()


def random_pattern(rng, depth=3):
    roll = rng.random()
    if depth == 0 or roll < 0.25:
        opening = "[" + rng.choice(["", "", "", "^", "^", "]", "^]"])
        one = opening + "".join(rng.choices(MEMBERS, k=rng.randint(1, 3))) + "]"
        return rng.choice(ALPHABET + r". \d \s \w \D \S \W".split() + [one] * 7)
    if roll < 0.55:
        return "".join(random_pattern(rng, depth - 1) for _ in range(rng.randint(2, 3)))
    group = rng.choice(["(", "(?:"]) + "|".join(random_pattern(rng, depth - 1) for _ in range(rng.randint(1, 3))) + ")"
    return group + rng.choice(["", "*", "+", "?", "*?", "{0}", "{2}", "{,2}", "{1,3}", "{2,}"])


def shown(b):
    return "".join("\\\\" if c == 92 else chr(c) if 32 <= c < 127 else "\\x%02x" % c for c in b)


def random_text(rng, r):
    text, pieces = b"", [c.encode() for c in ALPHABET]
    for _ in range(rng.randint(1, 9)):
        good = [p for p in pieces if read(r, p) != NONE] if rng.random() < 0.95 else [bytes([rng.randrange(256)])]
        piece = rng.choice(good or pieces)
        text += piece
        r = read(r, piece)
    return text


def answers(pattern, start, text):
    viable, matches = 0, []
    for n in range(len(text) + 1):
        r = read(start, text[:n])
        try:
            match = re.fullmatch(pattern, text[:n].decode(), re.ASCII) is not None
        except UnicodeDecodeError:
            match = False
        assert match == nullable(r), f"re and the derivatives differ: {pattern!r} {text[:n]!r}"
        if r != NONE:
            viable = n
        if match:
            matches.append(n)
    return "\t".join(map(str, ["T", shown(text), viable] + matches))


def guided(rng, start, text):
    """a vocabulary of parts of the text and others, which lacks most bytes, and a walk through it"""
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(2, 5)))
    others = [b"b", b"c", b"bc", b"0", b"0b", b"\xc3", b"\xa4", b"\xc3\xa4", b"\xe2\x82", b"\xac", b"", b"\n"]
    tokens = [text[a:b] for a, b in zip([0] + cuts, cuts + [len(text)])] + rng.choices(others, k=rng.randint(0, 8))
    graph, left = {}, [start]
    while left and len(graph) < 200:                 # all that tokens lead to
        r = left.pop()
        if r not in graph:
            graph[r] = [read(r, t) if t else NONE for t in tokens]
            left += [q for q in graph[r] if q != NONE]
    good, more = {r for r in graph if nullable(r)}, not left
    while more:                                      # and from which of it they lead to a match
        more = {r for r in graph if r not in good and not good.isdisjoint(graph[r])}
        good |= more
    if left:
        return
    yield "\t".join(["V" if start in good else "N"] + list(map(shown, tokens)))
    ids, allowed = [], start in good
    while allowed and len(ids) < 6:
        r = read(start, b"".join(tokens[i] for i in ids))
        allowed = [i for i, q in enumerate(graph[r]) if q in good]
        yield "\t".join(map(str, ["A", *ids, ":", *allowed]))
        ids += rng.choices(allowed) if allowed else []


def cases(seed, number):
    rng = random.Random(seed)
    for k in range(number):
        pattern = "".join(rng.choices(SIGNS + ALPHABET[:3], k=rng.randint(1, 6))) if k % 4 == 0 else random_pattern(rng)
        start = parsed(pattern)
        if start == NONE:
            yield "R\t" + shown(pattern.encode())
            continue
        yield "P\t" + shown(rng.choice([pattern] * 4 + [f"^(?:{pattern})$"]).encode())
        for text in [random_text(rng, start) for _ in range(2)]:
            yield answers(pattern, start, text)
        yield from guided(rng, start, text)


def main(words):
    live = words[1] if words[:1] == ["--live"] else None
    numbers = list(map(int, words[2 if live else 0:]))
    seed = numbers[0] if numbers else int.from_bytes(os.urandom(4), "big") if live else 1
    lines = "".join(line + "\n" for line in cases(seed, numbers[1] if len(numbers) > 1 else 1500))
    if not live:
        return print(lines, end="")
    print(f"patterns.py: seed {seed}", flush=True)
    return subprocess.run([live, "-"], input=lines.encode()).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
