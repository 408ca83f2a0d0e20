"""COCO-Stuff-10K v1.1 (Caesar et al., 2018): 80 thing classes and 91 stuff classes, ids 1..182; 0 is unlabelled."""

from pathlib import Path

import numpy as np

from sirfp.data.classes import split_names
from sirfp.data.conversion import PublishedIds, mat_field, read_mat
from sirfp.data.data_set import DataSet, Raw, Split, register_data_set
from sirfp.data.folders import read_label
from sirfp.errors import InputError

UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids without annotations: COCO defines these 11 classes but never uses them."""
IDS = PublishedIds(trained=tuple(i for i in range(1, 183) if i not in UNUSED), ids=range(183))
CLASSES = split_names(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage,
    cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff,
    dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other,
    fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss,
    mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing,
    railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs,
    stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete,
    wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other,
    wood"""
)
"""Names of the classes in the order of their ids."""


def read_s(path: Path) -> np.ndarray:
    """Reads the label map `S` of a .mat file."""
    content = read_mat(path)
    if np.size(content.get("names", ())) == 172:
        raise InputError(f"{path}: is a file of COCO-Stuff v1.0, which has other ids; download cocostuff-10k-v1.1.zip")
    return IDS.to_classes(path, mat_field(path, content, "S"))


def read_pixel_map(path: Path) -> np.ndarray:
    """Reads a pixel map of COCO-Stuff: values are id - 1 (0..181), and 255 for unlabelled pixels."""
    return IDS.to_classes(path, (read_label(path).astype(np.int64) + 1) % 256)


def _split(name: str, count: int) -> Split:
    return Split(
        name=name,
        registered=f"coco_stuff_10k_sem_seg_{name}",
        count=count,
        images="images/*.jpg",
        labels="annotations_detectron2/{stem}.png",
        raw=(
            Raw(path="annotations/{stem}.mat", read=read_s),
            Raw(path="annotations/{stem}.png", read=read_pixel_map),
        ),
        listed=f"imageLists/{name}.txt",
    )


COCO_STUFF_10K = register_data_set(
    DataSet(
        name="coco_stuff_10k",
        title="COCO-Stuff-10K v1.1",
        task="segmentation",
        folder="coco_stuff_10k",
        splits=(_split("train", 9000), _split("test", 1000)),
        classes=171,
        url="https://github.com/nightrome/cocostuff10k",
        licence="CC BY 4.0 for the annotations, Flickr's terms for the images",
        archives="cocostuff-10k-v1.1.zip",
        names=CLASSES,
        ids=IDS.trained,
        aliases=("cocostuff-10k-v1.1", "coco_stuff10k", "cocostuff10k", "cocostuff"),
    )
)
