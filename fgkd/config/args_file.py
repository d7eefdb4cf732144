"""YAML files of options: args.yaml of a run or cache, and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fgkd import files
from fgkd.config import schema
from fgkd.errors import MissingFile, UnreadableFile

Values = dict[str, Any]  # plain values of options, by name


def load_yaml(path: Path, folder: Path | None = None) -> Values:
    """Option names and plain values of a YAML file, with those of the files that it extends.

    Dashes in names become underscores. `extends: NAME` takes the options of NAME, or NAME.yaml,
    next to the file or in `folder`, under the file's own. Raises: MissingFile; UnreadableFile when
    it is no YAML, no mapping, or extends itself.
    """
    return {name: value for _, values in chain(path, folder) for name, value in values.items()}


def chain(path: Path, folder: Path | None = None) -> list[tuple[Path, Values]]:
    """(file, its own options) of a file and of all that it extends, the innermost first."""
    found: list[tuple[Path, Values]] = []
    following: Path | None = path
    while following:
        if following.resolve() in [there.resolve() for there, _ in found]:
            reason = f"{following} extends itself"
            raise UnreadableFile(f"{path} cannot be used: {reason}", path=path, reason=reason)
        values = _load(following)
        base = values.pop("extends", None)
        found.insert(0, (following, values))
        following = _extended(base, following, folder) if base is not None else None
    return found


def _extended(name: Any, path: Path, folder: Path | None) -> Path:
    """The file that another one extends by this name."""
    places = [path.parent, *([folder] if folder else [])]
    for place in (place / f"{name}{end}" for place in places for end in ("", ".yaml")):
        if place.is_file():
            return place
    reason = f"it extends {name!r}, which is not there"
    raise UnreadableFile(f"{path} cannot be used: {reason}", path=path, reason=reason)


def _load(path: Path) -> Values:
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
