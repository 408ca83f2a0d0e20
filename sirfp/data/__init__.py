"""Data sets: the embedded scenes, public data sets, checks of a user's data, registration in Detectron2's catalogs.

Importing this package reads no data and imports neither Detectron2 nor scikit-learn.
"""

from sirfp.data.coco import check_coco
from sirfp.data.conversion import PublishedIds
from sirfp.data.data_set import DataSet, Raw, Split, register_data_set
from sirfp.data.folders import check_sem_seg_folder, read_label
from sirfp.data.location import datasets_root
from sirfp.data.registration import (
    register_all,
    register_camvid,
    register_coco,
    register_scenes,
    register_sem_seg_folder,
)
from sirfp.data.scenes import CLASSES, STUFF_CLASSES, SceneSet, load_scenes, make_scenes
from sirfp.data.sets.camvid import CLASSES as CAMVID_CLASSES

__all__ = [
    "CAMVID_CLASSES",
    "CLASSES",
    "DataSet",
    "PublishedIds",
    "Raw",
    "STUFF_CLASSES",
    "SceneSet",
    "Split",
    "check_coco",
    "check_sem_seg_folder",
    "datasets_root",
    "load_scenes",
    "make_scenes",
    "read_label",
    "register_all",
    "register_camvid",
    "register_coco",
    "register_data_set",
    "register_scenes",
    "register_sem_seg_folder",
]
