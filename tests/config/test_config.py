"""Every mistake in a config is one line that names the key, the value and what would be right."""

import pytest

from sirfp.config import load_config, register_data
from sirfp.config.checks import validate
from sirfp.errors import InputError


def wrong(*opts: str) -> str:
    with pytest.raises(InputError) as caught:
        cfg = load_config("", opts)
        validate(cfg)
        register_data(cfg)
    return str(caught.value)


def test_the_defaults_are_valid():
    cfg = load_config("")
    validate(cfg)
    register_data(cfg)
    assert cfg.SIRFP.KEEP_FLOPS == 1.0 and not cfg.SIRFP.HOOKS


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("SIRFP.KEEP_FLOPS", "1.4", "SIRFP.KEEP_FLOPS must lie in (0, 1], got 1.4"),
        ("SIRFP.KEEP_FLOPS", "0.0", "(0, 1]"),
        ("SIRFP.KEEP_FLOPS", "half", "SIRFP.KEEP_FLOPS takes a value of type float, got half of type str"),
        ("SIRFP.EMA", "1.0", "[0, 1), got 1.0"),
        ("SIRFP.MIN_KEEP", "-0.1", "[0, 1], got -0.1"),
        ("SIRFP.STEPS", "0", "at least 1, got 0"),
        ("SIRFP.ROUND_TO", "0", "at least 1, got 0"),
        ("SIRFP.RECOVER_ITERS", "-1", "at least 0, got -1"),
        ("SIRFP.IMPORTANCE", "tailor", "must be taylor or dcfp, got 'tailor'; did you mean taylor"),
        ("SIRFP.SPARSITY.WEIGHT", "-1.0", "SIRFP.SPARSITY.WEIGHT must be at least 0"),
        ("SIRFP.HOOKS", "['SlimmingPenalty', 'Accumulate']", "Accumulate must stand before SlimmingPenalty"),
        ("SOLVER.MAX_ITER", "0", "SOLVER.MAX_ITER must be at least 1"),
        ("SOLVER.BASE_LR", "0.0", "SOLVER.BASE_LR must be positive"),
        ("DATASETS.TRAIN", "('camvid_sem_seg_trian',)", "did you mean camvid_sem_seg_train"),
        ("DATASETS.TEST", "('quite_else',)", "DATASETS.TEST: there is no data set 'quite_else'"),
        ("DATASETS.TRAIN", "('folder_train',)", "set DATASETS.FOLDER.CLASSES"),
        ("SIRFP.KEEP_FLOP", "0.4", "did you mean SIRFP.KEEP_FLOPS"),
        ("KEEP_FLOPS", "0.4", "did you mean SIRFP.KEEP_FLOPS"),
        ("SOLVER.MAX_ITER", "many", "SOLVER.MAX_ITER"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_right(key, value, says):
    message = wrong(key, value)
    assert says in message and "\n" not in message


def test_an_unknown_criterion_lists_the_known():
    assert "known are" in wrong("SIRFP.CRITERION", "sirpf", "SIRFP.KEEP_FLOPS", "0.5")
    assert "known are" in wrong("SIRFP.CRITERION", "sirpf")  # of a dense run too, before pruning is switched on


def test_pruning_without_its_hook_is_said():
    assert "lacks PruneSteps" in wrong("SIRFP.KEEP_FLOPS", "0.5")
    late = wrong("SIRFP.KEEP_FLOPS", "0.5", "SIRFP.HOOKS", "['PruneSteps', 'Report']")
    assert "Report must stand before" in late


def test_an_option_without_a_value():
    assert "'SOLVER.MAX_ITER'" in wrong("SOLVER.MAX_ITER")


def test_a_file_wins_over_defaults_and_options_over_the_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("SIRFP: {KEEP_FLOPS: 0.5, STEPS: 3}\n")
    cfg = load_config(file, ["SIRFP.STEPS", "4"])
    assert (cfg.SIRFP.KEEP_FLOPS, cfg.SIRFP.STEPS) == (0.5, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SIRFP: {KEEP: [", "no valid YAML"),
        ("SIRFP: {HOKS: []}", "did you mean SIRFP.HOOKS"),
        ("_BASE_: none.yaml", "none.yaml"),
        ("SIRFP: 3", "SIRFP"),
        ("just words", "own.yaml"),
    ],
)
def test_a_broken_file(tmp_path, text, says):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_has_neighbours(tmp_path):
    (tmp_path / "camvid.yaml").write_text("VERSION: 2\n")
    with pytest.raises(InputError, match=r"there is no config file .*camvd.yaml; did you mean camvid.yaml"):
        load_config(tmp_path / "camvd.yaml")
