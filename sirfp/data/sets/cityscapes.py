"""Cityscapes with fine annotations (Cordts et al., 2016): 19 of 34 labels are learned."""

from pathlib import Path
from types import MappingProxyType

import numpy as np

from sirfp.data.classes import IGNORE, lookup
from sirfp.data.conversion import PublishedIds, read_json
from sirfp.data.data_set import DataSet, Raw, Split, register_data_set
from sirfp.errors import InputError

LABELS = MappingProxyType(
    {
        "unlabeled": 0,
        "ego vehicle": 1,
        "rectification border": 2,
        "out of roi": 3,
        "static": 4,
        "dynamic": 5,
        "ground": 6,
        "road": 7,
        "sidewalk": 8,
        "parking": 9,
        "rail track": 10,
        "building": 11,
        "wall": 12,
        "fence": 13,
        "guard rail": 14,
        "bridge": 15,
        "tunnel": 16,
        "pole": 17,
        "polegroup": 18,
        "traffic light": 19,
        "traffic sign": 20,
        "vegetation": 21,
        "terrain": 22,
        "sky": 23,
        "person": 24,
        "rider": 25,
        "car": 26,
        "truck": 27,
        "bus": 28,
        "caravan": 29,
        "trailer": 30,
        "train": 31,
        "motorcycle": 32,
        "bicycle": 33,
        "license plate": -1,
    }
)
"""Label ids by name."""
TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
IDS = PublishedIds(trained=TRAINED, ids=range(34))


def read_polygons(path: Path) -> np.ndarray:
    """Draws the label map of a `*_gtFine_polygons.json`; returns class indices (H, W).

    Later polygons cover earlier ones. A label for a group of objects, e.g. "cargroup", counts as the object's label.
    """
    from PIL import Image, ImageDraw

    content = read_json(path)
    table = lookup(IDS.trained, IDS.ids)
    try:
        drawn = Image.new("L", (content["imgWidth"], content["imgHeight"]), IGNORE)
        draw = ImageDraw.Draw(drawn)
        for shape in content["objects"]:
            name = shape["label"]
            number = LABELS.get(name, LABELS.get(name.removesuffix("group")))
            if number is None:
                raise InputError(f"{path}: {name!r} is no label of Cityscapes; download the file again")
            if number >= 0 and not shape.get("deleted"):
                draw.polygon([tuple(point) for point in shape["polygon"]], fill=int(table[number]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not in Cityscapes' format ({error!r}); download the file again") from error
    return np.asarray(drawn)


def _split(name: str, count: int) -> Split:
    labels = f"gtFine/{name}/{{parent}}/{{stem}}_gtFine_"
    return Split(
        name=name,
        registered=f"cityscapes_fine_sem_seg_{name}",
        count=count,
        images=f"leftImg8bit/{name}/*/*_leftImg8bit.png",
        labels=f"{labels}labelTrainIds.png",
        raw=(Raw(path=f"{labels}labelIds.png", read=IDS), Raw(path=f"{labels}polygons.json", read=read_polygons)),
        beside=(f"{labels}labelIds.png", f"{labels}instanceIds.png", f"{labels}polygons.json"),
        needed=name != "test",
    )


CITYSCAPES = register_data_set(
    DataSet(
        name="cityscapes",
        title="Cityscapes (fine)",
        task="segmentation",
        folder="cityscapes",
        splits=(_split("train", 2975), _split("val", 500), _split("test", 1525)),
        classes=19,
        url="https://www.cityscapes-dataset.com/downloads/",
        licence="non-commercial research only; registration needed",
        archives="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
        ids=TRAINED,
        detectron2=True,
    )
)
