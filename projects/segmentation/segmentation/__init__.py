"""Semantic segmentation: augmentation, losses, evaluation and config keys."""

from .config import add_segmentation_config, check_data, check_model
from .evaluation import SegmentationEvaluator, frames_per_second
from .inference import with_tta
from .mapper import SegmentationMapper
from .pictures import draw_predictions
from .resampling import SAMPLER, resampling_stream
from .segmentor import with_supervised_segmentor

__all__ = [
    "SAMPLER",
    "SegmentationEvaluator",
    "SegmentationMapper",
    "add_segmentation_config",
    "check_data",
    "check_model",
    "draw_predictions",
    "frames_per_second",
    "resampling_stream",
    "with_supervised_segmentor",
    "with_tta",
]
