"""Classification with timm: data, losses, evaluation, averaged weights and config keys."""

from .averaging import AverageWeights
from .config import add_classification_config, check_config, check_data
from .evaluation import AccuracyEvaluator, BatchAdapter
from .inputs import image_channels, image_size
from .loaders import test_loader, train_loader
from .losses import Objective
from .network import build_network, build_optimizer
from .pictures import draw_predictions
from .source import build_source

__all__ = [
    "AccuracyEvaluator",
    "AverageWeights",
    "Objective",
    "BatchAdapter",
    "add_classification_config",
    "build_network",
    "build_optimizer",
    "build_source",
    "check_config",
    "check_data",
    "draw_predictions",
    "image_channels",
    "image_size",
    "test_loader",
    "train_loader",
]
