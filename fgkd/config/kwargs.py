"""Keyword arguments as text and as a dict, of options such as `model_kwargs`."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from fgkd.errors import OptionError

EXAMPLES = {"opt_kwargs": "betas=(0.9,0.95)"}


def parse_kwargs(texts: Sequence[str], option: str) -> dict[str, Any]:
    """`("patch_size=2,depths=[1,1,2,1]",) -> {...}`: Python literals; a bare word is a string.

    option: which has these texts. Raises: OptionError for a text that is not K=V,K=V.
    """
    out: dict[str, Any] = {}
    for text in texts:
        try:
            call = ast.parse(f"f({text})", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError
            for word in call.keywords:
                if word.arg is None:  # **x
                    raise ValueError
                value = word.value
                out[word.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        except (SyntaxError, ValueError):
            message = f"{option} {text!r} is not K=V,K=V with Python literals"
            example = (EXAMPLES.get(option, "patch_size=2,depths=[1,1,2,1]"),)
            raise OptionError(message, option=option, value=text, suggestion=example) from None
    return out


def format_kwargs(values: Mapping[Any, Any]) -> tuple[str, ...]:
    """`{"patch_size": 2} -> ("patch_size=2",)`: the text that `parse_kwargs` reads as this dict.

    Raises: ValueError for a key that is no name, or a value that is no Python literal.
    """
    for name, value in values.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"{name!r} is not the name of an argument")
        try:
            is_literal = ast.literal_eval(repr(value)) == value
        except (SyntaxError, ValueError):
            is_literal = False
        if not is_literal:
            raise ValueError(f"{name}={value!r} is not a Python literal")
    return (",".join(f"{name}={value!r}" for name, value in values.items()),) if values else ()
