"""Names of parameters at the target."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import Pipeline, pipeline, write

from reshard.cli import main
from reshard.errors import MissingInputError, RequestError, UsageError
from reshard.plan.rules import renamed, unapplied
from reshard.spec.request import Options
from reshard.spec.rules import RenameRule

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a.w", "a.b", "a.w.w", "c")


def by_name(old: str, new: str | None) -> RenameRule:
    return RenameRule(new, name=old)


def by_pattern(old: str, new: str | None) -> RenameRule:
    return RenameRule(new, pattern=old)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], NAMES),
        ([by_name("c", "d")], ("a.w", "a.b", "a.w.w", "d")),
        ([by_name("c", "a.w"), by_name("a.w", "c")], ("c", "a.b", "a.w.w", "a.w")),  # they change places
        ([by_pattern("a.*", "*.a")], ("w.a", "b.a", "w.w.a", "c")),
        ([by_pattern("*.w", "x.*"), by_pattern("a.*", "y.*")], ("x.a", "y.b", "x.a.w", "c")),  # the first that matches
        ([by_pattern("*", "x.*"), by_name("c", "c")], ("x.a.w", "x.a.b", "x.a.w.w", "c")),  # a name comes first
        ([by_pattern("*.*", "*/*")], ("a/w", "a/b", "a/w.w", "c")),  # as few characters as will do
        ([by_pattern("c", "d")], ("a.w", "a.b", "a.w.w", "d")),
        ([by_name("c", None), by_pattern("*.w", None)], (None, "a.b", None, None)),
    ],
)
def test_rules(rules: list[RenameRule], expected: tuple[str | None, ...]) -> None:
    made = renamed(NAMES, rules)
    assert tuple(map(made.get, NAMES)) == expected
    assert list(made) == [name for name, new in zip(NAMES, expected, strict=True) if new is not None]


@pytest.mark.parametrize("rules", [[by_name("c", "a.b")], [by_pattern("a.b*", "c*")], [by_name("a.b", "x"), by_name("c", "x")]])
def test_a_clash_names_both(rules: list[RenameRule]) -> None:
    with pytest.raises(RequestError, match=r"NamesClash: rename: a\.b and c would both be renamed") as caught:
        renamed(NAMES, rules)
    assert caught.value.exit_code == 78


def test_a_missing_name_is_an_error_and_an_unmatched_pattern_is_reported() -> None:
    with pytest.raises(MissingInputError, match="RenamedMissing: parameter nobody"):
        renamed(NAMES, [by_name("nobody", "x")])
    rules = [by_pattern("a.*", "b.*"), by_pattern("nobody.*", "b.*")]
    assert unapplied(NAMES, rules) == (rules[1],)


def test_a_rule_that_earlier_ones_precede_is_reported() -> None:
    first, later, other = by_pattern("a.*", "b.*"), by_pattern("a.b*", "c.*"), by_pattern("*", "d.*")
    exact, same = by_name(NAMES[0], "x"), by_name(NAMES[0], f"d.{NAMES[0]}")
    assert unapplied(NAMES, [first, later, other, exact]) == (later,)
    assert unapplied([NAMES[0]], [exact, other]) == (other,)
    assert unapplied([NAMES[0]], [same, other]) == ()  # an exact name also checks that the source is as expected


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=12))
def test_a_star_matches_like_the_equivalent_regular_expression(pattern: str, name: str) -> None:
    found = re.fullmatch(re.sub(r"\*", "(.*?)", pattern), name)
    made = renamed([name], [by_pattern(pattern, "|".join("*" * (pattern.count("*") + 1))[:-1] or "x")]) if name else {}
    if name and found:
        assert made[name] == ("|".join(found.groups()) + "|" * bool(found.groups()) or "x")
    elif name:
        assert made[name] == name


def test_every_pattern_matches_in_bounded_time() -> None:
    name = "a" * (1 << 16)
    assert renamed([name], [by_pattern("a*" * 4096 + "b", "*" * 4096)]) == {name: name}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"to": "x"}, "either a name or a pattern"),
        ({"to": "x", "name": "a", "pattern": "b"}, "either a name or a pattern"),
        ({"to": "x*", "pattern": "a"}, "different numbers of"),
        ({"to": "", "name": "a"}, "1 to 16384 characters"),
        ({"to": "x" * 16385, "name": "a"}, "1 to 16384 characters"),
        ({"to": 1, "name": "a"}, "1 to 16384 characters"),
        ({"to": "\udcff", "name": "a"}, "UTF-8"),
    ],
)
def test_invalid_rules(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        RenameRule(**rule)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_one_name_has_one_rule() -> None:
    assert Options(rename=(by_name("a", "b"), by_name("a", "b")))
    with pytest.raises(UsageError, match="two rules rename 'a', to 'b' and to 'c'"):
        Options(rename=(by_name("a", "b"), by_name("a", "c")))


@pytest.fixture
def made(tmp_path: Path) -> Pipeline:
    """A pipeline of two stages, of which both hold `step`, and one each `w0` and `w1`."""
    return write(tmp_path / "made", pipeline())


IN_ONE_STAGE_EACH = ("--rename", "w0=first", "--rename-pattern", "*.w1=*.last")
NOTE = "note: the rename rule for nobody.* applies to no parameter"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_part_reports_a_pattern_that_matches_in_no_part(
    made: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: tuple[int, int]
) -> None:
    rules = (*IN_ONE_STAGE_EACH, "--rename-pattern", "nobody.*=x.*")
    assert made.run(order[0], tmp_path / "t", *rules, whole=True) == 0
    assert "no parameter" not in capsys.readouterr().err
    assert made.run(order[1], tmp_path / "t", *rules, whole=True) == 0
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "no parameter" in line] == [NOTE]
    document = json.loads((tmp_path / "t" / "reshard-manifest.json").read_text())
    assert [part["unmatched"] for part in document["stages"]] == [[{"to": "x.*", "pattern": "nobody.*"}]] * 2


def test_the_commit_of_all_parts_reports_unmatched_patterns_too(
    made: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = (*IN_ONE_STAGE_EACH, "--rename-pattern", "nobody.*=x.*")
    for stage in (0, 1):
        assert made.run(stage, tmp_path / "t", *rules, "--no-commit", whole=True) == 0
    assert main(["commit", str(tmp_path / "t")]) == 0
    assert NOTE in capsys.readouterr().err.splitlines()


def test_a_name_that_no_part_holds_is_an_error_of_the_last(
    made: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = (*IN_ONE_STAGE_EACH, "--rename", "nobody=x")
    assert made.run(0, tmp_path / "t", *rules, whole=True) == 0
    assert made.run(1, tmp_path / "t", *rules, whole=True) == MissingInputError.exit_code
    said = capsys.readouterr().err
    assert "RenamedMissing: parameter nobody: a rename rule names this parameter, but none of the 2 stages holds it" in said
    assert not (tmp_path / "t" / "reshard-manifest.json").exists()
    for stage in (0, 1):
        assert made.run(stage, tmp_path / "t", *IN_ONE_STAGE_EACH, "--overwrite", whole=True) == 0
    assert (tmp_path / "t" / "reshard-manifest.json").exists()
