"""Pictures of detections say where nothing was found."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from scripts import loaded
from torch import nn

from sirfp.config import load_config
from sirfp.reporting import figures

BOX = [4.0, 4.0, 20.0, 20.0]


class Found(nn.Module):
    """A detector that finds one box of each of these scores in every image."""

    def __init__(self, *scores: float):
        super().__init__()
        self.scores = scores

    def forward(self, batch):
        found = Instances((32, 32))
        found.pred_boxes = Boxes(torch.tensor([BOX] * len(self.scores)).reshape(-1, 4))
        found.scores = torch.tensor(self.scores)
        found.pred_classes = torch.zeros(len(self.scores), dtype=torch.long)
        return [{"instances": found}]


@pytest.mark.parametrize(
    "annotated, scores, truth, said",
    [
        (True, (), [], ["no detection above 0.3"]),
        (True, (0.1, 0.29), [], ["no detection above 0.3"]),  # as of a detector that has hardly been trained
        (False, (0.2, 0.9), ["no object"], []),
        (False, (), ["no object"], ["no detection above 0.3"]),
    ],
)
def test_a_picture_without_boxes_says_so(tmp_path, monkeypatch, annotated, scores, truth, said):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0.png")
    box = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "0.png"), "height": 32, "width": 32, "annotations": [box] * annotated}
    monkeypatch.setitem(DatasetCatalog.data, "drawn", lambda: [record])
    monkeypatch.setitem(MetadataCatalog.data, "drawn", Metadata(name="drawn", thing_classes=["thing"]))
    cfg = load_config("")
    cfg.DATASETS.TEST = ("drawn",)
    drawn = []
    gallery = figures.gallery

    def kept(rows, path):
        drawn.extend(rows)
        gallery(rows, path)

    monkeypatch.setattr(figures, "gallery", kept)
    with loaded("projects/detection/train_net.py") as script:
        script.draw_boxes(cfg, {"dense": Found(*scores)}, tmp_path / "drawn.png")
    ((true, found),) = drawn
    assert [text for text, _ in true.lines] == truth and len(true.boxes) == annotated
    assert [text for text, _ in found.lines] == said and len(found.boxes) == sum(score >= 0.3 for score in scores)
    assert (tmp_path / "drawn.png").is_file()
