"""Reads config files, whose keys override the defaults; explains errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from ..errors import InputError, near, suggested
from ..files.nearby import nearby
from ..files.yaml_files import read_config_file
from .keys import add_sirfp_config
from .layers import Pruning, output_folder
from .options import make_room, name_in_capitals, prepare
from .projects import CHECKOUT, AddConfig, add_keys, name_of, project_by_keys, project_in
from .values import leaves

_WRITTEN = {"list": "\"['a', 'b']\" or \"[1, 2]\"", "tuple": '"(\'a\',)" or "(1, 2)"'}
"""{type: how its values are written on a command line}."""
_MISMATCH = r"<class '(\w+)'> vs\. <class '(\w+)'>\) with values \(.* vs\. (.*)\) for config key: ([\w.]+)"


def pairs(opts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the options as (key, value) pairs.

    Raises:
        InputError: the number of words is odd, or a key is an option such as --resume.
    """
    late = [word for word in opts[::2] if word.startswith("--")]
    if late:
        raise InputError(f"give {late[0]} before the first KEY VALUE pair, which is {' '.join(opts[:2])}")
    if len(opts) % 2:
        raise InputError(f"options are KEY VALUE pairs, got {len(opts)} words; the last one is {opts[-1]!r}")
    return list(zip(opts[::2], opts[1::2], strict=True))


