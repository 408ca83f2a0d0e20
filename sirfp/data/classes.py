"""Official class names of data sets, and what their label values become in training: 0, 1, ... and 255, ignored."""

from types import MappingProxyType

import numpy as np

IGNORE = 255


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


CAMVID_CLASSES = _names(
    "sky, building, pole, road, pavement, tree, sign symbol, fence, car, pedestrian, bicyclist",
)
"""CamVid's 11 classes in SegNet's order (Badrinarayanan et al., 2017)."""
CAMVID_VOID = 11

CITYSCAPES_IDS = MappingProxyType(
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
"""Label ids of Cityscapes (Cordts et al., 2016); those of `CITYSCAPES_TRAINED` are learned, in this order."""
CITYSCAPES_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

ADE20K_TRAINED = tuple(range(1, 151))
"""The ids of SceneParse150 (Zhou et al., 2017), in order; 0 is what is none of them."""

COCO_STUFF_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids of 1..182 that COCO names and never annotates (Caesar et al., 2018)."""
COCO_STUFF_TRAINED = tuple(i for i in range(1, 183) if i not in COCO_STUFF_UNUSED)
COCO_STUFF_CLASSES = _names(
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
"""COCO-Stuff's 80 things and 91 kinds of stuff, in the order of their ids."""

PASCAL_CONTEXT_TRAINED = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""The 59 of the 459 ids that are learned (Mottaghi et al., 2014), in this order."""
PASCAL_CONTEXT_CLASSES = _names(
    """aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
    ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
    keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
    sidewalk, sign, sky, snow, sofa, diningtable, track, train, tree, truck, tvmonitor, wall, water, window, wood"""
)


def lookup(trained: tuple[int, ...], ids: range) -> np.ndarray:
    """What label ids become: (65536,) integers; the place of an id in `trained`, 255 for the rest of `ids`, else -1."""
    table = np.full(1 << 16, -1, dtype=np.int16)
    table[ids.start : ids.stop] = IGNORE
    table[list(trained)] = range(len(trained))
    return table
