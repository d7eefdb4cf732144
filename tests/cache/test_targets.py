"""Encodings of logits: what each promises, what it costs, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgkd.cache import encodings
from fgkd.config.specs import ENCODING_NAMES
from fgkd.errors import UnstorableLogits

ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements=st.floats(-6e4, 6e4, width=32),
)


def realistic_logits(n: int = 400, num_classes: int = 320) -> np.ndarray:
    """Logits of a confident fine-grained teacher: a sharp class, some rivals, a noisy rest."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1.2, (n, num_classes))
    for row in logits:
        rivals = generator.permutation(num_classes)[:8]
        row[rivals] += generator.uniform(2, 6, 8)
        row[rivals[0]] += generator.uniform(2, 6)
    return logits.astype(np.float32)


def codec_of(name: str, num_classes: int) -> encodings.Codec:
    """An encoding's codec; truncated ones keep what they can of 10 classes and the label."""
    topk = {"top_k": min(10, num_classes - 2), "temperatures": (1.0, 2.0)}
    return encodings.Codec(name, num_classes, **(topk if name in encodings.TRUNCATED else {}))


def encode(name: str, logits: np.ndarray) -> encodings.Arrays:
    labels = np.full((*logits.shape[:-1], 1), -1)
    return codec_of(name, logits.shape[-1]).encode(logits, labels)


def round_trip(name: str, logits: np.ndarray) -> np.ndarray:
    return codec_of(name, logits.shape[-1]).decode(encode(name, logits))


@pytest.mark.parametrize("name", encodings.ENCODINGS)
def test_contract(name: str) -> None:
    logits = realistic_logits(6, 50).reshape(2, 3, 50)
    codec, arrays = codec_of(name, 50), encode(name, logits)
    declared = codec.arrays()
    assert list(arrays) == list(declared)
    for key, (dtype, shape) in declared.items():
        assert arrays[key].dtype == dtype
        assert arrays[key].shape == (2, 3, *shape)
    decoded = codec.decode(arrays)
    assert decoded.dtype == np.float32
    assert decoded.shape == logits.shape
    stored = sum(array.nbytes for array in arrays.values()) / 6
    assert codec.bytes_per_view() == stored + 8
    again = encode(name, logits)
    assert all(again[key].tobytes() == arrays[key].tobytes() for key in arrays)
    assert encodings.ENCODINGS[name].exactness
    rows = [round_trip(name, row) for row in logits.reshape(-1, 50)]  # rows are independent
    assert np.array_equal(np.stack(rows).reshape(logits.shape), decoded)


def test_the_options_name_every_encoding() -> None:
    assert set(ENCODING_NAMES) == set(encodings.ENCODINGS)


def test_bytes() -> None:
    bytes_of = {name: codec_of(name, 320).bytes_per_view() for name in encodings.ENCODINGS}
    truncated = {"topk": 8 + 11 * 4 + 2 * 4, "topk8": 8 + 11 * 2 + 10 + 2}
    assert bytes_of == {"dense": 648, "dense32": 1288, "int8": 336} | truncated
    assert bytes_of["dense"] <= 2 * 320 + 16  # DESIGN, section 6


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_dense32_is_exact(logits: np.ndarray) -> None:
    assert round_trip("dense32", logits).tobytes() == logits.tobytes()


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_dense_is_float16(logits: np.ndarray) -> None:
    decoded = round_trip("dense", logits)
    error = np.abs(decoded.astype(np.float64) - logits)
    assert (error <= np.maximum(np.abs(logits) / 2048, 2.0**-25)).all()
    assert np.array_equal(round_trip("dense", decoded), decoded)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_int8_is_near(logits: np.ndarray) -> None:
    decoded = round_trip("int8", logits).astype(np.float64)
    low, high = logits.min(-1, keepdims=True), logits.max(-1, keepdims=True)
    span = high.astype(np.float64) - low
    slack = 1e-6 * np.maximum(np.abs(low), np.abs(high)) + 1e-9  # of the float32 arithmetic
    assert (np.abs(decoded - logits) <= span / 510 + slack).all()


@pytest.mark.parametrize("value", [0.0, -3.25, 1e4, 6e-8])
@pytest.mark.parametrize("name", sorted(encodings.ENCODINGS.keys() - {"topk8"}))
def test_constant_rows(name: str, value: float) -> None:
    row = np.full((2, 7), value, np.float32)
    decoded = round_trip(name, row)
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded, row, rtol=1 / 2048, atol=2.0**-24)
    assert (decoded == decoded[0]).all()
    if name != "topk":  # there the tail is float32 and what is kept float16
        assert (decoded == decoded[0, 0]).all()


@pytest.mark.parametrize(("name", "bound"), [("dense32", 0.0), ("dense", 1e-6), ("int8", 3e-5)])
def test_divergence_of_realistic_targets(name: str, bound: float) -> None:
    """DESIGN, section 3: int8's KL is about 2e-5 (here 2.7e-5, and float16's 4e-7)."""
    logits = realistic_logits()
    p, q = (torch.from_numpy(x).double() for x in (logits, round_trip(name, logits)))
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean().item()
    assert 0 <= kl <= bound
    assert (p.argmax(1) == q.argmax(1)).double().mean() > 0.99


@pytest.mark.parametrize("name", encodings.ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_are_refused(name: str, value: float) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = value
    with pytest.raises(UnstorableLogits) as caught:
        encode(name, logits)
    assert caught.value.encoding == ""  # no encoding can hold them


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_float16_overflow_is_refused(value: float) -> None:
    logits = np.array([[0.0, value]], np.float32)
    with pytest.raises(UnstorableLogits) as caught:
        encode("dense", logits)
    assert caught.value.encoding == "dense32"
    assert round_trip("dense32", logits)[0, 1] == value
    edge = np.array([[65504.0, -65504.0]], np.float32)
    assert np.array_equal(round_trip("dense", edge), edge)


def test_no_rows() -> None:
    for name in ("dense", "dense32"):
        assert round_trip(name, np.zeros((0, 5), np.float32)).shape == (0, 5)
    assert round_trip("int8", np.zeros((2, 0, 5), np.float32)).shape == (2, 0, 5)