def config_file(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a config file.

    Raises:
        InputError: the file does not exist; the message names files with similar names.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no config file {path}{_elsewhere(path) or nearby(path, ['.yaml', '.py'])}")
    return Path(path)


def _elsewhere(path: str | os.PathLike[str]) -> str:
    """Suggests the path of a config that is named as in Detectron2's model zoo, or from within a project."""
    import detectron2

    folders = [Path(detectron2.__file__).parent / "model_zoo/configs", *sorted(CHECKOUT.glob("*/configs"))]
    return suggested([str(folder / path) for folder in folders if os.path.isfile(folder / path)][:3])


def _of_the_zoo(path: str | os.PathLike[str]) -> bool:
    """Returns True if a config belongs to the installed Detectron2; some of its configs compute values in Python."""
    import detectron2

    return Path(path).resolve().is_relative_to(Path(detectron2.__file__).resolve().parent)


_WRONG = (KeyError, ValueError, TypeError, AttributeError, AssertionError, OSError, RecursionError)


def load_config(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    opts: Sequence[str] = (),
    add_config: AddConfig | None = None,
) -> CfgNode:
    """Reads config files, whose keys override the defaults of Detectron2 and sirfp.

    Args:
        path: a YAML file, which may name a `_BASE_`; or "" for the defaults. Or several files, e.g. a dense network, a
            pruning recipe and a criterion: each later file overrides keys of the earlier ones.
        opts: KEY, VALUE, KEY, VALUE, ...; they override the files.
        add_config: a function that adds keys besides those of the config's PROJECT (`sirfp.config.projects`), or None.

    Returns:
        The config. If a file is given but OUTPUT_DIR is not, OUTPUT_DIR is set to a name made of the files' names,
        the criterion and the budget (`sirfp.config.layers.output_folder`).

    Raises:
        InputError: a file is missing or not valid YAML, its project or a key is unknown, or a value has a wrong type.
    """
    cfg = get_cfg()
    usual = cfg.OUTPUT_DIR
    pairs(opts)  # raises an error for a key without a value
    files = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    stages: list[Pruning] = []
    file = files[0]
    try:
        contents = []
        for file in files:
            contents.append(_content(file) if file else {})
        add_sirfp_config(cfg)
        project = project_in(contents, opts)
        if not project and not name_of(add_config):
            project = project_by_keys(contents, cfg, add_config)
        add_keys(cfg, project, add_config)
        cfg.PROJECT = project or name_of(add_config)
        if files[0] and usual == cfg.OUTPUT_DIR:
            cfg.OUTPUT_DIR = ""
        defaults = dict(leaves(cfg))
        for file, content in zip(files, contents, strict=True):
            if not stages and file:
                _merge_first(cfg, file, content)
                name_in_capitals(cfg)
            else:
                _override(cfg, content)
            stages.append(Pruning.of(cfg))
        cfg.merge_from_list(_with_points(cfg, prepare(cfg, list(opts))))
    except InputError:
        raise
    except (*_WRONG, yaml.YAMLError) as error:
        raise InputError(_explain(error, cfg, file)) from error
    for key, value in leaves(cfg):
        if value is None and defaults.get(key) is not None:
            raise InputError(f"config key {key} has no value; set one, e.g. its default {defaults[key]!r:.80}")
    if cfg.OUTPUT_DIR == "" and files[0]:
        cfg.OUTPUT_DIR = output_folder(files, [*stages, Pruning.of(cfg)])
    return cfg


def _content(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the content of a config file with its bases, after checking all of these files."""
    if config_file(file).suffix == ".py":
        raise InputError(
            f"{file} is a lazy config, a program: training runs take .yaml files; the command sirfp and your own code "
            "take it too"
        )
    if _of_the_zoo(config_file(file)):
        return CfgNode.load_yaml_with_base(str(file), allow_unsafe=True) or {}
    return read_config_file(file)


def _merge_first(cfg: CfgNode, file: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Overrides keys of a config by those of a file, which may be of an older VERSION."""
    if content.get("VERSION") == cfg.VERSION:
        cfg.merge_from_other_cfg(CfgNode(content))
    else:
        cfg.merge_from_file(str(file), allow_unsafe=_of_the_zoo(file))  # reads it again, and finds out its VERSION


def _override(cfg: CfgNode, content: dict[str, Any]) -> None:
    """Overrides keys of a config by those of a further file, which needs no VERSION."""
    over = CfgNode(content)
    name_in_capitals(over)
    make_room(cfg, [key for key, _ in leaves(over)])
    cfg.merge_from_other_cfg(over)


def _with_points(cfg: CfgNode, opts: list[str]) -> list[str]:
    """Writes whole numbers for keys that hold a float with a point, since yacs refuses 1 for 1.0."""
    floats = {key for key, value in leaves(cfg) if isinstance(value, float)}
    values = [
        f"{value}.0" if key in floats and re.fullmatch(r"[+-]?\d+", value) else value
        for key, value in zip(opts[::2], opts[1::2], strict=True)
    ]
    return [word for pair in zip(opts[::2], values, strict=True) for word in pair]


def input_size(cfg: CfgNode) -> tuple[int, int]:
    """Returns height and width of the image for counting FLOPs and measuring latency: SIRFP.INPUT_SIZE, else INPUT's.

    Raises:
        InputError: the config contains no image size.
    """
    crop, side = cfg.INPUT.CROP, cfg.INPUT.MIN_SIZE_TEST
    crops = crop.SIZE if crop.ENABLED and crop.TYPE == "absolute" else (0, 0)
    for height, width in (cfg.SIRFP.INPUT_SIZE, crops, (side, side), cfg.INPUT.get("TRAIN_SIZE", (0, 0))):
        if height and width:
            return int(height), int(width)
    raise InputError("the config contains no image size; set SIRFP.INPUT_SIZE, or give --size HEIGHT WIDTH")


def _explain(error: Exception, cfg: CfgNode, path: str | os.PathLike[str]) -> str:
    """Returns a message of one line for an error of yacs, PyYAML or the file system."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if unknown:
        key = unknown[1]
        known = [key for key, _ in leaves(cfg)]
        hint = near(key, known) or _same_tail(key, known)
        ours = cfg.PROJECT or key.count(".") > 1 or (hint and key.startswith("SIRFP."))
        own = "" if ours else "; keys of a project need PROJECT in the config"
        return f"there is no config key {key}{hint}{own}"
    mismatch = re.search(_MISMATCH, text)
    if mismatch:
        wanted, got, value, key = mismatch.groups()
        example = f", such as {_WRITTEN[wanted]}" if wanted in _WRITTEN else ""
        if wanted == "tuple" and got in ("str", "int", "float"):
            example = f', here "({repr(value) if got == "str" else value},)", with the comma'
        if wanted == "list" and got == "str":
            example = f', here "{[part.strip() for part in value.strip("[]()").split(",")]}"'
        percent = re.fullmatch(r"(\d+(\.\d+)?)%", value)
        if wanted == "float" and percent:
            return f"config key {key} takes a number; for {value} write {float(percent[1]) / 100:g}"
        if (wanted, got) == ("float", "int"):
            return f"config key {key} takes a value of type float; write {value}.0 for {value}"
        return f"config key {key} takes a value of type {wanted}{example}; got {value} of type {got}"
    if isinstance(error, OSError):
        return f"config file {error.filename or path}: {error.strerror or text}"
    if isinstance(error, yaml.YAMLError):
        plain = "; only plain values are allowed, no Python objects" if "tag:yaml.org,2002:python" in text else ""
        return f"config file {path} is no valid YAML: {text}{plain}"
    return f"config {path or 'options'}: {text}"


def _same_tail(key: str, known: Sequence[str]) -> str:
    tail = key.rpartition(".")[2]
    found = [name for name in known if name.rpartition(".")[2] == tail]
    return suggested(found[:3])
