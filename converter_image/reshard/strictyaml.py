"""Parse YAML of limited size without aliases, merge keys and duplicate keys, which multiply, hide or replace content."""

from __future__ import annotations

from typing import Any

import yaml

from reshard.errors import UsageError

_MOST_DEPTH = 64
# More than the largest layout file or resource has. PyYAML takes almost 1 kB for each.
_MOST_VALUES = 1 << 15
# Limits for a key, and for a scalar that is not text. Longer scalars are not numbers or dates, but can take hours to parse.
_LONGEST_KEY = 512
_LONGEST_NUMBER = 64
_LONGEST_PROBLEM = 200
_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"


def documents(text: str, where: str) -> list[Any]:
    """Return all documents of a text.

    Raises:
        UsageError: the text is not YAML, is nested too deeply, has too many values, or contains an alias, a merge key or a
            duplicate key.
    """
    try:
        return list(yaml.load_all(text, _Loader))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        what = f"{error.problem or error.context}"[:_LONGEST_PROBLEM] + line
        fix = "quote the text that starts with `*`" if error.context == "while scanning an alias" else "correct the YAML"
        raise UsageError("NotYaml", what, where=where, fix=fix) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML's scanner raises ValueError for "\\U7fffffff"
        raise UsageError(
            "NotYaml", f"{error}"[:_LONGEST_PROBLEM].replace("\n", " "), where=where, fix="correct the YAML"
        ) from error


class _Loader(yaml.SafeLoader):
    """A loader that refuses these features. PyYAML calls its methods for each part of a document."""

    _depth = 0
    _values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs lack it
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases are not supported", event)
        if self._depth == _MOST_DEPTH:
            raise _refused(f"the document is nested more than {_MOST_DEPTH} levels deep", event)
        self._values += 1
        if self._values > _MOST_VALUES:
            raise _refused(f"the document has more than {_MOST_VALUES} values", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > _LONGEST_NUMBER:
            raise _refused(f"a value that is not a string has {len(node.value)} characters", node)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys and duplicate keys, where PyYAML would insert the content of a merge key."""
        seen = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                raise _refused("merge keys are not supported", key)
            if not isinstance(key, yaml.ScalarNode) or len(key.value) > _LONGEST_KEY:
                raise _refused(f"a key is not a string of at most {_LONGEST_KEY} characters", key)
            if (key.tag, key.value) in seen:
                raise _refused(f"the key {key.value!r} occurs twice", key)
            seen.add((key.tag, key.value))

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - PyYAML's signature
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):  # not handled by PyYAML: 2024-99-99, !!int x
            raise _refused("a value does not match its type", node) from None


def _refused(what: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=at.start_mark)  # type: ignore[arg-type]  # its stubs distinguish two types of marks
