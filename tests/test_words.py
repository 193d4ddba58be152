"""Plain words: what a reader of torch and the papers would have to guess stays out of code, documents and messages."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "papers/src", "papers/README.md", "docs", "README.md", "CONTRIBUTING.md", "examples")
KINDS = (".py", ".md", ".yaml", ".cpp", ".h", ".in")
FILES = sorted(
    file
    for folder in FOLDERS
    for file in ([ROOT / folder] if (ROOT / folder).is_file() else (ROOT / folder).rglob("*"))
    if file.suffix in KINDS
)
WORDS = {  # a pattern: what to say instead
    r"\bplaces_of\b": "flat_indices",
    r"\bhand(?:ed|ing|s)?[ _]on\b": 'error diffusion, calibrate="error_diffusion"',
    r"\bthe house\b": "the architecture",
    r"\btwins?\b": "dense reference, ONNX equivalent, copy",
    r"\bheirs?\b": "replacements",
    r"\bdeaf\b": "masked copy",
    r"\brac(?:e|es|ed|ing)\b": "time interleaved",
    r"\ballowances?\b": "load limits",
    r"\blooking_on\b": "inference context",
    r"\bcarry_": "permute_optimizer_state_",
    r"\b_Final\b|\bops[./]once\b": "once-differentiable",
    r"\bnot to be had\b": "data that cannot be downloaded",
    r"\bwhat a file may ask for\b": "load limits",
    r"\bgo(?:es)? of its tie\b": "break the weight tying",
    r"\bnobody traces\b": "no tracing or dispatch mode is active",
    r"\bthree moments\b": "three stages",
    r"(?-i:\bfg\.(?:Fit|watch|Fixed|Origin|Rounded|Span|survival)\b)": "the present name: CHANGELOG.md",
    r"(?<![\w.,:/+#-])00[0-4](?![\w.,-])": "author and year",
}
NAMES = {"its", "made", "found", "got", "asked", "said", "places"}  # variables that do not say what they hold
ALLOWED = {  # a file, and the pattern that may stand there: data races are the field's word
    ("docs/reliability.md", r"\brac(?:e|es|ed|ing)\b"),
}


def words(file):
    name = file.relative_to(ROOT).as_posix()
    for number, line in enumerate(file.read_text().splitlines(), 1):
        for pattern, instead in WORDS.items():
            match = None if (name, pattern) in ALLOWED else re.search(pattern, line, flags=re.I)
            if match:
                yield f"{name}:{number}: {match[0]!r}; say {instead}"


def names(file):
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.NAME and token.string in NAMES:
                yield f"{file.relative_to(ROOT)}:{token.start[0]}: {token.string!r} does not say what it holds"


def test_the_patterns_find_what_they_are_for():
    text = "the twin of 003 hands on; fg.Fit(1); a race; carry_(x)"
    assert sum(re.search(pattern, text, flags=re.I) is not None for pattern in WORDS) == 6
    assert not any(re.search(pattern, "1,000 at 0.001, handing 20,000 to it", flags=re.I) for pattern in WORDS)


@pytest.mark.parametrize("room", ["src/filigree", "papers", "docs", "."])
def test_no_private_words(room):
    inside = [file for file in FILES if file.is_relative_to(ROOT / room) and room != "."]
    others = [file for file in FILES if not any(file.is_relative_to(ROOT / r) for r in ("src", "papers", "docs"))]
    offences = [offence for file in inside or others for offence in words(file)]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("room", ["src/filigree", "papers", "docs", "examples"])
def test_no_names_that_hold_nothing(room):
    files = [file for file in FILES if file.suffix == ".py" and file.is_relative_to(ROOT / room)]
    offences = [offence for file in files for offence in names(file)]
    assert files
    assert not offences, "\n".join(offences)
