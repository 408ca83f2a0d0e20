"""Keypoint heads compute the same on heat maps of any memory format."""

import torch
from detectron2.modeling.roi_heads import keypoint_head
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage

from sirfp.models.keypoints import provide_contiguous_heat_maps


def test_heat_maps_that_are_stored_channels_last():
    provide_contiguous_heat_maps()
    provide_contiguous_heat_maps()  # as a second trainer does
    maps = torch.randn(2, 3, 8, 8)
    boxes = Boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0], [4.0, 4.0, 30.0, 20.0]]))
    points = torch.tensor([[[3.0, 4.0, 2.0], [9.0, 9.0, 1.0], [15.0, 2.0, 2.0]]] * 2)
    losses, found = [], []
    for form in (torch.contiguous_format, torch.channels_last):
        given = maps.contiguous(memory_format=form)
        true = Instances((32, 32), proposal_boxes=boxes, gt_keypoints=Keypoints(points))
        predicted = Instances((32, 32), pred_boxes=boxes)
        with EventStorage():
            losses.append(keypoint_head.keypoint_rcnn_loss(given, [true], normalizer=None))
        keypoint_head.keypoint_rcnn_inference(given, [predicted])
        found.append(predicted.pred_keypoints)
    assert losses[0] == losses[1] and torch.equal(*found)
