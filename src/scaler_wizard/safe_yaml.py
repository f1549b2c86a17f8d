"""Small YAML files from people and from others: plain values, no aliases, nothing that costs time or memory to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scaler_wizard.errors import ScalerError

LARGEST_FILE = 64 * 1024
DEEPEST_NESTING = 20
_BEFORE = (yaml.StreamStartToken, yaml.DirectiveToken, yaml.DocumentStartToken)
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML mapping; aliases and deep nesting are refused, since they are how YAML attacks work."""
    if not path.is_file():
        raise ScalerError(f"{path}: no such file", "check the path, or choose a shipped recipe: scaler recipes")
    raw = path.read_bytes()
    if len(raw) > LARGEST_FILE:
        raise ScalerError(f"{path.name}: {len(raw)} bytes; at most {LARGEST_FILE} are read", "shorten the file")
    try:
        text = raw.decode("utf-8")
        _check_tokens(path, text)
        _check_keys(path, yaml.compose(text, Loader=yaml.SafeLoader))
        data = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ScalerError(f"{path.name}: not UTF-8 text", "save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "somewhere"
        raise ScalerError(f"{path.name}: {where}: not valid YAML", "check the indentation and the colons") from None
    except ValueError:  # a number of thousands of digits, a date that does not exist
        raise ScalerError(f"{path.name}: holds a value that cannot be read", "check its numbers and dates") from None
    if not isinstance(data, dict):
        raise ScalerError(f"{path.name}: not a mapping of fields", "write lines such as `model: smollm2`")
    return data


def _check_tokens(path: Path, text: str) -> None:
    depth, begun = 0, False
    for token in yaml.scan(text):
        if begun and isinstance(token, yaml.DocumentStartToken):
            raise ScalerError(f"{path.name}: holds several documents, apart by `---`", "give each a file of its own")
        begun = begun or not isinstance(token, _BEFORE)
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
            raise ScalerError(f"{path.name}: YAML anchors and aliases are not read", "write the values out")
        if isinstance(token, _OPENING):
            depth += 1
        elif isinstance(token, _CLOSING):
            depth -= 1
        if depth > DEEPEST_NESTING:
            raise ScalerError(f"{path.name}: nested deeper than {DEEPEST_NESTING}", "flatten the file")


def _check_keys(path: Path, node: yaml.Node | None) -> None:
    """YAML says nothing of a key that stands twice, and readers differ in which they take."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(path, item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            raise ScalerError(
                f"{path.name}: line {key.start_mark.line + 1}: {key.value!r:.60} stands twice", "keep one"
            )
        seen.add(str(key.value))
        _check_keys(path, value)
