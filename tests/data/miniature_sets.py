"""Public data sets in miniature: the layout, file names and label ids of the official archives, with tiny images."""

import json
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from sirfp.data.descriptions import DATA_SETS

SIZE = (8, 6)
"""Width and height of the images."""
WNIDS = ("n01440764", "n01443537", "n15075141")


def image(path, size=SIZE):
    """Writes an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def label(path, values, size=SIZE):
    """Writes a label map of which every value of `values` has some pixels; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = repeat_to_image(values, size)
    if path.suffix == ".mat":
        field = "LabelMap" if path.parent.name == "trainval" else "S"
        savemat(path, {field: pixels.astype(np.uint16)})
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return pixels


def repeat_to_image(values, size=SIZE):
    """An array (height, width) that repeats values in a row."""
    return np.resize(np.array(values), (size[1], size[0]))


def cityscapes(root, raw="labelIds.png"):
    """One city a split; the test split has only what is void, as published."""
    folder = root / "cityscapes"
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("lindau",)), ("test", ("berlin",))):
        for city in cities:
            for frame in range(2):
                stem = f"{city}_{frame:06d}_000019"
                image(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
                place = folder / "gtFine" / split / city
                ids = (0, 1, 2, 3) if split == "test" else (0, 7, 8, 17, 18, 29, 31, 33)
                if raw == "labelIds.png":
                    label(place / f"{stem}_gtFine_{raw}", ids)
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{stem}_gtFine_polygons.json").write_text(json.dumps(polygons()))
                label(place / f"{stem}_gtFine_instanceIds.png", (0,))
    return folder


def polygons():
    """The left half is road, over it a car in the top left corner; a group of bicycles on the right; a plate; a gap."""

    def box(name, left, top, right, bottom, **more):
        return {"label": name, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]], **more}

    objects = [box("road", 0, 0, 3, 5), box("car", 0, 0, 1, 1), box("bicyclegroup", 4, 0, 6, 5)]
    objects += [box("license plate", 0, 0, 0, 0), box("building", 0, 0, 7, 5, deleted=1)]
    return {"imgHeight": SIZE[1], "imgWidth": SIZE[0], "objects": objects}


def ade20k(root):
    """ADEChallengeData2016.zip."""
    folder = root / "ADEChallengeData2016"
    for split, name, images in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, images + 1):
            stem = f"ADE_{name}_{number:08d}"
            image(folder / "images" / split / f"{stem}.jpg")
            label(folder / "annotations" / split / f"{stem}.png", (0, 1, 2, 149, 150))
    return folder


