"""Detection: COCO's evaluation, pictures of detections, and a check that a detector fits its data."""

from .config import check_data
from .evaluation import DetectionEvaluator
from .pictures import draw_boxes

__all__ = ["DetectionEvaluator", "check_data", "draw_boxes"]
