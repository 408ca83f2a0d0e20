"""Every mistake in a config is one line that names the key, the value and what would be right."""

import argparse

import pytest
from detectron2.config import get_cfg

from sirfp.commands.arguments import add_model
from sirfp.config import load_config, register_data
from sirfp.config.checks import validate
from sirfp.config.values import leaves
from sirfp.errors import InputError
from sirfp.files.config_files import config_files
from sirfp.training.launch import argument_parser


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
        ("SIRFP.KEEP_FLOPS", "50", "SIRFP.KEEP_FLOPS must lie in (0, 1], got 50.0"),
        ("SIRFP.KEEP_FLOPS", "half", "SIRFP.KEEP_FLOPS takes a value of type float; got half of type str"),
        ("SIRFP.HOOKS", "[Report]", "takes a value of type list, here \"['Report']\"; got ["),
        ("INPUT.MIN_SIZE_TRAIN", "many", "takes a value of type tuple, here \"('many',)\", with the comma; got"),
        ("SIRFP.EMA", "1.0", "[0, 1), got 1.0"),
        ("SIRFP.MIN_KEEP", "-0.1", "[0, 1], got -0.1"),
        ("SIRFP.STEPS", "0", "at least 1, got 0"),
        ("SIRFP.ROUND_TO", "0", "at least 1, got 0"),
        ("SIRFP.TRIAL_DEVICE", "gpu", "SIRFP.TRIAL_DEVICE 'gpu': there is no such device here"),
        ("SIRFP.RECOVER_ITERS", "-1", "at least 0, got -1"),
        ("SIRFP.IMPORTANCE", "tailor", "must be taylor or dcfp, got 'tailor' (did you mean taylor"),
        ("SIRFP.SPARSITY.WEIGHT", "-1.0", "SIRFP.SPARSITY.WEIGHT must be at least 0"),
        ("SIRFP.HOOKS", "['SlimmingPenalty', 'Accumulate']", "Accumulate must come before SlimmingPenalty"),
        ("SOLVER.MAX_ITER", "0", "SOLVER.MAX_ITER must be at least 1"),
        ("SOLVER.BASE_LR", "0.0", "SOLVER.BASE_LR must be positive"),
        ("DATASETS.TRAIN", "('camvid_sem_seg_trian',)", "did you mean camvid_sem_seg_train"),
        ("DATASETS.TEST", "('quite_else',)", "DATASETS.TEST: there is no data set 'quite_else'"),
        ("DATASETS.TRAIN", "('folder_train',)", "set DATASETS.FOLDER.CLASSES"),
        ("SIRFP.KEEP_FLOP", "0.4", "did you mean SIRFP.KEEP_FLOPS or SIRFP.KEEP_PARAMS or SIRFP.KEEP_LATENCY?"),
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
    assert "Report must come before" in late


def test_whole_numbers_are_floats_where_a_key_wants_one(tmp_path):
    assert load_config("", ["SIRFP.KEEP_FLOPS", "1", "SOLVER.MAX_ITER", "7"]).SIRFP.KEEP_FLOPS == 1.0
    (tmp_path / "net.yaml").write_text("SOLVER: {BASE_LR: 1}\n")
    with pytest.raises(InputError, match="SOLVER.BASE_LR takes a value of type float; write 1.0 for 1"):
        load_config(tmp_path / "net.yaml")


@pytest.mark.parametrize("late", [["--resume"], ["--eval-only", "MODEL.WEIGHTS", "small.safetensors"]])
def test_an_option_after_the_pairs_says_where_it_belongs(late):
    assert f"give {late[0]} before the first KEY VALUE pair, which is SEED 3" in wrong("SEED", "3", *late)


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
        ("_BASE_: base.yaml\nSEED: {A: 1}", "SEED holds keys"),
        ("just words", "own.yaml"),
    ],
)
def test_a_broken_file(tmp_path, text, says):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_has_neighbours(tmp_path):
    (tmp_path / "camvid.yaml").write_text("VERSION: 2\n")
    with pytest.raises(InputError, match=r"there is no config file .*camvd.yaml .did you mean camvid.yaml"):
        load_config(tmp_path / "camvd.yaml")


