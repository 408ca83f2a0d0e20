"""ADE20K in the form of SceneParse150 (Zhou et al., 2017): 150 classes, ids 1..150, and 0 for other objects."""

from sirfp.data.conversion import PublishedIds
from sirfp.data.data_set import DataSet, Raw, Split, register_data_set

IDS = PublishedIds(trained=tuple(range(1, 151)), ids=range(151))


def _split(name: str, folder: str, count: int) -> Split:
    return Split(
        name=name,
        registered=f"ade20k_sem_seg_{name}",
        count=count,
        images=f"images/{folder}/*.jpg",
        labels=f"annotations_detectron2/{folder}/{{stem}}.png",
        raw=(Raw(path=f"annotations/{folder}/{{stem}}.png", read=IDS),),
    )


ADE20K = register_data_set(
    DataSet(
        name="ade20k",
        title="ADE20K (SceneParse150)",
        task="segmentation",
        folder="ADEChallengeData2016",
        splits=(_split("train", "training", 20210), _split("val", "validation", 2000)),
        classes=150,
        url="http://sceneparsing.csail.mit.edu/",
        licence="BSD 3-Clause for the annotations, non-commercial research for the images",
        archives="ADEChallengeData2016.zip",
        ids=IDS.trained,
        aliases=("ade20k", "ade", "ADE20K"),
        detectron2=True,
    )
)
