"""Keyword arguments as text and as a dict."""

from __future__ import annotations

from typing import Any

import pytest

from fgkd.config.kwargs import format_kwargs, parse_kwargs
from fgkd.errors import OptionError


def test_parse_kwargs() -> None:
    assert parse_kwargs((), "model_kwargs") == {}
    texts = ("patch_size=2,depths=[1,1]", "act_layer=gelu,scale=(1.5, 'a')")
    parsed = parse_kwargs(texts, "model_kwargs")
    assert parsed == {
        "patch_size": 2,
        "depths": [1, 1],
        "act_layer": "gelu",
        "scale": (1.5, "a"),
    }


@pytest.mark.parametrize(
    "text", ["depth", "depth=", "a=1;b=2", "a=f(1)", "a=1,3", "a=1)+(2", "**x"]
)
def test_parse_kwargs_refuses(text: str) -> None:
    for option in ("model_kwargs", "teacher_model_kwargs", "opt_kwargs"):
        with pytest.raises(OptionError) as caught:
            parse_kwargs((text,), option)
        assert (caught.value.option, caught.value.value) == (option, text)
        (example,) = caught.value.suggestion
        assert parse_kwargs((example,), option)


@pytest.mark.parametrize(
    "values", [{"a": 1}, {"a": (1, 2), "b": "x,y=1", "c": None, "d": {"e": [True, -1e-9]}}]
)
def test_kwargs_as_a_dict_and_as_text(values: dict[str, Any]) -> None:
    assert parse_kwargs(format_kwargs(values), "model_kwargs") == values
