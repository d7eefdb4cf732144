"""Writers of miniatures of NABirds and of the datasets that torchvision reads, file for file."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from helpers.datasets import encode, pixels, write_image

# id -> name of a tree: three leaves with images, whose ids leave gaps, and inner nodes.
TREE = {
    "0": "Birds",
    "1": "Ducks, Geese, and Swans",
    "22": "Dark-eyed Junco",
    "295": "Black-bellied Whistling-Duck",
    "817": "Oak Titmouse",
    "1010": "Dark-eyed Junco (Oregon)",
}
PARENTS = {"1": "0", "22": "0", "295": "1", "817": "0", "1010": "22"}
LEAVES = ("295", "817", "1010")
VARIANTS = ("707-320", "737-200", "F/A-18")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")
BREEDS = ("Abyssinian", "american_bulldog", "Egyptian_Mau")  # cats are capitalised, dogs are not
DISHES = ("apple_pie", "baby_back_ribs", "waffles")


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_nabirds(root: Path, train: int = 4, test: int = 2) -> None:
    """NABirds with 3 leaf classes; images in no order of their ids."""
    names = ("images", "image_class_labels", "train_test_split", "bounding_boxes", "sizes")
    lines: dict[str, list[str]] = {name: [] for name in names}
    for label, leaf in enumerate(LEAVES):
        for number in range(train + test):
            id_ = str(uuid.UUID(int=(7 * number + label) % 11 << 100 | label << 50 | number))
            file = f"{int(leaf):04d}/{id_.replace('-', '')}.jpg"
            write_image(root / "images" / file, label, number)
            lines["images"].append(f"{id_} {file}")
            lines["image_class_labels"].append(f"{id_} {leaf}")
            lines["train_test_split"].append(f"{id_} {int(number < train)}")
            lines["bounding_boxes"].append(f"{id_} {number} 2 {20 + label} 25")
            lines["sizes"].append(f"{id_} 40 30")
    lines["classes"] = [f"{id_} {name}" for id_, name in TREE.items()]
    lines["hierarchy"] = [f"{child} {parent}" for child, parent in PARENTS.items()]
    for name, rows in lines.items():
        write_lines(root / f"{name}.txt", rows)


def write_aircraft(root: Path) -> None:
    """FGVC-Aircraft with 3 variants of a manufacturer each, and with its own validation split."""
    data = root / "data"
    write_lines(data / "variants.txt", list(VARIANTS))
    boxes, rows, number = [], {}, 34958
    for split, per_class in (("train", 4), ("val", 2), ("test", 2)):
        rows[split] = []
        for label in range(len(VARIANTS)):
            for _ in range(per_class):
                number += 7
                write_image(data / "images" / f"{number:07d}.jpg", label, number)
                rows[split].append(f"{number:07d} {VARIANTS[label]}")
                boxes.append(f"{number:07d} {3 + label} 5 30 24")
    for split, lines in (rows | {"trainval": rows["train"] + rows["val"]}).items():
        write_lines(data / f"images_variant_{split}.txt", lines)
    write_lines(data / "images_box.txt", boxes)


def write_cars(root: Path) -> None:
    """Stanford Cars with 3 classes; `.mat` structs of 1 x N, and some greyscale images."""
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    (root / "devkit").mkdir(parents=True)
    names = np.array([CARS], dtype=object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})
    for split, per_class in (("train", 4), ("test", 2)):
        rows = np.empty((1, per_class * len(CARS)), [(field, "O") for field in fields])
        for i in range(rows.size):
            label, file = i % len(CARS), f"{i + 1:05d}.jpg"
            mode = "L" if i % 4 == 3 else "RGB"
            write_image(root / f"cars_{split}" / file, label, i + 100 * (split == "test"), mode)
            corners = [np.uint8(value) for value in (4 + label, 6, 30, 28)]
            rows[0, i] = (*corners, np.uint8(label + 1), file)
        inner = "devkit/cars_train_annos.mat"
        path = root / (inner if split == "train" else "cars_test_annos_withlabels.mat")
        savemat(path, {"annotations": rows})


def write_pets(root: Path) -> None:
    """Oxford-IIIT Pet with 3 breeds: list.txt has comments, and some .jpg are PNG or GIF."""
    notes = root / "annotations"
    rows: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(BREEDS):
        for number in range(6):
            path = root / "images" / f"{breed}_{number + 1}.jpg"
            write_image(path, label, number)
            if number in (1, 2):
                kind = "PNG" if number == 1 else "GIF"
                path.write_bytes(encode(pixels(label, number).convert("P"), kind))
            split = "trainval" if number < 4 else "test"
            cat = breed[0].isupper()
            rows[split].append(f"{path.stem} {label + 1} {1 if cat else 2} {label + 1}")
            trimap = np.full((30, 40), 2, np.uint8)  # 1: pet, 2: background, 3: border
            trimap[5:20, 10 + label : 31], trimap[6:19, 12 + label : 29] = 3, 1
            (notes / "trimaps").mkdir(parents=True, exist_ok=True)
            Image.fromarray(trimap).save(notes / "trimaps" / f"{path.stem}.png")
            (notes / "trimaps" / f"._{path.stem}.png").write_bytes(b"\0\5\x16\7")  # as distributed
    heading = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids", "#SPECIES: 1:Cat 2:Dog"]
    write_lines(notes / "list.txt", heading + rows["trainval"] + rows["test"])
    for split, lines in rows.items():
        write_lines(notes / f"{split}.txt", lines)


def write_flowers(root: Path) -> None:
    """Flowers-102 with one image per class and split; `.mat` rows of 1 x N."""
    ids = np.arange(1, 307, dtype=np.uint16)
    labels = ((ids - 1) % 102 + 1).astype(np.uint8)
    for id_, label in zip(ids.tolist(), labels.tolist(), strict=True):
        write_image(root / "jpg" / f"image_{id_:05d}.jpg", label, id_)
    savemat(root / "imagelabels.mat", {"labels": labels[None]})
    splits = {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]}
    savemat(root / "setid.mat", {name: rows[None] for name, rows in splits.items()})


def write_food101(root: Path) -> None:
    """Food-101 with 3 dishes; the JSON lists have no suffixes."""
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, dish in enumerate(DISHES):
        for number in range(6):
            stem = f"{dish}/{1005649 + number}"
            write_image(root / "images" / f"{stem}.jpg", label, number)
            lists["train" if number < 4 else "test"].setdefault(dish, []).append(stem)
    for split, rows in lists.items():
        lines = [stem for stems in rows.values() for stem in stems]
        write_lines(root / "meta" / f"{split}.txt", lines)
        (root / "meta" / f"{split}.json").write_text(json.dumps(rows))
    write_lines(root / "meta/classes.txt", list(DISHES))


OFFICIAL_WRITERS = {
    "nabirds": write_nabirds,
    "aircraft": write_aircraft,
    "cars": write_cars,
    "pets": write_pets,
    "flowers": write_flowers,
    "food101": write_food101,
}
FOLDERS = {  # what torchvision insists on
    "aircraft": "fgvc-aircraft-2013b",
    "cars": "stanford_cars",
    "pets": "oxford-iiit-pet",
    "flowers": "flowers-102",
    "food101": "food-101",
}
