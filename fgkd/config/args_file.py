"""args.yaml: the options of a run or cache, as YAML that `-c` reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fgkd import config, files
from fgkd.errors import FgkdError, quoted


def load_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file, safely. Raises: FgkdError naming the file and the line."""
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FgkdError(f"cannot read {path}: {error.strerror}", f"ls -l {quoted(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FgkdError(f"{path} is not YAML: {error}", f"cat {quoted(path)}") from None
    if not isinstance(value, dict | None):
        raise FgkdError(
            f"{path} holds a {type(value).__name__}, not `option: value` lines",
            f"head {quoted(path)}",
        )
    return {str(key).replace("-", "_"): v for key, v in (value or {}).items()}


def save_args(path: Path, options: Any) -> None:
    """Write every option, resolved, as YAML that `-c` reads back."""
    text = yaml.safe_dump(config.to_dict(options), sort_keys=False, allow_unicode=True)
    files.write_text(path, text)
