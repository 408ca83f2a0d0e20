"""What semantic segmentation needs beside sirfp: augmentation, evaluation, a few config keys."""

from .config import add_segmentation_config, check_data, check_model
from .evaluation import SegmentationEvaluator
from .mapper import SegmentationMapper
from .pictures import draw_predictions
from .segmentor import supervised

__all__ = [
    "SegmentationEvaluator",
    "SegmentationMapper",
    "add_segmentation_config",
    "check_data",
    "check_model",
    "draw_predictions",
    "supervised",
]
