"""The command line: in this process, and as a program where pipes and signals matter."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import skclip.features
from skclip import CLIPFeatures, __version__, _cli
from skclip._backbones import DEFAULT_MODEL
from skclip._cli import DONE, FAILED, INTERRUPTED, PIPE_CLOSED, UNREADABLE, WRONG_USAGE, main
from skclip.datasets import make_picture_world
from skclip.features import open_extraction
from skclip.features._outputs import open_writer

TINY = ["--model", "skclip-tiny"]
needs_signals = pytest.mark.skipif(os.name == "nt", reason="pipes and signals as POSIX has them")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures, one of them below another folder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for i, pixels in enumerate(make_picture_world(6).images):
        Image.fromarray(pixels).save(folder / ("more" if i == 5 else "") / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    return CLIPFeatures("skclip-tiny").transform(paths(photos))


def paths(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.fixture
def feed(tmp_path, monkeypatch):
    """Put bytes on standard input."""
    with (tmp_path / "stdin").open("w+b") as file:

        def put(data):
            file.seek(0)
            file.truncate()
            file.write(data)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", file)

        yield put


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What `extract` is called with, without running it."""
    found = []

    def extract(source, out, features, **more):
        found.append(SimpleNamespace(source=source, out=out, features=features, **more))
        return SimpleNamespace(n_rows=12_345, n_columns=4, n_failed=0, folder=Path(out))

    monkeypatch.setattr(skclip.features, "extract", extract)
    return found


def run(capsys, *argv):
    """Exit code, lines of standard output, lines of standard error."""
    code = main(list(map(str, argv)))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def program(*argv):
    return [sys.executable, "-m", "skclip", *map(str, argv)]


# --- help and usage


def test_help_and_version_come_at_once_and_load_nothing():
    code = """
import json, sys, time
start = time.perf_counter()
from skclip._cli import main
assert main([{argument!r}]) == 0
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "numpy", "sklearn", "open_clip", "tqdm", "joblib") if name in sys.modules]
print(json.dumps([seconds, heavy]), file=sys.stderr)"""

    def measure(argument):
        done = subprocess.run(
            [sys.executable, "-c", code.format(argument=argument)], capture_output=True, text=True, check=True
        )
        assert "skclip" in done.stdout
        return json.loads(done.stderr)

    found = [measure(argument) for argument in ("--help", "--version", "--help")]
    assert statistics.median(seconds for seconds, _ in found) < 0.5
    assert [heavy for _, heavy in found] == [[], [], []]


@pytest.mark.parametrize("command", [[], ["extract"], ["models"], ["info"]], ids=" ".join)
def test_help_has_examples_and_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (DONE, [])
    assert max(map(len, out)) < 80
    examples = out[out.index("examples:") + 1 :]
    assert sum("skclip" in line for line in itertools.takewhile(bool, examples)) >= 3
    assert any(line.startswith("exit codes:") for line in out)


def test_help_lists_every_exit_code(capsys):
    _, out, _ = run(capsys, "--help")
    table = out[out.index("exit codes:") + 1 :]
    listed = {int(line.split()[0]) for line in table if line.split()[0].isdecimal()}
    assert listed == {DONE, FAILED, WRONG_USAGE, UNREADABLE, INTERRUPTED, PIPE_CLOSED}


def test_help_names_the_default_model(capsys):
    assert DEFAULT_MODEL in " ".join(run(capsys, "extract", "--help")[1])


