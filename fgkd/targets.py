"""Teacher logits as stored arrays and back.

Shape legend: N rows (any leading shape), C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import FgkdError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Encoding:
    """How a row of C float32 logits is stored.

    arrays: name -> (dtype, trailing shape as a function of C). exactness: what decode promises.
    """

    arrays: Callable[[int], dict[str, tuple[str, tuple[int, ...]]]]
    encode: Callable[[np.ndarray], Arrays]
    decode: Callable[[Arrays], np.ndarray]
    exactness: str


def _encode_int8(logits_NC: np.ndarray) -> Arrays:
    low = logits_NC.min(-1, keepdims=True)
    scale = np.maximum((logits_NC.max(-1, keepdims=True) - low) / 255, 1e-12).astype(np.float32)
    codes = np.rint((logits_NC - low) / scale).clip(0, 255).astype(np.uint8)
    return {"codes": codes, "scale": scale[..., 0], "low": low[..., 0].astype(np.float32)}


def _decode_int8(arrays: Arrays) -> np.ndarray:
    scaled = arrays["codes"].astype(np.float32) * arrays["scale"][..., None]
    return scaled + arrays["low"][..., None]


ENCODINGS: dict[str, Encoding] = {
    "dense": Encoding(
        lambda c: {"logits": ("float16", (c,))},
        lambda logits: {"logits": logits.astype(np.float16)},
        lambda arrays: arrays["logits"].astype(np.float32),
        "each logit to 1 part in 2048",
    ),
    "dense32": Encoding(
        lambda c: {"logits": ("float32", (c,))},
        lambda logits: {"logits": logits.astype(np.float32)},
        lambda arrays: arrays["logits"],
        "exact float32",
    ),
    "int8": Encoding(
        lambda c: {"codes": ("uint8", (c,)), "scale": ("float32", ()), "low": ("float32", ())},
        _encode_int8,
        _decode_int8,
        "each logit to 1/510 of the row's range",
    ),
}


def encode(name: str, logits_NC: np.ndarray) -> Arrays:
    """The arrays to store for finite float32 logits [..., C].

    Raises: FgkdError for a logit that is not finite or does not fit float16 (beyond +-65504).
    """
    if not np.isfinite(logits_NC).all():
        raise FgkdError(
            "the teacher's logits are not finite (nan or inf)",
            "fgkd evaluate TEACHER_RUN --split val   # does the teacher itself work?",
        )
    if name == "dense" and np.abs(logits_NC).max(initial=0.0) > 65504:
        raise FgkdError(
            f"a teacher logit of {np.abs(logits_NC).max():.3g} does not fit float16",
            "fgkd cache-logits --encoding dense32 ...",
        )
    return ENCODINGS[name].encode(logits_NC.astype(np.float32, copy=False))


def decode(name: str, arrays: Arrays) -> np.ndarray:
    """float32 logits [..., C] of stored arrays."""
    return ENCODINGS[name].decode(arrays)


def bytes_per_view(name: str, num_classes: int) -> int:
    """Stored bytes of one target, its 8-byte pixel digest included."""
    shapes = ENCODINGS[name].arrays(num_classes).values()
    return 8 + sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in shapes)
