"""FoodX-251 (Kaur et al., 2019; the iFood 2019 challenge), as its archives unpack.

`annot/class_list.txt` ("0 macaron") and `annot/{train,val}_info.csv` ("train_000000.jpg,94", no
header), or Kaggle's headed `{train,val}_labels.csv`, in `annot/` or at the root; images in
`train_set/` and `val_set/`.
"""

from __future__ import annotations

from pathlib import Path

from fgkd.data.lists import bad_line, find_file, make_samples, read_table, read_text, require_dir
from fgkd.data.samples import Dataset, Samples

LAYOUT = "train_set/*.jpg, val_set/*.jpg, annot/{class_list.txt,train_info.csv,val_info.csv}"
NOTE = "test labels were never released: the official val set is reported as test"


def load(root: Path) -> Dataset:
    """FoodX-251: split train, and its official val set as split test.

    Raises: MissingFile; DatasetError for a line that is not "<image>,<label>".
    """
    names = read_table(find_file(root, ["annot/class_list.txt", "class_list.txt"], LAYOUT))
    label_of = {class_id: label for label, class_id in enumerate(sorted(names, key=int))}
    splits = {"train": _split(root, "train", label_of), "test": _split(root, "val", label_of)}
    return Dataset(
        "foodx", [names[class_id] for class_id in label_of], ["foodx"], splits, notes=[NOTE]
    )


def _split(root: Path, part: str, label_of: dict[str, int]) -> Samples:
    require_dir(root / f"{part}_set", LAYOUT)
    files = [f"{part}_info.csv", f"{part}_labels.csv"]
    path = find_file(root, [f"annot/{file}" for file in files] + files, LAYOUT)
    keys, labels = [], []
    for number, line in enumerate(read_text(path), start=1):
        image, _, class_id = line.strip().rpartition(",")
        if not line.strip() or (number == 1 and not class_id.isdecimal()):
            continue  # a blank line, or Kaggle's header
        if not image or class_id not in label_of:
            raise bad_line(path, number, line, "'<image>,<label>' with a label of class_list.txt")
        keys.append(f"{part}_set/{image}")
        labels.append(label_of[class_id])
    return make_samples(root, keys, labels)
