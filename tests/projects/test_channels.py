"""Grey images and images with transparency: trained, pruned, drawn, reported and verified in every project."""

import numpy as np
import pytest
from PIL import Image
from scripts import loaded
from tiny_tasks import command, make_data

from sirfp import cli, engine
from sirfp.checkpoint import read
from sirfp.reporting.figures import as_rgb

PRUNING = [
    "SIRFP.HOOKS", "['Accumulate','Report','PruneSteps','Recover']", "SIRFP.KEEP_FLOPS", "0.6", "SIRFP.START_ITER", "2",
    "SIRFP.ACCUMULATE_ITERS", "1", "SIRFP.ACCUMULATE_PERIOD", "1", "SIRFP.RECONSTRUCTION_ITERS", "1",
    "SIRFP.CURVE_IMAGES", "2", "SIRFP.INPUT_SIZE", "[64, 64]", "SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0",
]  # fmt: skip
RUN = ["SIRFP.WIDTHS", "ranking"]
LINE = ["--widths", "ranking", "--reconstruction", "0", "--batches", "1", "--batch", "2"]
"""What makes the run and the command quick: curves and refits see the same images as criteria, and the run refits."""
FORMATS = {1: "L", 4: "RGBA"}
TRAINERS = {
    "segmentation": "SegmentationTrainer",
    "detection": "DetectionTrainer",
    "classification": "ClassificationTrainer",
}


def keys(project: str, channels: int) -> list[str]:
    if project == "classification":
        return ["INPUT.CHANNELS", f"{channels}"]
    mean, std = ([value] * channels for value in (110.0, 60.0))
    given = ["INPUT.FORMAT", FORMATS[channels], "MODEL.PIXEL_MEAN", f"{mean}", "MODEL.PIXEL_STD", f"{std}"]
    return given + (["INPUT.COLOR_JITTER", "0.2"] if project == "segmentation" else [])


@pytest.mark.usefixtures("untried", "undrawn")
@pytest.mark.parametrize(
    "project, channels",
    [
        ("segmentation", 1),
        ("classification", 1),
        pytest.param("detection", 1, marks=pytest.mark.slow),  # it reads and draws images as segmentation does
        *(pytest.param(project, 4, marks=pytest.mark.slow) for project in TRAINERS),
    ],
)
def test_images_of_other_than_three_channels(tmp_path, project, channels, clean_catalogs):
    root = make_data(tmp_path)
    for file in [*root.glob("images/*.png"), *root.glob("classes/*/*.png")]:
        with Image.open(file) as image:
            image.convert(FORMATS[channels]).save(file)
    words = [*command(project, root, f"c{channels}_{project}"), *keys(project, channels)]
    with loaded(f"projects/{project}/train_net.py") as script:
        add_config = getattr(script, f"add_{project}_config", None)
        engine.run(getattr(script, TRAINERS[project]), add_config, [*words, *PRUNING, *RUN])
        assert (root / "out/predictions.png").is_file()
        plan, state = read(root / "out/pruned.safetensors")
        assert plan.flops[1] < 0.61 * plan.flops[0]
        first = next(tensor for name, tensor in state.items() if tensor.ndim == 4)
        assert first.shape[1] == channels
        where = ["--config-file", words[3], "--size", "64", "64"]
        file, given = str(root / "out/pruned.safetensors"), words[4:]
        images = ["--images", str(root / "images")]
        for argv in (
            ["report", file, *where, *given],
            ["verify", file, *where, *images, *given],
            ["prune", *where, *images, "--criterion", "sirfp", *LINE, "-o", str(root / "p.safetensors"), *given],
        ):
            assert cli.main(argv) == 0, argv[0]


@pytest.mark.parametrize(
    "channels, drawn", [(1, (7, 7, 7)), (2, (7, 7, 7)), (3, (7, 8, 9)), (4, (7, 8, 9)), (6, (7, 8, 9))]
)
def test_drawing_takes_any_number_of_channels(channels, drawn):
    image = np.arange(7, 7 + channels, dtype=float).reshape(1, 1, channels).repeat(2, 0)
    assert as_rgb(image).tolist() == [[list(drawn)]] * 2
    assert as_rgb(image[..., 0]).tolist() == [[[7, 7, 7]]] * 2
