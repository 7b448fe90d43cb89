"""Count words and phrases of the text that are not plain English, at revisions of the repository.

Usage: dialect.py [--lines] [REV...]. For each revision (default: HEAD), print a table of occurrences by area. With --lines, print
each occurrence in the first revision. Some occurrences are plain English: compare revisions rather than absolute figures.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tokenize
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PHRASES = {
    name: re.compile(pattern, flags)
    for name, pattern, flags in (
        ("anew", r"\banew\b", re.IGNORECASE),
        ("beside(s)", r"\bbesides?\b", re.IGNORECASE),
        ("mend", r"\bmend(s|ed|ing)?\b", re.IGNORECASE),
        ("call off", r"\bcall(s|ed|ing)?(\s+\w+){0,2}\s+off\b", re.IGNORECASE),
        ("tell, told", r"\b(tell(s|ing)?|told)\b", re.IGNORECASE),
        ("lie, lies", r"\b(lies?|lay|lain)\b", re.IGNORECASE),
        ("begun", r"\bbegun\b", re.IGNORECASE),
        ("what is/are", r"\bwhat\s+(is|are)\b", re.IGNORECASE),
        ("is no, are no", r"(?<!there )(?<!There )(?<!Default )(?<!answer )\b(is|are)\s+no\b(?!\s+longer)", 0),
        ("of the kind that fits", r"\bof\s+the\s+kind\s+that\b", re.IGNORECASE),
        ("Without:, The same for", r"\bWithout:|\bThe same for\b", 0),
        ("get on", r"\bgets?\s+on\b", re.IGNORECASE),
        ("become of", r"\b(becomes?|come|become)\s+of\b", re.IGNORECASE),
        ("in the place of", r"\bin\s+the\s+place\s+of\b", re.IGNORECASE),
        ("sign of life", r"\bsigns?\s+of\s+life\b", re.IGNORECASE),
        ("look after, look again", r"\blooks?\s+(after|again|at it)\b", re.IGNORECASE),
        ("as few/much as", r"\bas\s+(few|little)\s+as\b", re.IGNORECASE),
        ("carry out", r"\bcarr(y|ies|ied)(\s+\w+)?\s+out\b", re.IGNORECASE),
        ("Of ... (first word)", r"(?:^|(?<=[.:]\s)|(?<=[#\"]\s)|(?<=\"))Of\s", re.MULTILINE),
        (
            "What, Whether, Whoever, Where ... (first word)",
            r"(?:^|(?<=[.:]\s)|(?<=#\s)|(?<=\"))(?:What|Whether|Whoever|Wherever)\s",
            re.MULTILINE,
        ),
    )
}
AREAS = (
    "documentation",
    "chart and CRD",
    "command line",
    "errors and other strings",
    "docstrings and comments",
    "tests and scripts",
)
_TEXT = (".md", ".py", ".sh", ".yaml", ".yml", ".json", ".toml", ".txt", ".tpl", ".go", "Makefile", "Dockerfile")


def texts(revision: str) -> Iterator[tuple[str, str, str]]:
    """Yield area, path and text of each file of a revision; of Python files, strings, docstrings and comments only."""
    archive = subprocess.run(["git", "archive", revision], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            path = member.name
            file = files.extractfile(member)
            if file is None or not path.endswith(_TEXT) or path == "scripts/dialect.py" or "/corpus/" in path:
                continue
            text = file.read().decode("utf-8", "replace")
            if path.startswith(("tests/", "benchmarks/", "scripts/", ".ci/", "findings/")) and not path.endswith(".md"):
                yield "tests and scripts", path, prose(text, both=True) if path.endswith(".py") else text
            elif not path.startswith(("converter_image/", "operator/")):
                yield (
                    "chart and CRD" if path.startswith(("helm/", "crds/")) and not path.endswith(".md") else "documentation",
                    path,
                    text,
                )
            elif path.startswith("converter_image/reshard/cli/"):
                yield "command line", path, prose(text, both=True)
            elif path.endswith(".py"):
                yield "errors and other strings", path, prose(text, documentation=False)
                yield "docstrings and comments", path, prose(text)


def prose(source: str, *, documentation: bool = True, both: bool = False) -> str:
    """Return the docstrings and comments of a Python file, or its other strings, or both."""
    found = []
    statement = True  # at the beginning of one, where a string is a docstring
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name == "COMMENT":
            if both or documentation:
                found.append(token.string)
        elif name in {"STRING", "FSTRING_MIDDLE"}:
            if both or documentation == statement:
                found.append(token.string)
            statement = False
        elif name in {"NEWLINE", "INDENT", "DEDENT", "ENCODING"}:
            statement = True
        elif name != "NL":
            statement = False
    return "\n".join(found)


def main(arguments: list[str]) -> None:
    """Print the tables."""
    revisions = [argument for argument in arguments if not argument.startswith("--")] or ["HEAD"]
    for revision in revisions:
        counts = {name: Counter[str]() for name in PHRASES}
        words = Counter[str]()
        for area, path, text in texts(revision):
            words[area] += len(text.split())
            for name, pattern in PHRASES.items():
                for match in pattern.finditer(text):
                    counts[name][area] += 1
                    if "--lines" in arguments and revision == revisions[0]:
                        line = text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]
                        print(f"{name}: {path}: {line.strip()}")
        print(f"\n| {revision} | " + " | ".join(AREAS) + " | all |\n|---|" + "--:|" * (len(AREAS) + 1))
        for name, found in counts.items():
            print(f"| {name} | " + " | ".join(str(found[area]) for area in AREAS) + f" | {found.total()} |")
        sums = {area: sum(found[area] for found in counts.values()) for area in AREAS}
        print("| sum | " + " | ".join(str(sums[area]) for area in AREAS) + f" | {sum(sums.values())} |")
        rates = " | ".join(f"{1000 * sums[area] / max(1, words[area]):.1f}" for area in AREAS)
        print(f"| per 1,000 words | {rates} | {1000 * sum(sums.values()) / words.total():.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
