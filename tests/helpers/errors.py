"""Errors that must come, with their facts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fgkd.errors import FgkdError


@contextmanager
def expected(kind: type[FgkdError], **facts: object) -> Iterator[pytest.ExceptionInfo[FgkdError]]:
    """Expects an error of this type, not of one derived from it, whose attributes are these."""
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in facts} == facts
