"""Writers of miniature datasets, each in exactly the layout of the distributed one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from fgkd.data import icons, open_dataset
from fgkd.errors import FgkdError

SYNSETS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02116738-African_hunting_dog")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
TAR_NAMES = ("tit", "jay", "crow")
TAR_SIZES = {"train": 5, "val": 2, "test": 2}
FOODS = ("macaron", "beignet", "cruller")
MODES = ("RGB", "L", "CMYK", "P", "RGBA", "LA", "1")  # none of them may be taken for granted


def pixels(label: int, number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An RGB image (width, height) whose tint tells its class and whose noise tells its number."""
    noise = np.random.default_rng([label, number]).integers(0, 96, (size[1], size[0], 3))
    tint = np.array([(80 * label) % 160, (80 * label + 53) % 160, (80 * label + 106) % 160])
    return Image.fromarray((noise + tint).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of a Pillow format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_image(path: Path, label: int, number: int, mode: str = "RGB") -> None:
    """Write an image of a colour mode, as JPEG or PNG: whichever can, whatever the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels(label, number).convert(mode)
    jpeg = mode == "CMYK" or (mode in ("RGB", "L") and path.suffix.lower() != ".png")
    path.write_bytes(encode(image, "JPEG" if jpeg else "PNG"))


def write_cub(root: Path, train: int = 4, test: int = 2) -> None:
    """CUB-200-2011 with 3 classes; every fifth image is greyscale."""
    lines: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    id_ = 0
    for label, bird in enumerate(BIRDS):
        for number in range(train + test):
            id_ += 1
            file = f"{bird}/{bird[4:]}_{number:04d}_{796000 + id_}.jpg"
            write_image(root / "images" / file, label, number, "L" if id_ % 5 == 0 else "RGB")
            lines["images"].append(f"{id_} {file}")
            lines["image_class_labels"].append(f"{id_} {label + 1}")
            lines["train_test_split"].append(f"{id_} {int(number < train)}")
            lines["bounding_boxes"].append(f"{id_} {float(id_)} 2.0 20.0 25.0")
    lines["classes"] = [f"{i} {bird}" for i, bird in enumerate(BIRDS, start=1)]
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")


def write_dogs(root: Path, train: int = 4, test: int = 2, lists: str = ".") -> None:
    """Stanford Dogs with 3 synsets; the `.mat` lists go to the folder `lists` below the root."""
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label, synset in enumerate(SYNSETS):
        for number in range(train + test):
            stem = f"{synset}/{synset.split('-')[0]}_{10074 + number}"
            write_image(root / "Images" / f"{stem}.jpg", label, number)
            write_annotation(root / "Annotation" / stem, synset, num_objects=1 + number % 2)
            rows["train" if number < train else "test"].append((f"{stem}.jpg", label + 1))
    rows["file"] = rows["train"] + rows["test"]
    (root / lists).mkdir(exist_ok=True)
    for name, files in rows.items():
        write_mat_list(root / lists / f"{name}_list.mat", files)


def write_mat_list(path: Path, rows: list[tuple[str, int]]) -> None:
    """A list as MATLAB saved it: N x 1 cells of strings, and N x 1 labels from 1."""
    from scipy.io import savemat

    def cells(values: list[str]) -> np.ndarray:
        array = np.empty((len(values), 1), object)
        array[:, 0] = values
        return array

    savemat(
        path,
        {
            "file_list": cells([file for file, _ in rows]),
            "annotation_list": cells([file.removesuffix(".jpg") for file, _ in rows]),
            "labels": np.array([[label] for _, label in rows], np.uint8),
        },
    )


def write_annotation(path: Path, synset: str, num_objects: int) -> None:
    """A VOC-like XML file without an extension; several dogs are possible."""
    one = (
        f"\t<object>\n\t\t<name>{synset.split('-')[1]}</name>\n\t\t<bndbox>\n\t\t\t<xmin>2</xmin>"
        "<ymin>3</ymin><xmax>30</xmax><ymax>28</ymax>\n\t\t</bndbox>\n\t</object>\n"
    )
    size = "\t<size><width>40</width><height>30</height><depth>3</depth></size>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>\n{size}{one * num_objects}</annotation>\n")


def write_foodx(root: Path, train: int = 4, val: int = 2, kaggle: bool = False) -> None:
    """FoodX-251 with 3 classes; `kaggle`: headed `*_labels.csv` at the root, not `annot/`."""
    annot = root if kaggle else root / "annot"
    annot.mkdir(parents=True, exist_ok=True)
    class_lines = [f"{label} {food}" for label, food in enumerate(FOODS)]
    (annot / "class_list.txt").write_text("\n".join(class_lines) + "\n")
    for part, per_class in (("train", train), ("val", val)):
        lines = ["img_name,label"] if kaggle else []
        for number in range(per_class * len(FOODS)):
            label = number % len(FOODS)
            file = f"{part}_{number:06d}.jpg"
            write_image(root / f"{part}_set" / file, label, number + (part == "val") * 1000)
            lines.append(f"{file},{label}")
        name = f"{part}_labels.csv" if kaggle else f"{part}_info.csv"
        (annot / name).write_text("\n".join(lines) + "\n")


def write_folder(root: Path, train: int = 4, val: int = 2, test: int = 2, classes: int = 3) -> None:
    """An ImageFolder that goes through every colour mode; 0 images: the split is not written."""
    for split, per_class in (("train", train), ("val", val), ("test", test)):
        for label in range(classes):
            for number in range(per_class):
                mode = MODES[(label + number) % len(MODES)]
                name = f"im.{number}.{'JPG' if number % 2 else 'png'}"
                unique = number + 1000 * ("train", "val", "test").index(split)
                write_image(root / split / f"class {label}" / name, label, unique, mode)


def tar_sample(label: int, number: int, kind: str = "png") -> dict[str, object]:
    """What a plain WebDataset pipeline writes of a sample."""
    data = encode(pixels(label, number), {"jpg": "JPEG"}.get(kind, kind.upper()))
    facts = {"photo": number}
    return {"__key__": f"birds/{label}_{number:04d}", kind: data, "cls": label, "json": facts}


def write_tars(root: Path, names: bool = True) -> None:
    """Three classes in tars of four samples, by WebDataset's own writer."""
    root.mkdir(parents=True, exist_ok=True)
    for split, per_class in TAR_SIZES.items():
        first = 1000 * list(TAR_SIZES).index(split)
        with webdataset.ShardWriter(f"{root}/{split}-%06d.tar", maxcount=4, verbose=0) as writer:
            for i in range(per_class * len(TAR_NAMES)):
                kind = ("png", "jpg", "webp")[i % 3]
                writer.write(tar_sample(i % len(TAR_NAMES), first + i, kind))
    if names:
        (root / "classes.txt").write_text("\n".join(TAR_NAMES) + "\n")


def write_csv(root: Path) -> None:
    """An ImageFolder's images in one folder, and labels.csv, which names them."""
    write_folder(root / "folder")
    lines = ["filename,species,split"]
    for path in sorted((root / "folder").rglob("*.*")):
        split, label = path.relative_to(root / "folder").parts[:2]
        lines.append(f"folder/{split}/{label}/{path.name},{label},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def write_hf(root: Path) -> None:
    """What `save_to_disk` writes of three splits of encoded images, with named classes."""
    import datasets

    names = datasets.ClassLabel(names=list(TAR_NAMES))
    features = datasets.Features({"image": datasets.Image(), "label": names})
    parts = {}
    for first, split in enumerate(("train", "validation", "test")):
        numbers = range(3 * (5 if split == "train" else 2))
        images = [
            {"bytes": encode(pixels(i % 3, 1000 * first + i), "PNG"), "path": f"{i}.png"}
            for i in numbers
        ]
        columns = {"image": images, "label": [i % 3 for i in numbers]}
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(root)


LISTED_WRITERS = {
    "csv": write_csv,
    "hf": write_hf,
    "cub": write_cub,
    "dogs": write_dogs,
    "foodx": write_foodx,
    "folder": write_folder,
    "webdataset": write_tars,
}


def unpacked_icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The icon set, to be left as it is; in `$FGKD_HOME`, if set, it serves later runs too."""
    in_home = "FGKD_HOME" in os.environ
    root = icons.default_root() if in_home else tmp_path_factory.getbasetemp() / "icons"
    icons.load(root)
    return root


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first `old` in a text file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def open_error(*specs: str) -> FgkdError:
    """The error that opening these datasets must raise."""
    with pytest.raises(FgkdError) as caught:
        open_dataset(specs)
    return caught.value
