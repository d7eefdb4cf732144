"""NABirds (Van Horn et al., 2015), as nabirds.tar.gz unpacks.

The lists are CUB's, with a UUID for each image. classes.txt names all 1,011 nodes of the tree in
hierarchy.txt; images belong to its 555 leaves, whose ids leave gaps. So a label is the rank of an
id among those that have images, and hierarchy.txt is not needed.
"""

from __future__ import annotations

from pathlib import Path

from fgkd.data import cub
from fgkd.data.samples import Dataset

LAYOUT = (
    "images/<class id>/*.jpg beside images.txt, image_class_labels.txt, train_test_split.txt "
    "and classes.txt, as nabirds.tar.gz unpacks"
)


def load(root: Path) -> Dataset:
    """NABirds with its official train and test split, and its bounding boxes.

    `root` is the folder that holds `images/`, or the one around it that the archive makes.
    Raises: MissingFile; DatasetError for lists that do not agree.
    """
    if (root / "nabirds").is_dir():
        root = root / "nabirds"
    return cub.read_lists("nabirds", root, LAYOUT, id_pattern=r"[0-9a-fA-F-]+")
