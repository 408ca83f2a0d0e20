"""Images of 16 and 32 bits: every reader divides 16-bit values by 257; 32-bit values are refused in one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sirfp.cli import main
from sirfp.data.coco import check_coco
from sirfp.data.folders import check_image, check_sem_seg_folder
from sirfp.data.images import check_images, open_images
from sirfp.data.pixels import check_channels, eight_bits, format_of, in_format, provide_depth, read_pixels
from sirfp.errors import InputError
from sirfp.sources.images import read_image

RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)  # 257 * (0, 1, ..., 255)
SCALED = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture(params=["png", "tif", "big-endian tif", "pgm"])
def deep(request, tmp_path):
    """A file of the 16-bit ramp: Pillow opens the kinds in modes I;16, I;16B and I."""
    file = tmp_path / f"ramp.{request.param.split()[-1]}"
    if file.suffix == ".pgm":
        file.write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    elif "big" in request.param:
        Image.frombytes("I;16B", RAMP.shape, RAMP.astype(">u2").tobytes()).save(file)
    else:
        Image.fromarray(RAMP).save(file)
    return file


def folder_of(root, image, name="0.tif"):
    """The image in folders for segmentation, detection and classification."""
    for folder in ("images", "labels", "classes/a"):
        (root / folder).mkdir(parents=True)
    image.save(root / "images" / name)
    if image.mode == "I;16":  # timm's folders hold .png and .jpg files, which have no 32 bits
        image.save(root / "classes/a/0.png")
    Image.fromarray((SCALED % 2).astype(np.uint8)).save(root / "labels/0.png")
    content = {
        "images": [{"id": 0, "file_name": name, "height": 16, "width": 16}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [2, 2, 4, 4], "iscrowd": 0, "area": 16}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return root


def test_every_reader_scales_16_bits(deep):
    assert np.array_equal(np.asarray(read_image(deep)), SCALED)  # sirfp prune --images
    assert np.array_equal(read_pixels(deep, "L")[..., 0], SCALED)  # the mapper of segmentation
    assert np.array_equal(read_pixels(deep, "RGB"), np.repeat(SCALED[..., None], 3, -1))


def test_timm_readers_scale_16_bits(tmp_path):
    root = folder_of(tmp_path, Image.fromarray(RAMP)) / "classes"
    for channels, wanted in ((3, np.repeat(SCALED[..., None], 3, -1)), (1, SCALED)):
        image, label = open_images(root, channels=channels)[0]
        assert label == 0 and np.array_equal(np.asarray(image), wanted)
    images = open_images(root)
    images.transform = lambda image: np.asarray(image).sum()
    assert images[0][0] == 3 * SCALED.sum()


def test_timm_streams_scale_16_bits(tmp_path):
    pytest.importorskip("webdataset")
    import io
    import tarfile

    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for key, content in (("png", io.BytesIO()), ("cls", io.BytesIO(b"0"))):
            if key == "png":
                Image.fromarray(RAMP).save(content, "png")
            member = tarfile.TarInfo(f"0.{key}")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": {
        "filenames": ["train-000.tar"], "num_samples": 1, "shard_lengths": [1]}}}))  # fmt: skip
    image, _ = next(iter(open_images(tmp_path, "wds/", split="train", channels=1)))
    assert np.array_equal(np.asarray(image), SCALED)


def test_detectron2s_mapper_scales_16_bits(tmp_path, monkeypatch):
    from detectron2.config import get_cfg
    from detectron2.data import DatasetMapper, detection_utils

    monkeypatch.setattr(detection_utils, "read_image", detection_utils.read_image)  # put back after the test
    provide_depth()
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    file = folder_of(tmp_path, Image.fromarray(RAMP)) / "images/0.tif"
    image = DatasetMapper(cfg, is_train=False)({"file_name": str(file), "height": 16, "width": 16})["image"]
    assert torch.equal(image[0], torch.from_numpy(SCALED))


def test_checks_say_that_16_bit_images_are_scaled(tmp_path, capsys):
    root = folder_of(tmp_path, Image.fromarray(RAMP))
    said = ["16-bit images: 1, read as value / 257, which is 0..255"]
    assert list(check_sem_seg_folder(root / "images", root / "labels", ("a", "b")).remarks) == said
    assert list(check_coco(root / "boxes.json", root / "images").remarks) == said
    assert check_images(open_images(root / "classes")) == said
    asked = ["--images", str(root / "images"), "--coco", str(root / "boxes.json")]
    assert main(["data", "check", *asked]) == 0
    assert "look at this" in (shown := capsys.readouterr().out) and said[0] in shown
    assert main(["data", "check", *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == said


def test_a_range_that_is_hardly_used_is_said(tmp_path):
    root = folder_of(tmp_path, Image.fromarray(RAMP // 16))  # a camera of 12 bits
    [said] = check_sem_seg_folder(root / "images", root / "labels", ("a", "b")).remarks
    assert "no value is above 4095, read as 15: rescale them" in said


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused_everywhere(tmp_path, kind):
    root = folder_of(tmp_path, Image.fromarray(RAMP.astype(kind)))
    file = root / "images/0.tif"
    for read in (
        lambda: check_image(file),
        lambda: read_image(file),
        lambda: read_pixels(file, "RGB"),
        lambda: check_sem_seg_folder(root / "images", root / "labels", ("a", "b")),
        lambda: check_coco(root / "boxes.json", root / "images"),
        lambda: in_format(Image.open(file), "RGB"),  # a reader of timm
    ):
        with pytest.raises(InputError, match=r"0.tif: has 32-bit .*; convert it to 8 or 16 bits") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_8_bits_stay_as_they_are(mode):
    image = Image.fromarray(SCALED).convert(mode)
    assert eight_bits(image, "a file") is image


def test_the_orientation_of_a_camera_holds_for_16_bits(tmp_path):
    image, exif = Image.fromarray(RAMP), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "turned.png", "L")[..., 0], np.rot90(SCALED, -1))


def test_the_channels_of_files_and_of_networks():
    assert [format_of(n) for n in (1, 3, 4)] == ["L", "RGB", "RGBA"]
    with pytest.raises(InputError, match="reads 6 channels; image files have 1, 3, 4"):
        format_of(6)
    for format, channels in (("L", 1), ("L", 3), ("RGB", 3), ("BGR", 3), ("YUV-BT.601", 3), ("RGBA", 4), ("CMYK", 4)):
        check_channels(format, channels)
    with pytest.raises(InputError, match="'BGR' gives images of 3 channels, MODEL.PIXEL_MEAN has 4 values: use 'RGBA'"):
        check_channels("BGR", 4)
    with pytest.raises(InputError, match="is unknown"):
        check_channels("RBG", 3)
