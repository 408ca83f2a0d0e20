"""A run that is killed at any moment resumes with the same result; if it cannot resume, no file is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import traceback
import zipfile

import pytest
import tiny_run
import torch
from marks import slow_but

import sirfp.checkpoint.pruned
import sirfp.hooks.pruning
import sirfp.reporting.figures
import sirfp.session
import sirfp.training.checkpointer
from sirfp import engine
from sirfp.criteria.observer import Observer
from sirfp.errors import InputError
from sirfp.files.lock import locked
from sirfp.training import launch

pytestmark = pytest.mark.usefixtures("undrawn", "found_once")
OPTIONS = ("SIRFP.RECOVER_NORM_ITERS", "2", "SIRFP.ACCUMULATE_PERIOD", "1", "SIRFP.RECONSTRUCTION_ITERS", "2")


def run(folder, resume=False):
    """A run as in `engine.main`."""
    with engine.hold_output_folder(str(folder), resume=resume):
        trainer = tiny_run.TaskTrainer(tiny_run.config(folder, *OPTIONS))
        trainer.resume_or_load(resume=resume)
        trainer.train()


def forked(work) -> int:
    """Calls a function in a new process; returns its exit code, negative for the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with launch.one_line_errors():
            work()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(owner, name, at, before=lambda *args: None):
    """Makes a function kill its process at its `at`-th call, after calling `before` with its arguments."""
    original, calls = getattr(owner, name), [0]

    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            before(*args)
            die()
        return original(*args, **kwargs)

    setattr(owner, name, call)