RECIPE, CRITERION = "SIRFP: {CRITERION: sirfp, KEEP_FLOPS: 0.4}\n", "SIRFP: {CRITERION: taylor}\n"


def with_model() -> argparse.ArgumentParser:
    """A parser like those of the subcommands of `sirfp`."""
    parser = argparse.ArgumentParser()
    add_model(parser)
    return parser


@pytest.mark.parametrize("version", ["", "VERSION: 1\n", "VERSION: 2\n"])
def test_bases_are_read_as_detectron2_reads_them(tmp_path, version):
    (tmp_path / "far").mkdir()
    texts = {
        "far/a.yaml": "SOLVER:\n  MAX_ITER: 3\n  STEPS: (1,)\nMODEL: {PIXEL_STD: [1., 2., 3.]}\n",
        "far/b.yaml": f"_BASE_: a.yaml\nSOLVER: {{MAX_ITER: 4}}\n{version}",
        "c.yaml": "SOLVER: {MAX_ITER: 5, BASE_LR: 0.5}\n",
        "own.yaml": f"_BASE_: [far/b.yaml, {tmp_path}/c.yaml]\nSOLVER: {{BASE_LR: 0.25}}\nSEED: 7\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    wanted = get_cfg()
    wanted.merge_from_file(str(tmp_path / "own.yaml"))
    cfg = load_config(tmp_path / "own.yaml")
    ours, theirs = changed(cfg, load_config("")), changed(wanted, get_cfg())
    assert ours.pop("OUTPUT_DIR") == "output/own" and ours == theirs and set(ours) == {*KEYS_OF_BASES}
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SEED) == (5, 0.25, (1,), 7)


KEYS_OF_BASES = "SOLVER.MAX_ITER SOLVER.STEPS MODEL.PIXEL_STD SOLVER.BASE_LR SEED".split()


def changed(cfg, defaults):
    """The keys of a config that have another value than the defaults, and their values."""
    usual = dict(leaves(defaults))
    return {key: value for key, value in leaves(cfg) if usual[key] != value}


@pytest.fixture
def layers(tmp_path):
    """Config files like those of a project."""
    (tmp_path / "configs/city").mkdir(parents=True)
    texts = {"configs/city/net.yaml": "VERSION: 2\n", "own.yaml": "VERSION: 2\n", "city.yaml": RECIPE}
    texts |= {"taylor.yaml": CRITERION, "longer.yaml": "SOLVER: {MAX_ITER: 7}\n"}
    texts |= {"elsewhere.yaml": "OUTPUT_DIR: output/elsewhere\n", "as_usual.yaml": "OUTPUT_DIR: ./output\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return lambda names, opts=(): load_config([tmp_path / f"{name}.yaml" for name in names.split()], opts)


def test_a_file_is_laid_over_those_before_it(layers):
    cfg = layers("configs/city/net city taylor longer", ["SOLVER.MAX_ITER", "9"])
    assert (cfg.SIRFP.CRITERION, cfg.SIRFP.KEEP_FLOPS, cfg.SOLVER.MAX_ITER) == ("taylor", 0.4, 9)
    assert layers("longer city") == layers("longer city taylor", ["SIRFP.CRITERION", "sirfp"])


@pytest.mark.parametrize(
    ("names", "opts", "folder"),
    [
        ("configs/city/net", "", "city_net"),
        ("own", "", "own"),
        ("configs/city/net city", "", "city_net_sirfp_keep40"),
        ("configs/city/net city", "SIRFP.KEEP_FLOPS 0.4", "city_net_sirfp_keep40"),
        ("configs/city/net city", "SIRFP.KEEP_FLOPS 0.29", "city_net_sirfp_keep29"),
        ("configs/city/net city taylor", "SIRFP.KEEP_FLOPS 0.125", "city_net_taylor_keep12.5"),
        ("configs/city/net city", "SIRFP.CRITERION taylor SIRFP.KEEP_FLOPS 0.125", "city_net_taylor_keep12.5"),
        ("configs/city/net city longer", "", "city_net_longer_sirfp_keep40"),
        ("configs/city/net", "SIRFP.KEEP_PARAMS 0.5", "city_net_keep50_params"),
        ("configs/city/net", "SIRFP.KEEP_LATENCY 0.5 SOLVER.MAX_ITER 3", "city_net_keep50_latency"),
        ("city", "", "city"),
        ("city", "SIRFP.KEEP_FLOPS 0.3", "city_keep30"),
        ("city elsewhere", "SIRFP.KEEP_FLOPS 0.3", "elsewhere"),
        ("city elsewhere", "OUTPUT_DIR output/here", "here"),
    ],
)
def test_a_run_without_an_output_folder_has_one_of_its_own(layers, names, opts, folder):
    assert f"output/{folder}" == layers(names, opts.split()).OUTPUT_DIR


def test_the_usual_output_folder_can_still_be_asked_for(layers):
    assert layers("as_usual").OUTPUT_DIR == load_config("").OUTPUT_DIR == "./output"


@pytest.mark.parametrize("parser", [argument_parser(), with_model()])
def test_the_command_line_takes_several_config_files(parser):
    words = [word for name in "abc" for word in ("--config-file", name)]
    assert config_files(parser.parse_args(words)) == ["a", "b", "c"]
    assert config_files(parser.parse_args(["--config-file", "a"])) == ["a"]
    assert config_files(argument_parser().parse_args([])) == [""]


def test_options_of_a_run_may_follow_the_pairs():
    words = "--config-file a SEED 3 --resume --config-file b TEST.FPS True SEED 4 --num-gpus 0".split()
    args = argument_parser().parse_args(words)
    assert args.resume and args.num_gpus == 0 and config_files(args) == ["a", "b"]
    assert args.opts == ["SEED", "3", "TEST.FPS", "True", "SEED", "4"]


def test_an_unknown_option_after_the_pairs_is_named(capsys):
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["SEED", "3", "--rseume", "SOLVER.MAX_ITER", "4"])
    assert "--rseume" in capsys.readouterr().err