def test_version(capsys):
    assert run(capsys, "--version") == (DONE, [f"skclip {__version__}"], [])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["extrct"], "extrct"),
        (["extract", "photos"], "OUT"),
        (["extract", "photos", "out", "--prec", "fp16"], "--prec"),
        (["extract", "photos", "out", "--precision", "half"], "half"),
        (["extract", "photos", "out", "--shard", "10/10"], "the last of 10 is 9/10"),
        (["extract", "photos", "out", "--shard", "three"], "I/N"),
        (["extract", "photos", "out", "--batch-size", "0"], "'0'"),
        (["extract", "photos", "out", "--rows-per-file", "10"], "--format parquet"),
        (["extract", "photos", "out", "--device", "cpu", "--devices", "all"], "not allowed"),
        (["extract", "photos", "out", "--null"], "SOURCE must be -"),
        (["extract", "-", "out", "--column", "path"], "no columns"),
        (["extract", "photos", "-", "--format", "npy", "--no-resume"], "--format and --no-resume"),
        (["extract", "photos", "out", "--model", "skclip-tny"], "'skclip-tiny'"),
        (["extract", "photos", "out", "--model", "skclip-tiny", "--device", "cuda:77"], "cuda:77"),
        (["info", "skclip-tny"], "'skclip-tiny'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_begins_nothing(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out, len(err)) == (WRONG_USAGE, [], 1)
    assert err[0].startswith("skclip: error: ")
    assert said in err[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("closed", ["stdin", "stdout"])
def test_closed_streams(closed, capsys, monkeypatch):
    monkeypatch.setattr(sys, closed, None)
    assert main(["extract", "-" if closed == "stdin" else "photos", "-"]) == WRONG_USAGE
    assert "is closed" in capsys.readouterr().err


# --- options


def test_only_what_was_given_is_passed_on(calls, capsys, tmp_path):
    assert run(capsys, "extract", "photos", tmp_path, *TINY)[0] == DONE
    (call,) = calls
    assert vars(call).keys() == {"source", "out", "features", "devices", "verbose"}
    given = call.features.get_params()
    assert given == {**CLIPFeatures().get_params(), "model": "skclip-tiny", "store": None}
    assert (call.source, call.out, call.devices, call.verbose) == ("photos", str(tmp_path), None, 0)


def test_every_option_arrives(calls, capsys, tmp_path):
    options = (
        "--model skclip-tiny-rn --column c --shard 3/10 --decode fast --no-normalize --format parquet "
        "--rows-per-file 7 --on-error raise --no-resume --device cpu --device cpu --precision float32 "
        f"--batch-size 8 --workers processes --n-workers 3 --compile --store {tmp_path}"
    )
    assert run(capsys, "extract", "table.csv", "out", *options.split())[0] == DONE
    (call,) = calls
    expected = {
        "column": "c",
        "shard": (3, 10),
        "format": "parquet",
        "rows_per_file": 7,
        "on_error": "raise",
        "resume": False,
        "devices": ["cpu", "cpu"],
    }
    assert {name: getattr(call, name) for name in expected} == expected
    expected = {
        "model": "skclip-tiny-rn",
        "decode": "fast",
        "normalize": False,
        "precision": "float32",
        "batch_size": 8,
        "workers": "processes",
        "n_workers": 3,
        "compile": True,
        "store": str(tmp_path),
    }
    parameters = call.features.get_params()
    assert {name: parameters[name] for name in expected} == expected


@pytest.mark.parametrize("options", [["--devices", "all"], ["--device", "auto"]])
def test_all_devices_are_the_default(options, calls, capsys):
    run(capsys, "extract", "photos", "out", *TINY, *options)
    assert calls[0].devices is None


def test_summary_is_for_people(calls, capsys):
    _, out, err = run(capsys, "extract", "photos", "out", *TINY)
    assert err == []
    assert len(out) == 1
    assert out[0].startswith("12 345 rows of 4 in out, ")
    assert out[0].endswith(" pictures/s")
    assert run(capsys, "extract", "photos", "out", *TINY, "--quiet") == (DONE, [], [])


def test_results_alone_reach_standard_output(monkeypatch, capsys):
    def extract(source, out, features, **more):
        print("a library talks")
        warnings.warn("a library\nwarns of https://me:secret@host/x?sig=secret", UserWarning, stacklevel=1)
        return SimpleNamespace(n_rows=1, n_columns=4, n_failed=0, folder=Path(out))

    monkeypatch.setattr(skclip.features, "extract", extract)
    code, out, err = run(capsys, "extract", "photos", "out", *TINY, "--json")
    assert code == DONE
    assert [json.loads(line)["event"] for line in out] == ["done"]
    assert err == ["a library talks", "skclip: warning: a library warns of https://***@host/x?***"]


# --- errors


def failing(monkeypatch, error):
    def extract(*args, **more):
        raise error

    monkeypatch.setattr(skclip.features, "extract", extract)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "two lines"),
        (FileNotFoundError("s3://key:secret@bucket/a?token=secret is not there"), "s3://***@bucket/a?*** is not there"),
        (ImportError("needs pip install 'skclip[remote]'"), "needs pip install 'skclip[remote]'"),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_an_error_is_one_line_without_secrets(error, line, monkeypatch, capsys):
    failing(monkeypatch, error)
    assert run(capsys, "extract", "photos", "out", *TINY) == (FAILED, [], [f"skclip: error: {line}"])


def test_a_traceback_on_request(monkeypatch, capsys):
    def lines(*options):
        failing(monkeypatch, ValueError("https://me:secret@host fails"))
        return run(capsys, "extract", "photos", "out", *TINY, *options)[2]

    err = lines("--traceback")
    monkeypatch.setenv("SKCLIP_TRACEBACK", "1")
    assert lines() == err
    assert err[0].startswith("Traceback")
    assert err[-1] == "skclip: error: https://***@host fails"
    assert sum("secret" in line for line in err) == 0


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    failing(monkeypatch, KeyboardInterrupt())
    code, out, err = run(capsys, "extract", "photos", "out", *TINY, "--shard", "0/2")
    assert (code, out, len(err)) == (INTERRUPTED, [], 1)
    assert str(Path("out", "shard-0000-of-0002")) in err[0]
    assert "the same command goes on" in err[0]
    assert "without --no-resume" in run(capsys, "extract", "photos", "out", *TINY, "--no-resume")[2][0]


def test_a_missing_source_fails(capsys, tmp_path):
    code, out, err = run(capsys, "extract", tmp_path / "nowhere", tmp_path / "out", *TINY)
    assert (code, out, len(err)) == (FAILED, [], 1)
    assert "nowhere" in err[0]


# --- into a folder


def test_a_folder_into_a_folder(photos, expected, capsys, tmp_path):
    code, out, err = run(capsys, "extract", photos, tmp_path / "out", *TINY)
    assert (code, err) == (DONE, [])
    assert out[0].startswith(f"6 rows of 128 in {tmp_path / 'out'}, ")
    np.testing.assert_allclose(open_extraction(tmp_path / "out").features, expected, atol=1e-6)

    code, out, err = run(capsys, "extract", photos, tmp_path / "out", *TINY)
    assert (code, out, err) == (DONE, [f"6 rows of 128 in {tmp_path / 'out'}"], [])


def test_unreadable_pictures_have_a_code_of_their_own(photos, capsys, tmp_path, feed):
    feed(b"missing.png\n" + paths(photos)[0].encode() + b"\n")
    code, out, err = run(capsys, "extract", "-", tmp_path / "out", *TINY, "--json")
    assert (code, err) == (UNREADABLE, [])
    done = json.loads(out[-1])
    assert {name: done[name] for name in ("event", "rows", "new", "unreadable", "columns", "out")} == {
        "event": "done",
        "rows": 2,
        "new": 2,
        "unreadable": 1,
        "columns": 128,
        "out": str(tmp_path / "out"),
    }
    assert open_extraction(tmp_path / "out").failures == [(0, "missing.png", "no such file")]


def test_a_picture_that_must_be_readable(capsys, tmp_path, feed):
    feed(b"missing.png\n")
    code, out, err = run(capsys, "extract", "-", tmp_path / "out", *TINY, "--on-error", "raise")
    assert (code, out, len(err)) == (FAILED, [], 1)
    assert "missing.png" in err[0]


def test_progress_as_json_lines(capsys, tmp_path, feed, monkeypatch):
    monkeypatch.setattr(_cli, "_SECONDS_BETWEEN_EVENTS", 0.0)
    names = [f"{i}.png" for i in range(600)]
    feed("\n".join(names).encode())
    code, out, _ = run(capsys, "extract", "-", tmp_path / "out", *TINY, "--json")
    events = [json.loads(line) for line in out]
    assert code == UNREADABLE
    assert [event["event"] for event in events] == ["progress"] * (len(events) - 1) + ["done"]
    assert len(events) > 2
    rows = [event["rows"] for event in events]
    assert rows == sorted(rows)
    assert rows[-1] == events[-1]["unreadable"] == 600
    assert open_extraction(tmp_path / "out").names == names


def test_log_messages_on_request(photos, capsys, tmp_path):
    _, _, err = run(capsys, "extract", photos, tmp_path / "out", *TINY, "-v")
    assert len(err) == 1
    assert err[0].startswith("skclip: skclip-tiny on ")
    assert "pictures/s" in err[0]
    assert not logging.getLogger("skclip").handlers


def test_shards_stand_beside_each_other(photos, expected, capsys, tmp_path):
    run(capsys, "extract", photos, tmp_path, *TINY, "--shard", "1/2")
    code, out, _ = run(capsys, "info", tmp_path, "--json")
    facts = json.loads(out[0])
    assert (code, facts["finished"], facts["rows"], facts["not_begun"]) == (DONE, False, 3, [0])
    run(capsys, "extract", photos, tmp_path, *TINY, "--shard", "0/2")
    facts = json.loads(run(capsys, "info", tmp_path, "--json")[1][0])
    assert (facts["finished"], facts["rows"], facts["parts"], facts["not_begun"]) == (True, 6, 2, [])
    odd = open_extraction(tmp_path / "shard-0001-of-0002").features
    np.testing.assert_allclose(odd, expected[1::2], atol=1e-6)


# --- names on standard input


@pytest.mark.parametrize(
    ("data", "options", "names"),
    [
        (b"a.png\nb c.png\n", [], ["a.png", "b c.png"]),
        (b"a.png\r\n\r\nb.png", [], ["a.png", "b.png"]),
        (b"a\nb.png\0c.png", ["--null"], ["a\nb.png", "c.png"]),
        (b"a.png\r\0b.png\r", ["--null"], ["a.png\r", "b.png\r"]),
        ("grün.png\n".encode(), [], ["grün.png"]),
    ],
)
def test_names_on_standard_input(data, options, names, calls, capsys, feed):
    def extract(source, out, features, **more):
        assert list(source) == names
        return SimpleNamespace(n_rows=1, n_columns=4, n_failed=0, folder=Path(out))

    skclip.features.extract = extract  # undone by `calls`
    feed(data)
    assert run(capsys, "extract", "-", "out", *TINY, *options)[0] == DONE


@pytest.mark.skipif(os.name == "nt", reason="names are bytes elsewhere")
def test_names_that_are_no_unicode(capsys, tmp_path, feed):
    feed(b"caf\xe9.png\n")
    code, _, err = run(capsys, "extract", "-", tmp_path / "out", *TINY)
    assert (code, err) == (UNREADABLE, [])
    assert os.fsencode(open_extraction(tmp_path / "out").names[0]) == b"caf\xe9.png"
    feed(b"caf\xe9.png\n")
    line = json.loads(run(capsys, "extract", "-", "-", *TINY)[1][-1])
    assert os.fsencode(line["name"]) == b"caf\xe9.png"


def test_blocks_do_not_wait_for_what_comes_late():
    late = threading.Event()

    def items():
        yield from "abcd"
        late.wait(30)
        yield "e"

    with _cli._ReadAhead(items()) as ahead:
        blocks = ahead.blocks(3)
        assert list(itertools.chain(next(blocks), next(blocks))) == list("abcd")
        late.set()
        assert list(blocks) == [["e"]]
        assert list(ahead) == []


def test_whoever_waits_is_told_that_nothing_will_come():
    never = threading.Event()

    def items():
        never.wait(30)
        yield "a"

    with _cli._ReadAhead(items()) as ahead:
        threading.Timer(0.2, ahead.stop).start()
        with pytest.raises(InterruptedError):
            next(iter(ahead))
    never.set()


def test_what_goes_wrong_in_the_source_is_raised():
    def items():
        yield "a"
        raise ValueError("the source is damaged")

    with _cli._ReadAhead(items()) as ahead:
        given = iter(ahead)
        assert next(given) == "a"
        with pytest.raises(ValueError, match="damaged"):
            next(given)


# --- onto standard output


@pytest.mark.parametrize("normalize", [True, False])
def test_lines_are_exact_and_hold_further_columns(normalize, photos, capsys, tmp_path):
    names = paths(photos)
    table = tmp_path / "table.csv"
    rows = [f"{name},{i},x" for i, name in enumerate(names)]
    table.write_text("\n".join(["path,label,error", *rows, "missing.png,9,x"]))
    options = [] if normalize else ["--no-normalize"]
    code, out, err = run(capsys, "extract", table, "-", *TINY, *options)
    assert code == UNREADABLE
    assert len(err) == 1
    assert err[0].startswith("7 rows of 128, 1 unreadable, ")
    lines = [json.loads(line) for line in out]
    assert [line["name"] for line in lines] == [*names, "missing.png"]
    assert [str(line["label"]) for line in lines] == list("0123459")
    assert {line["extra_error"] for line in lines} == {"x"}
    assert lines[-1]["features"] is None
    assert lines[-1]["error"] == "no such file"
    assert {line["error"] for line in lines[:-1]} == {None}
    encoder = CLIPFeatures("skclip-tiny", normalize=normalize, store=None)
    given = np.array([line["features"] for line in lines[:-1]], dtype=np.float32)
    np.testing.assert_allclose(given, encoder.transform(names), rtol=1e-5, atol=1e-6)


def test_nine_digits_are_exact():
    row = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 10.0 ** np.arange(-20, 20, 0.04)
    row = row.astype(np.float32)
    line = json.loads(_cli._row_line(SimpleNamespace(name="a", extra={}), row, None))
    assert (np.array(line["features"], dtype=np.float32) == row).all()


def test_events_leave_standard_output_to_the_rows(photos, capsys):
    _, out, err = run(capsys, "extract", photos, "-", *TINY, "--json")
    assert all("features" in json.loads(line) for line in out)
    assert json.loads(err[-1])["event"] == "done"


def test_output_ends_at_the_first_picture_that_must_be_readable(photos, capsys, feed):
    feed(f"{paths(photos)[0]}\nmissing.png\n".encode())
    code, out, err = run(capsys, "extract", "-", "-", *TINY, "--on-error", "raise")
    assert (code, len(out)) == (FAILED, 1)
    assert err == ["skclip: error: 'missing.png': no such file"]


@needs_signals
@pytest.mark.slow
def test_a_program_that_asks_and_waits_for_the_answer(photos):
    """Each name is answered before the next is sent; then the reader leaves."""
    command = program("extract", "-", "-", *TINY, "--quiet")
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as child:
        for name in paths(photos)[:3]:
            print(name, file=child.stdin, flush=True)
            assert json.loads(child.stdout.readline())["name"] == name
        child.stdout.close()
        print(paths(photos)[4], file=child.stdin, flush=True)
        # standard input is still open: nobody waits for it
        assert child.wait(60) == PIPE_CLOSED
        assert child.stderr.read() == ""


@pytest.mark.parametrize("argv", [["models", "tiny"], ["info"], ["extract", "photos", "out", *TINY]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(argv, calls, capsys, monkeypatch):
    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        assert main(argv) == PIPE_CLOSED
    assert capsys.readouterr().err == ""


# --- interrupted


@needs_signals
@pytest.mark.slow
def test_ctrl_c_keeps_what_was_committed(photos, capsys, tmp_path, feed):
    names = "\n".join(paths(photos) * 100)
    out = tmp_path / "out"
    command = program("extract", "-", out, *TINY, "--json")
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as child:
        child.stdin.write(names + "\n")
        child.stdin.flush()
        journal = out / "extraction.journal"
        deadline = time.monotonic() + 60
        while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        # standard input is still open: nobody waits for it
        assert child.wait(60) == INTERRUPTED
        assert child.stderr.read().startswith("skclip: interrupted; ")
    facts = json.loads(run(capsys, "info", out, "--json")[1][0])
    assert facts["finished"] is False
    assert 0 < facts["rows"] < 600

    feed(names.encode())
    last = json.loads(run(capsys, "extract", "-", out, *TINY, "--json")[1][-1])
    assert (last["rows"], last["new"]) == (600, 600 - facts["rows"])
    feed(names.encode())
    run(capsys, "extract", "-", tmp_path / "whole", *TINY)
    for name in ("features.npy", "manifest.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# --- models


def test_models_by_part_of_a_name_and_by_pattern(capsys):
    code, out, err = run(capsys, "models", "TINY")
    assert (code, err) == (DONE, [])
    assert out[0].split() == ["MODEL", "WIDTH", "PIXELS", "TOKENS", "LICENCE"]
    assert [line.split()[0] for line in out[1:]] == ["skclip-tiny", "skclip-tiny-rn"]
    assert out[1].split()[1:] == ["128", "48", "64", "bsd-3-clause"]
    assert [line.split()[0] for line in run(capsys, "models", "vit-b-32/OPEN*")[1][1:]] == ["ViT-B-32/openai"]
    assert len(run(capsys, "models")[1]) == 1 + len(skclip.list_models())


def test_models_as_json_lines(capsys):
    _, out, _ = run(capsys, "models", "ViT-B-16/*", "--json")
    found = {facts["model"]: facts for facts in map(json.loads, out)}
    assert list(found) == skclip.list_models("ViT-B-16/*")
    assert found["ViT-B-16/openai"]["architecture"] == "ViT-B-16-quickgelu"
    assert found["ViT-B-16/openai"]["image_size"] == [224, 224]


def test_no_such_model(capsys):
    code, out, err = run(capsys, "models", "nonsense")
    assert (code, out, len(err)) == (FAILED, [], 1)
    assert "'nonsense'" in err[0]


# --- info


def test_info_of_the_machine(capsys):
    code, out, err = run(capsys, "info", "--json")
    facts = json.loads(out[0])
    assert (code, len(out), err) == (DONE, 1, [])
    assert (facts["skclip"], facts["default_model"]) == (__version__, DEFAULT_MODEL)
    assert facts["numpy"] == np.__version__
    assert facts["devices"][-1]["device"] == "cpu"
    shown = run(capsys, "info")[1]
    assert shown[0].split() == ["skclip", __version__]
    assert any(line.startswith("devices ") for line in shown)


def test_info_of_a_model(capsys):
    facts = json.loads(run(capsys, "info", "skclip-tiny", "--json")[1][0])
    module = CLIPFeatures("skclip-tiny").load_backbone().module
    assert facts["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert (facts["dim"], facts["image_size"], facts["context_length"]) == (128, [48, 48], 64)
    assert facts["weights_bytes"] == Path(facts["weights"]).stat().st_size
    assert facts["gflop_per_picture"] > 0
    shown = dict(line.split(maxsplit=1) for line in run(capsys, "info", "skclip-tiny")[1])
    assert shown["parameters"] == f"{facts['parameters']:,}".replace(",", " ")


def test_info_of_a_model_of_the_hub(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    facts = json.loads(run(capsys, "info", "ViT-B-32/laion2b_s34b_b79k", "--json")[1][0])
    assert (facts["parameters"], facts["license"]) == (151_277_313, "MIT")
    assert (facts["weights"], facts["weights_bytes"]) == (None, None)
    assert not list(tmp_path.iterdir())

    repository = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    weights = repository / "snapshots" / "0" / "open_clip_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1234")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    facts = json.loads(run(capsys, "info", "ViT-B-32/laion2b_s34b_b79k", "--json")[1][0])
    assert (facts["weights"], facts["weights_bytes"]) == (str(weights), 4)


def test_info_of_an_extraction_that_is_not_finished(capsys, tmp_path):
    with open_writer(tmp_path, n_columns=2, settings={"model": "skclip-tiny"}) as writer:
        writer.write(["a", "b"], np.array([[0.6, 0.8], [np.nan, np.nan]], dtype=np.float32), [(1, "is no picture")])
    facts = json.loads(run(capsys, "info", tmp_path, "--json")[1][0])
    assert (facts["finished"], facts["rows"], facts["unreadable"], facts["columns"]) == (False, 2, 1, 2)
    with open_writer(tmp_path, n_columns=2, settings={"model": "skclip-tiny"}) as writer:
        writer.skip(["a", "b"])
        writer.finish()
    shown = run(capsys, "info", tmp_path)[1]
    assert ["finished", "yes"] in [line.split() for line in shown]
    assert any("model: skclip-tiny" in line for line in shown)


def test_info_of_some_folder(capsys, tmp_path):
    code, _, err = run(capsys, "info", tmp_path)
    assert code == FAILED
    assert "no extraction" in err[0]
