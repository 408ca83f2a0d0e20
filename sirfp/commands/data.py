"""`sirfp data`: makes the embedded scenes, checks and prepares public data sets, checks a user's own data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..files.own_code import add_import
from . import data_sets
from .arguments import at_least
from .outcome import Outcome

USAGE = "sirfp data {scenes,check,prepare} ..."
EXAMPLE = """examples:
  sirfp data scenes datasets/scenes
  sirfp data check
  sirfp data check cityscapes
  sirfp data prepare cityscapes
  sirfp data check --images train --labels trainannot --classes sky road car
  sirfp data check --images train --coco annotations/train.json"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{scenes,check,prepare}", prog="sirfp data")
    scenes = actions.add_parser(
        "scenes",
        help="make the embedded data set: digits on photographs, for segmentation, detection and classification",
        description="Makes the embedded data set; needs no download. A set that was made before is kept.",
        epilog="example:\n  sirfp data scenes datasets/scenes --train 400 --val 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    scenes.add_argument("folder", nargs="?", help="output folder; $SIRFP_DATASETS/scenes or datasets/scenes by default")
    for name, value, least, what in (
        ("train", 400, 1, "training scenes"),
        ("val", 100, 1, "validation scenes"),
        ("size", 128, 64, "side of a scene in pixels"),
        ("seed", 0, 0, "seed of all random choices"),
    ):
        scenes.add_argument(
            f"--{name}",
            type=at_least(least),
            default=value,
            metavar="N",
            help=f"{what} (default %(default)s)",
        )
    scenes.add_argument("--force", action="store_true", help="replace an existing scene set")
    check = actions.add_parser(
        "check",
        help="check a public data set by its name, or your own: images with label maps or a COCO file",
        description="Finds faults in data before training. Without arguments, lists the public data sets.",
        epilog=EXAMPLE.replace("  sirfp data scenes datasets/scenes\n", "").replace(
            "  sirfp data prepare cityscapes\n", ""
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    check.add_argument("name", nargs="?", metavar="NAME", help="a public data set, below $DETECTRON2_DATASETS")
    check.add_argument("--all", action="store_true", help="with NAME: decode all files, not a sample")
    check.add_argument("--partial", action="store_true", help="with NAME: fewer images than released are fine")
    check.add_argument("--images", metavar="FOLDER", help="the images; alone: classification, one folder per class")
    check.add_argument("--labels", metavar="FOLDER", help="segmentation: label maps of the same names")
    check.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes; label value i is the i-th")
    check.add_argument(
        "--num-classes",
        type=at_least(1),
        metavar="N",
        help="number of classes, instead of their names",
    )
    check.add_argument(
        "--ignore",
        type=int,
        default=255,
        metavar="VALUE",
        help="label of pixels that do not count (default %(default)s)",
    )
    check.add_argument("--coco", metavar="FILE", help="detection: the annotations, in COCO's format")
    prepare = actions.add_parser(
        "prepare",
        help="make the files that a public data set needs: label maps of class indices, lists, folders of classes",
        description="Prepares a data set. Complete files are kept; may be stopped and run again.",
        epilog=data_sets.PREPARE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    data_sets.add_prepare(prepare)
    for part in (check, prepare):
        add_import(part)
    for part in (scenes, check, prepare):
        part.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> Outcome:
    """Makes scenes, or checks or prepares a data set."""
    if args.action == "scenes":
        return _scenes(args)
    if args.action == "prepare":
        return data_sets.prepare_set(args)
    own = any((args.images, args.labels, args.classes, args.num_classes, args.coco))
    if args.name and own:
        raise InputError(f"give the name of a data set ({args.name}) or the folders of your own, not both")
    if not own and (args.all or args.partial) and not args.name:
        raise InputError("--all and --partial are for one data set: name it")
    if not own:
        return data_sets.check_set(args) if args.name else data_sets.list_sets()
    if args.all or args.partial:
        raise InputError("--all and --partial are for public data sets; checks of your own look at all files")
    if not args.images:
        raise InputError("give --images FOLDER, the images of your own data")
    if args.labels and args.coco:
        raise InputError("give --labels FOLDER for segmentation, or --coco FILE for detection, not both")
    if args.coco:
        return _coco(args)
    return _folders(args) if args.labels else _classified(args)


def _scenes(args: argparse.Namespace) -> Outcome:
    from sirfp.data import STUFF_CLASSES, make_scenes

    try:
        made = make_scenes(
            args.folder, train=args.train, val=args.val, size=args.size, seed=args.seed, force=args.force
        )
    except OSError as error:
        raise InputError(f"cannot write scenes to {args.folder or 'datasets'}: {error.strerror or error}") from None
    data = {
        "folder": str(made.root),
        "train": made.train,
        "val": made.val,
        "size": made.size,
        "seed": made.seed,
    }
    shown = [f"{made.root}: {made.train} training and {made.val} validation scenes of {made.size} x {made.size} pixels"]
    return Outcome({**data, "classes": list(STUFF_CLASSES)}, shown)


def _folders(args: argparse.Namespace) -> Outcome:
    from sirfp.data import check_sem_seg_folder

    if bool(args.classes) == bool(args.num_classes):
        raise InputError("give the classes of the label maps: --classes NAME ..., or --num-classes N")
    classes = args.classes or [str(i) for i in range(args.num_classes)]
    pairs = check_sem_seg_folder(args.images, args.labels, classes, args.ignore)
    sizes = sorted({(pair.height, pair.width) for pair in pairs})
    span = " x ".join(map(str, sizes[0])) + (f" to {' x '.join(map(str, sizes[-1]))}" if len(sizes) > 1 else "")
    data = {"images": len(pairs), "classes": len(classes), "sizes": [list(size) for size in sizes]}
    what = f"{len(pairs)} images with label maps of {len(classes)} classes, {span} pixels"
    return _with_remarks(data, what, pairs.remarks)


def _classified(args: argparse.Namespace) -> Outcome:
    """Checks images in one folder per class."""
    from sirfp.data.images import check_class_folders

    if args.classes:
        raise InputError("--classes is for label maps (--labels); folders of images name the classes themselves")
    found = check_class_folders(args.images, args.num_classes)
    fewest, most = min(found.images.values()), max(found.images.values())
    each = f"{fewest} each" if fewest == most else f"{fewest} to {most} each"
    what = f"{args.images}: {sum(found.images.values())} images in {len(found.images)} classes, {each}"
    return _with_remarks({"images": dict(found.images)}, f"{what} ({', '.join(found.images)})", found.remarks)


def _with_remarks(data: dict[str, Any], what: str, remarks: Sequence[str]) -> Outcome:
    """Says that data are well, or what is allowed in them but probably not meant."""
    said = f"{what}: all is well." if not remarks else f"{what}: valid, but look at this:"
    return Outcome({**data, "remarks": list(remarks)}, [said, *(f"- {remark}" for remark in remarks)])


def _coco(args: argparse.Namespace) -> Outcome:
    from sirfp.data import check_coco

    if args.classes:
        raise InputError("--classes is for label maps; a COCO file names its own (--num-classes N checks how many)")
    found = check_coco(args.coco, args.images, args.num_classes)
    what = f"{args.coco}: {len(found.classes)} classes ({', '.join(found.classes)})"
    return _with_remarks({"classes": list(found.classes)}, what, found.remarks)
