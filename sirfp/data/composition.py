"""Draws a scene: scanned digits, coloured, rotated and overlapping, on a crop of a photograph.

The digits are the 8 x 8 scans of scikit-learn's `load_digits` (UCI, Alpaydin and Kaynak, 1998). The photographs are
included in the wheels of scikit-image and scikit-learn, so that nothing is downloaded. The two splits share neither
scans nor photographs: `train` uses the first 80% of each digit's scans and one list of photographs, `val` uses the
other 20% and another list.

Photographs are darkened, so that the digits are brighter than the background. The colour of a digit is correlated with
its class but does not determine it. Thus a small network learns the scenes from scratch in a few minutes on a CPU, and
must still learn shapes.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from sirfp.errors import InputError

SPLITS = ("train", "val")
CLASSES = tuple("0123456789")
"""The digits; class `i` has value `i + 1` in a label map and category id `i + 1` in an annotation file."""

PHOTOGRAPHS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/ihc.png",
        "skimage/data/retina.jpg",
        "skimage/data/camera.png",
        "skimage/data/brick.png",
        "skimage/data/grass.png",
        "sklearn/datasets/images/china.jpg",
    ),
    "val": (
        "skimage/data/coffee.png",
        "skimage/data/rocket.jpg",
        "skimage/data/gravel.png",
        "sklearn/datasets/images/flower.jpg",
    ),
}
DIGITS = "sklearn/datasets/data/digits.csv.gz"
"""The file that `load_digits` reads."""
TRAIN_SHARE = 0.8

DIGITS_PER_SCENE = (2, 4)
DIGIT_EXTENT = (36 / 128, 72 / 128)
"""Range of a digit's longer side, as a share of the scene's side."""
MAX_TURN = 20.0
MIN_VISIBLE = 0.75
"""Least share of a digit that stays visible when other digits are placed in front of it."""
HUE_SPREAD = 24.0
"""Standard deviation of a digit's hue around the hue of its class, in degrees; classes are 36 degrees apart."""
BACKGROUND_BRIGHTNESS = (0.3, 0.6)
PLACE_TRIES = 20
CANVAS = 160


@dataclass(frozen=True)
class Digit:
    """One digit of a scene.

    Attributes:
        label: index into `CLASSES`.
        mask: (size, size) bool, the visible part.
        area: number of pixels of the whole digit, including covered pixels.
        scan: index of the scan in `load_digits`.
    """

    label: int
    mask: np.ndarray
    area: int
    scan: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Extent of the mask in pixels: left, top, width, height."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1

    @property
    def visible(self) -> float:
        """Share of the digit that is not covered."""
        return int(self.mask.sum()) / self.area


@dataclass(frozen=True)
class Scene:
    """A composed scene.

    Attributes:
        image: (size, size, 3) uint8, RGB.
        digits: digits of the scene, from back to front.
        photograph: entry of `PHOTOGRAPHS` used as the background.
    """

    image: np.ndarray
    digits: tuple[Digit, ...]
    photograph: str

    @property
    def label_map(self) -> np.ndarray:
        """(size, size) uint8: 0 is background, `i + 1` is digit `i`."""
        labels = np.zeros(self.image.shape[:2], np.uint8)
        for digit in self.digits:
            labels[digit.mask] = digit.label + 1
        return labels