def coco_stuff_10k(root, suffix=".mat"):
    """cocostuff-10k-v1.1.zip; images of both splits share a folder."""
    folder, numbers = root / "coco_stuff_10k", count(9)
    (folder / "imageLists").mkdir(parents=True)
    for split, images in (("train", 3), ("test", 2)):
        stems = [f"COCO_train2014_{next(numbers):012d}" for _ in range(images)]
        (folder / "imageLists" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            image(folder / "images" / f"{stem}.jpg")
            ids = (0, 1, 11, 13, 90, 92, 182)
            label(folder / "annotations" / f"{stem}{suffix}", ids if suffix == ".mat" else [i - 1 for i in ids])
    return folder


def pascal_context(root, raw="trainval_merged.json"):
    """VOC 2010 with the merged annotations, or with the label maps of 459 ids."""
    from pycocotools.mask import encode

    folder = root / "VOC2010"
    records, annotations = [], []
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, years in (("train", (2008, 2009, 2010)), ("val", (2008, 2010))):
        stems = [f"{year}_{7 if split == 'train' else 8:06d}" for year in years]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            image(folder / "JPEGImages" / f"{stem}.jpg")
            pixels = repeat_to_image((0, 1, 2, 9, 397, 458, 459))
            if raw.endswith(".mat"):
                label(folder / "trainval" / f"{stem}.mat", (0, 1, 2, 9, 397, 458, 459))
                continue
            number = int(stem.replace("_", ""))
            names = {"file_name": f"{stem}.jpg", "image_id": number, "phase": split}
            records.append({**names, "height": SIZE[1], "width": SIZE[0]})
            for value in (1, 2, 9, 397, 458, 459):
                mask = encode(np.asfortranarray(pixels == value, np.uint8))
                coded = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
                annotations.append({"image_id": number, "category_id": value, "segmentation": coded})
    if records:
        (folder / raw).write_text(json.dumps({"images": records, "annos_segmentation": annotations}))
    image(folder / "JPEGImages" / "2007_000027.jpg")  # VOC has images that Pascal Context does not annotate
    return folder


def camvid(root):
    """The folder CamVid of SegNet's tutorial."""
    folder = root / "camvid"
    for split, images in (("train", 3), ("val", 2), ("test", 1)):
        for number in range(images):
            stem = f"0001TP_{number:06d}"
            image(folder / split / f"{stem}.png")
            label(folder / f"{split}annot" / f"{stem}.png", range(12))
    return folder


def coco(root):
    """Two images a split, each with a box."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    for split in ("train", "val"):
        records = [{"id": i, "file_name": f"{i:012d}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in (139, 285)]
        for record in records:
            image(folder / f"{split}2017" / record["file_name"])
        boxes = [
            {"id": i, "image_id": record["id"], "category_id": 90, "bbox": [1, 1, 3, 0 if i else 2], "iscrowd": 0}
            for i, record in enumerate(records)
        ]
        content = {
            "images": records,
            "annotations": boxes,
            "categories": [{"id": i, "name": f"class {i}"} for i in ids],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def imagenet(root, labels="devkit"):
    """Three classes; the validation images in one folder, their classes in the development kit or in a list."""
    folder = root / "imagenet"
    for wnid in WNIDS:
        image(folder / "train" / wnid / f"{wnid}_10026.JPEG")
    answers = (2, 0, 1, 2)
    for number in range(1, len(answers) + 1):
        image(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    if labels == "devkit":
        data = folder / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        numbers = (490, 1, 3)  # the kit's own numbers are not the order of the ids
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[i]}\n" for i in answers))
        rows = np.zeros(3, [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
        for row, number, wnid in zip(rows, numbers, WNIDS, strict=True):
            row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(number), wnid, "a name"
        savemat(data / "meta.mat", {"synsets": rows.reshape(-1, 1)})
    elif labels == "kaggle":
        rows = (f"ILSVRC2012_val_{n:08d},{WNIDS[i]} 1 1 5 5 \n" for n, i in enumerate(answers, 1))
        (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    else:
        text = "".join(f"{WNIDS[i]}\n" for i in answers)
        (folder / "imagenet_2012_validation_synset_labels.txt").write_text(text)
    return folder


def miniature(known, root):
    """A set in the layout of its description, three images in its first split and two in each other; published ids.

    For sets without lists of images; the files that label maps are prepared from are PNGs of ids.
    """
    folder = root / known.folder
    for position, split in enumerate(known.splits):
        stems = [f"{split.name}_{number:06d}" for number in range(3 if position == 0 else 2)]
        classes = known.names or (*map(str, range(known.classes)),)
        for number, stem in enumerate(stems):
            name = split.images.replace(".*", ".png").replace("*/", f"{classes[number % len(classes)]}/")
            image(folder / name.replace("*", stem))
            if known.task == "segmentation":
                ids = known.ids or range(known.classes)
                template, values = (split.raw[0].path, (*ids, 0)) if split.raw else (split.labels, (*ids, known.ignore))
                label(folder / template.format(stem=stem, parent=""), values)
        if known.task == "detection":
            write_boxes(folder / split.labels, folder / split.image_folder, classes)
    return folder


def write_boxes(path, images, classes):
    """A file of annotations in COCO's format: a box in each image, the second without height."""
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)][: len(classes)]
    records = [
        {"id": i, "file_name": file.name, "width": SIZE[0], "height": SIZE[1]}
        for i, file in enumerate(sorted(images.glob("*.jpg")), 1)
    ]
    boxes = [
        {"id": i, "image_id": record["id"], "category_id": ids[-1], "bbox": [1, 1, 3, 0 if i else 2], "iscrowd": 0}
        for i, record in enumerate(records)
    ]
    categories = [{"id": i, "name": name} for i, name in zip(ids, classes, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": records, "annotations": boxes, "categories": categories}))


OFFICIAL = {
    maker.__name__: maker for maker in (cityscapes, ade20k, coco_stuff_10k, pascal_context, camvid, coco, imagenet)
}
"""Makers with the file names, and the kinds of original files, of the official archives."""
MAKERS = {name: OFFICIAL.get(name, partial(miniature, known)) for name, known in DATA_SETS.items()}


def content(folder: Path):
    """{path: bytes} of all files, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