def test_a_broken_layer_is_named(layers, tmp_path):
    (tmp_path / "broken.yaml").write_text("SIRFP: {HOKS: []}\n")
    with pytest.raises(InputError, match="did you mean SIRFP.HOOKS"):
        layers("own broken")
    with pytest.raises(InputError, match="no config file .*tailor.yaml .did you mean taylor.yaml"):
        layers("own tailor")


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["DATASETS.COCO.TRAIN_ANNOTATIONS", "a.json"], r"DATASETS.COCO is filled in.*\('own_train',\).*'own_test'"),
        (["DATASETS.FOLDER.TRAIN_IMAGES", "a", "DATASETS.FOLDER.NAME", "mine"], r"DATASETS.FOLDER.*\('mine_train',\)"),
        (["DATASETS.IMAGES.TRAIN", "a"], r"DATASETS.IMAGES is filled in, but DATASETS.TRAIN names camvid_sem_seg"),
    ],
)
def test_a_set_of_ones_own_that_no_key_names_is_said(opts, told, clean_catalogs):
    from sirfp.config.data import register_data

    cfg = load_config("", [*opts, "DATASETS.TRAIN", "('camvid_sem_seg_train',)"])
    with pytest.raises(InputError, match=told):
        register_data(cfg)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["MODEL.TIMM.OPTIONS", "{'drop_path_rate': 0.1, 'act_layer': 'silu'}"], [("drop_path_rate", 0.1)]),
        (["MODEL.TIMM.OPTIONS.drop_path_rate", "0.1"], [("drop_path_rate", 0.1)]),
    ],
)
def test_new_keys_of_an_open_part_are_taken_from_the_command_line(options, expected):
    found = load_config("", options).MODEL.TIMM.OPTIONS
    assert {**dict(expected), **found} == found


def test_options_of_a_criterion_may_be_one_mapping():
    assert load_config("", ["SIRFP.OPTIONS", "{'ema': 0.5}"]).SIRFP.OPTIONS == {"EMA": 0.5}
    with pytest.raises(InputError, match="MODEL.TIMM.OPTIONS takes a mapping, such as"):
        load_config("", ["MODEL.TIMM.OPTIONS", "drop_path_rate"])
    with pytest.raises(InputError, match="there is no config key MODEL.TIMM.OPTION.a"):
        load_config("", ["MODEL.TIMM.OPTION.a", "1"])