def compose(split: str, index: int, *, size: int, seed: int) -> Scene:
    """Draws scene `index` of a split; the same arguments give the same pixels.

    Args:
        split: `train` or `val`.
        index: number of the scene; scenes are independent of each other.
        size: side of the square scene in pixels.
        seed: seed of the whole set.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    photograph = PHOTOGRAPHS[split][rng.integers(len(PHOTOGRAPHS[split]))]
    image = _background(_photograph(photograph), size, rng)
    digits: list[Digit] = []
    for _ in range(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1)):
        image, digits = _add_digit(image, digits, split, rng)
    return Scene(np.rint(image).astype(np.uint8), tuple(digits), photograph)


def scans(split: str) -> tuple[np.ndarray, ...]:
    """Indices into `load_digits` of the scans that a split may draw, one array for each class."""
    return _scans()[1][split]


def _add_digit(
    image: np.ndarray, digits: list[Digit], split: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[Digit]]:
    """Tries to draw one more digit in front such that each earlier digit stays visible (`MIN_VISIBLE`).

    Draws no digit if `PLACE_TRIES` tries fail.
    """
    size = len(image)
    label = int(rng.integers(len(CLASSES)))
    scan = int(rng.choice(scans(split)[label]))
    low, high = np.log(DIGIT_EXTENT)
    extent = size * float(np.exp(rng.uniform(low, high)))
    stamp = _stamp(scan, extent, rng)
    height, width = stamp.shape
    for _ in range(PLACE_TRIES):
        y, x = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
        alpha = np.zeros((size, size), np.float32)
        alpha[y : y + height, x : x + width] = stamp
        mask = alpha >= 0.5
        covered = [Digit(d.label, d.mask & ~mask, d.area, d.scan) for d in digits]
        if all(d.visible >= MIN_VISIBLE for d in covered):
            colour = _colour(label, rng)[None, None] * _shading(size, rng)
            image = image + (np.clip(colour, 0, 255) - image) * alpha[..., None]
            return image, [*covered, Digit(label, mask, int(mask.sum()), scan)]
    return image, digits


def _stamp(scan: int, extent: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity of a digit whose longer side is `extent` pixels: (height, width) float32 in 0..1."""
    ink = cv2.resize(_scans()[0][scan], (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    ink = cv2.GaussianBlur(np.pad(ink, CANVAS // 4), (0, 0), CANVAS / 32)
    centre = len(ink) / 2
    turn = cv2.getRotationMatrix2D((centre, centre), float(rng.uniform(-MAX_TURN, MAX_TURN)), 1.0)
    turn[0, :2] = turn[0, :2] * rng.uniform(0.8, 1.1)
    turn[0, 2] += centre - turn[0] @ (centre, centre, 1)
    ink = cv2.warpAffine(ink, turn, ink.shape[::-1], flags=cv2.INTER_LINEAR)
    ink = ink / ink.max()
    rows, columns = np.flatnonzero((ink >= 0.5).any(1)), np.flatnonzero((ink >= 0.5).any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = extent / max(ink.shape)
    side = [max(3, round(length * scale)) for length in ink.shape[::-1]]
    ink = np.pad(cv2.resize(ink, side, interpolation=cv2.INTER_AREA), 1)
    return np.clip((ink - 0.5) * extent / 8 + 0.5, 0, 1)


def _colour(label: int, rng: np.random.Generator) -> np.ndarray:
    """A random bright colour with a hue near the hue of the class: (3,) RGB in 0..255."""
    hue = (360 / len(CLASSES) * label + rng.normal(0, HUE_SPREAD)) % 360
    hsv = np.array([[[hue, rng.uniform(0.35, 0.85), rng.uniform(0.85, 1)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _shading(size: int, rng: np.random.Generator) -> np.ndarray:
    """Random brightness factors around 1: a gradient in a random direction plus noise, (size, size, 1)."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
    line = np.linspace(-0.5, 0.5, size)
    plane = np.cos(angle) * line[:, None] + np.sin(angle) * line[None]
    return (1 + slope * plane + rng.normal(0, 0.04, plane.shape))[..., None]


def _background(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square crop at a random scale, mirrored at random and slightly tinted: (size, size, 3) float32."""
    height, width = photograph.shape[:2]
    side = int(rng.integers(min(size, height, width), min(height, width) + 1))
    y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    resized = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_AREA)
    tint = rng.uniform(*BACKGROUND_BRIGHTNESS) * rng.uniform(0.85, 1.15, 3)
    return np.clip(resized * tint, 0, 255).astype(np.float32)


@cache
def _photograph(name: str) -> np.ndarray:
    """Reads a photograph: (height, width, 3) uint8, RGB."""
    from PIL import Image

    with Image.open(_installed(name)) as image:
        return np.asarray(image.convert("RGB"))


def _installed(name: str) -> Path:
    """The path of a file of an installed package, which is not imported: scikit-learn's import takes seconds."""
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / rest if spec and spec.origin else Path(name)
    if not path.is_file():
        raise InputError(f"{name}: file not found; install scikit-image and scikit-learn as wheels")
    return path


@cache
def _scans() -> tuple[np.ndarray, dict[str, tuple[np.ndarray, ...]]]:
    """The scans, (N, 8, 8) float32 in 0..1, and {split: indices of its scans, an array per class}."""
    rows = np.loadtxt(_installed(DIGITS), delimiter=",", dtype=np.float32)  # 64 pixels and the class
    images, target = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    shares: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(len(CLASSES)):
        indices = np.flatnonzero(target == label)
        cut = round(TRAIN_SHARE * len(indices))
        shares["train"].append(indices[:cut])
        shares["val"].append(indices[cut:])
    return images / 16, {split: tuple(share) for split, share in shares.items()}
