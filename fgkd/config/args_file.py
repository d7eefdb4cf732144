"""YAML files of options: args.yaml of a run or cache, and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fgkd import files
from fgkd.config import schema
from fgkd.errors import MissingFile, UnreadableFile


def load_yaml(path: Path) -> dict[str, Any]:
    """Option names and plain values of a YAML file; dashes in names become underscores.

    Raises: MissingFile; UnreadableFile when it is no YAML, or no mapping.
    """
    try:
        value = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise MissingFile(f"no file {path}", path=path) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableFile(f"cannot read {path}: {reason}", path=path, reason=reason) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path} is not YAML: {error}", path=path, reason="not YAML") from None
    if not isinstance(value, dict | None):
        reason = f"it holds a {type(value).__name__}, not `option: value` lines"
        raise UnreadableFile(f"{path} cannot be used: {reason}", path=path, reason=reason)
    return {str(key).replace("-", "_"): v for key, v in (value or {}).items()}


def save_args(path: Path, config: object) -> None:
    """Write every option of a config, with its value, as YAML."""
    text = yaml.safe_dump(schema.to_dict(config), sort_keys=False, allow_unicode=True)
    files.write_text(path, text)