def half(content, path):
    torch_save(content, path)
    os.truncate(path, path.stat().st_size // 2)


torch_save = torch.save
MOMENTS = {
    "accumulating": lambda: dying(Observer, "step", 4),
    "accumulating anew": lambda: dying(Observer, "step", 9),
    "between deciding and cutting": lambda: dying(sirfp.session, "cut_to", 1),
    "between deciding and cutting again": lambda: dying(sirfp.session, "cut_to", 2),
    "cut, no checkpoint yet": lambda: dying(engine.Trainer, "rewrap", 1),
    "recovering": lambda: dying(sirfp.hooks.pruning, "update_bn_stats", 2),
    "writing the first checkpoint": lambda: dying(torch, "save", 1, half),
    "writing a checkpoint": lambda: dying(torch, "save", 4, half),
    "before a checkpoint is renamed": lambda: dying(os, "replace", 5),
    "before it is named the last": lambda: dying(os, "replace", 6),
    "before the last is named": lambda: dying(os, "replace", 2),
    "writing the report": lambda: dying(sirfp.reporting.figures, "kept_channels", 1),
}
QUICK = [
    "accumulating anew",
    "cut, no checkpoint yet",
    "writing a checkpoint",
    "before it is named the last",
    "writing the report",
]
"""Each phase of a run, and half-written files; the others die nearby."""


def ends(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def check_same(folder, whole):
    one, other = ends(folder), ends(whole)
    assert one["plan"] == other["plan"] and (folder / "plan.json").read_text() == (whole / "plan.json").read_text()
    for name, tensor in other["model"].items():
        assert torch.equal(one["model"][name], tensor), name
    state = [end["trainer"]["_trainer"]["optimizer"]["state"] for end in (one, other)]
    torch.testing.assert_close(*state, rtol=0, atol=0)
    assert not list(folder.glob(".*")), "what was half-written is gone"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.mark.parametrize("moment", slow_but(MOMENTS, *QUICK))
def test_killed_it_goes_on_to_the_same_end(whole, tmp_path, moment):
    def killed():
        MOMENTS[moment]()
        run(tmp_path)

    assert forked(killed) == -signal.SIGKILL
    run(tmp_path, resume=True)
    check_same(tmp_path, whole)


def flipped(file):
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:  # of a tensor: what pads the archive may be anything
        tensor = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content[content.index(tensor) + len(tensor) // 2] ^= 0xFF
    file.write_bytes(content)


DAMAGE = {
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 100),
    "empty": lambda file: file.write_bytes(b""),
    "a bit flipped": flipped,
    "gone": lambda file: file.unlink(),
    "another's": lambda file: file.write_text("<html>"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was killed after four checkpoints; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("stopped")

    def killed():
        dying(engine.Trainer, "run_step", 13)
        run(folder)

    assert forked(killed) == -signal.SIGKILL
    assert (folder / "last_checkpoint").read_text() == "model_0000011.pth"
    return folder


@pytest.mark.parametrize("damage", slow_but(DAMAGE, "cut short", "a bit flipped", "gone"))
def test_a_broken_checkpoint_gives_way_to_the_one_before(whole, stopped, tmp_path, damage, caplog):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    DAMAGE[damage](tmp_path / "model_0000011.pth")
    with caplog.at_level("WARNING", logger="fvcore"):
        run(tmp_path, resume=True)
    assert "model_0000008.pth, because the later checkpoints are damaged" in caplog.text
    assert "model_0000011.pth" in caplog.text
    check_same(tmp_path, whole)


def test_without_a_whole_checkpoint_nothing_begins_anew_by_itself(tmp_path):
    (tmp_path / "model_0000002.pth").write_bytes(b"")
    with pytest.raises(InputError, match="model_0000002.pth is not a complete checkpoint"):
        run(tmp_path, resume=True)
    assert [file.name for file in tmp_path.glob("*.pth")] == ["model_0000002.pth"]


def test_an_older_file_is_no_fall_back(tmp_path):
    """After going back to an early checkpoint by hand, later checkpoints belong to an abandoned run."""
    for name in ("model_0000002.pth", "model_0000005.pth", "model_0000008.pth", "model_final.pth", "model_best.pth"):
        (tmp_path / name).touch()
    checkpointer = sirfp.training.checkpointer.Checkpointer(torch.nn.Identity(), str(tmp_path))
    for last, then in (("0000005", ["0000002"]), ("final", ["0000008", "0000005", "0000002"]), ("0000002", [])):
        (tmp_path / "last_checkpoint").write_text(f"model_{last}.pth")
        assert [file.name for file in checkpointer.resumable()] == [f"model_{name}.pth" for name in (last, *then)]


def test_a_second_run_leaves_the_first_alone(tmp_path):
    with locked(tmp_path, "training run"), pytest.raises(InputError, match=f"is running in .*process {os.getpid()}"):
        run(tmp_path)
    (tmp_path / "model_0000002.pth").write_text("days of work")
    with pytest.raises(InputError, match="holds checkpoints of an earlier run .*continue it with --resume"):
        run(tmp_path)
    assert (tmp_path / "model_0000002.pth").read_text() == "days of work"


def test_readers_of_a_killed_run_do_not_keep_its_folder(tmp_path):
    ready, told = os.pipe()

    def holder():
        with locked(tmp_path, "training run"):
            if not os.fork():  # as one that reads data
                os.write(told, f"{os.getpid()}".encode())
                signal.pause()
            reader = os.read(ready, 20).decode()
            os.write(told, f"{reader} {os.getpid()}".encode())
            die()

    assert forked(holder) == -signal.SIGKILL
    reader, holder_was = map(int, os.read(ready, 40).split())
    try:
        with locked(tmp_path, "training run") as before:
            assert before == holder_was
    finally:
        os.kill(reader, signal.SIGKILL)


def test_a_full_disk_ends_it_in_one_line_and_loses_nothing(whole, tmp_path, capfd):
    """A limit on file sizes simulates a full disk: the fourth checkpoint does not fit."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        save, calls = torch.save, [0]

        def fourth(content, path):
            calls[0] += 1
            room = 4096 if calls[0] == 4 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            try:
                save(content, path)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        torch.save = fourth
        run(tmp_path)

    assert forked(limited) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and "model_0000011.pth" in lines[0], lines
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == [f"model_000000{i}.pth" for i in (2, 5, 8)]
    run(tmp_path, resume=True)
    check_same(tmp_path, whole)


@pytest.mark.parametrize("number", launch.FULL)
def test_a_disk_that_takes_no_more_is_told_in_one_line(number, capsys):
    with pytest.raises(SystemExit) as end, launch.one_line_errors():
        raise OSError(number, os.strerror(number), "out/metrics.json")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write out/metrics.json: {os.strerror(number)}; free ")
    assert errno.EIO not in launch.FULL


def test_an_output_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to the training run's folder .*file/out: Not a directory"):
        run(tmp_path / "file" / "out")


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only for this user")
def test_a_read_only_output_folder_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write to the training run's folder .*: Permission denied"):
        run(tmp_path)
