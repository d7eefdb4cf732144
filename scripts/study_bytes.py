"""What the encodings of a teacher's targets cost and lose, in Markdown.

    python scripts/study_bytes.py runs/study/caches/pretrained

For each encoding: bytes of a view's target, and KL(teacher || stored) in nats at temperatures 1, 2
and 4, the mean over some views of a dense cache's training images. Truncated encodings know their
tail at the temperature alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fgkd.cache.encodings import TRUNCATED, Codec
from fgkd.cache.reader import Reader
from fgkd.cache.stats import LOSS_TEMPERATURES, encoding_kl

DIGEST = 8  # bytes of each view, whatever the encoding


def table(logits_NC: np.ndarray, labels_N: np.ndarray, kept: Sequence[int]) -> str:
    """Markdown, a line for each encoding; truncated ones with each number of kept classes."""
    num_classes = logits_NC.shape[1]
    columns = "encoding", "bytes per target", *(f"KL at T = {t:g}" for t in LOSS_TEMPERATURES)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    kinds = [("int8", 0), *((name, k) for k in kept if k + 2 < num_classes for name in TRUNCATED)]
    for name, top_k in [("dense", 0), *kinds]:
        cells = [f"`{name}` {top_k}" if top_k else f"`{name}`"]
        for t in LOSS_TEMPERATURES:
            codec = Codec(name, num_classes, top_k, (t,) if top_k else ())
            arrays = codec.encode(logits_NC, labels_N[:, None])
            cells.append(f"{encoding_kl(logits_NC, codec, arrays, t).mean():.2g}")
        cells.insert(1, str(codec.bytes_per_view() - DIGEST))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("cache", type=click.Path(exists=True, path_type=Path))
@click.option("--views", default=2, show_default=True)
@click.option(
    *("--keep", "kept"),
    type=click.IntRange(1),
    multiple=True,
    default=(1, 3, 5, 10, 20),
    show_default=True,
    help="Classes of a truncated target; may be given again.",
)
def main(cache: Path, views: int, kept: tuple[int, ...]) -> None:
    """Print the table of a dense CACHE."""
    reader = Reader(cache)
    if reader.codec.name not in ("dense", "dense32"):
        raise click.ClickException(f"{cache} holds {reader.codec.name} targets, not all logits")
    train = reader.samples["train"]
    rows = np.arange(len(train))
    logits_NC = np.concatenate([reader.targets(rows, v) for v in range(min(views, reader.views))])
    labels_N = np.tile(train.labels.astype(np.int64), min(views, reader.views))
    print(table(logits_NC, labels_N, kept))


if __name__ == "__main__":
    main()
