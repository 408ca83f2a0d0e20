"""COCO 2017: boxes and masks of 80 classes of objects (Lin et al., 2014)."""

from sirfp.data.data_set import DataSet, Split, register_data_set


def _split(name: str, count: int) -> Split:
    return Split(
        name=name,
        registered=f"coco_2017_{name}",
        count=count,
        images=f"{name}2017/*.jpg",
        labels=f"annotations/instances_{name}2017.json",
    )


COCO = register_data_set(
    DataSet(
        name="coco",
        title="COCO 2017",
        task="detection",
        folder="coco",
        splits=(_split("train", 118287), _split("val", 5000)),
        classes=80,
        url="https://cocodataset.org/#download",
        licence="CC BY 4.0 for the annotations, Flickr's terms for the images",
        archives="train2017.zip, val2017.zip and annotations_trainval2017.zip",
        aliases=("COCO", "coco2017", "mscoco"),
        detectron2=True,
    )
)
