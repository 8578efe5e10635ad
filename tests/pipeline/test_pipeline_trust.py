"""A stranger's pipeline: no code without a word, nothing replaced or written elsewhere, nothing deleted that is not its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from invsolve import Pipeline, UserError
from invsolve.pipeline import StepFailed
from tests.support.pipelines import TEXT, write

PLAIN = TEXT.replace('plugins = ["./slow.py"]\n', "").replace(
    'prior = "slow"\nstrategy = "dds"\nset = {steps = "${steps}"}\nsamples = 2', 'strategy = "linear"'
)
Cli = Callable[..., tuple[int, str, str]]


def plain(folder: Path, to: str = "out/${branch}.json", head: str = "") -> Path:
    return write(folder, head + PLAIN.replace("out/${branch}.json", to))


def test_prune_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    path = plain(tmp_path)
    Pipeline.load(path).run()
    work = tmp_path / "p_runs"
    thesis = work / "thesis-0123456789ab"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years")
    claimed = work / "claimed-0123456789ac"
    claimed.mkdir()
    (claimed / ".invsolve-job").write_text("ffffffffffff")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".invsolve-job").write_text("0123456789ad")
    (work / "link-0123456789ad").symlink_to(tmp_path / "elsewhere")
    Pipeline.load(path, {"variables.views": 7}).run()
    removed = Pipeline.load(path).prune()
    assert sorted(p.name.split("-")[0] for p in removed) == ["recon", "scan", "scores"]
    assert (thesis / "chapter.tex").read_text() == "years"
    assert (claimed / ".invsolve-job").exists()
    assert (tmp_path / "elsewhere" / ".invsolve-job").exists()


@pytest.mark.parametrize("option", ["--dry-run", "--points", "--prune", "--keep-going"])
def test_a_plugin_that_a_pipeline_names_does_not_run_unasked(option: str, tmp_path: Path, cli: Cli) -> None:
    path = plain(tmp_path, head='plugins = ["./own.py"]\n')
    plugin = "import invsolve\n\n@invsolve.hookimpl\ndef invsolve_priors():\n    return {}\n"
    (tmp_path / "own.py").write_text(f"{plugin}open({str(tmp_path / 'ran')!r}, 'w')\n")
    code, _, err = cli("run", path, option)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert f"{tmp_path}/own.py" in err
    assert "--trust" in err
    assert not (tmp_path / "ran").exists()
    word = ("--trust",) if option == "--points" else ("--plugin", tmp_path / "own.py")
    code, _, err = cli("run", path, "--points", *word)
    assert code == 0, err
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("to", ["../stolen.json", "ABSOLUTE/stolen.json", "link/stolen.json", "~/stolen.json"])
def test_what_is_not_trusted_writes_in_its_own_folder(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "away").mkdir()
    path = plain(tmp_path / "own", to.replace("ABSOLUTE", str(tmp_path / "away")))
    (tmp_path / "own" / "link").symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match=r"'scores': to = .*outside of the pipeline's folder.*--trust"):
        Pipeline.load(path)
    Pipeline.load(path, trust=True).run()
    assert len(list(tmp_path.rglob("stolen.json"))) == 1


def test_the_work_folder_and_schedulers_need_trust_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"work = .*outside"):
        Pipeline.load(plain(tmp_path / "a", head='work = "../there"\n'))
    path = plain(tmp_path / "b")
    with pytest.raises(UserError, match=r"step 'recon': scheduler = .*--trust"):
        Pipeline.load(path, {"recon.scheduler": "tcp://127.0.0.1:1"})


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("what", ["truth.h5", "folder/recon.h5"])
def test_to_never_replaces_an_input(what: str, trust: bool, tmp_path: Path) -> None:
    text = PLAIN.replace(
        "[steps.scores]",
        f'[steps.copy]\ntype = "export"\ninput = "recon"\nformat = "h5"\nto = "{what}"\n[steps.scores]',
    )
    path = write(tmp_path, text)
    if what != "truth.h5":
        (tmp_path / "folder").mkdir()
        path.write_text(text + '\n[steps.dark]\ntype = "load"\npath = "folder"\nlayout = "array"\n')
    before = (tmp_path / "truth.h5").read_bytes()
    with pytest.raises(UserError, match=r"step 'copy': to = .*would replace what the pipeline reads"):
        Pipeline.load(path, trust=trust).run(overwrite=True)
    assert (tmp_path / "truth.h5").read_bytes() == before


def test_to_replaces_only_what_it_wrote(tmp_path: Path, cli: Cli) -> None:
    path = plain(tmp_path, "notes.json")
    notes = tmp_path / "notes.json"
    notes.write_text("mine")
    code, _, err = cli("run", path)
    assert code == 2
    assert "notes.json: exists" in err
    assert "--overwrite" in err
    assert notes.read_text() == "mine"
    assert not list((tmp_path / "p_runs").glob("recon-*"))
    assert cli("run", path, "--overwrite")[0] == 0
    first = notes.read_text()
    assert "psnr" in json.dumps(json.loads(first))
    # What the pipeline wrote itself it renews, until somebody changes it.
    assert cli("run", path, "--set", "variables.views=9")[0] == 0
    assert notes.read_text() != first
    assert cli("run", path)[0] == 0
    assert notes.read_text() == first
    notes.write_text("mine again")
    assert cli("run", path)[0] == 2
    assert notes.read_text() == "mine again"


def test_what_appears_during_a_run_is_not_replaced(tmp_path: Path) -> None:
    path = plain(tmp_path, "notes.json")

    def meddle(event: dict[str, object]) -> None:
        if event["event"] == "start" and event["step"] == "scores":
            (tmp_path / "notes.json").write_text("mine")

    with pytest.raises(StepFailed, match=r"notes.json: exists"):
        Pipeline.load(path).run(on_event=meddle)
    assert (tmp_path / "notes.json").read_text() == "mine"
