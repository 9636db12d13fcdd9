"""The command line: exit code 0 for success, 1 for disagreement, 2 and one line on standard error for bad input."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from typer.main import get_command

import propagate as pg
from propagate import cli, progress
from propagate.cli_commands import whole

SMALL = ["--depth", "2", "--width", "32", "--tokens", "4", "--heads", "2"]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["propagate", *arguments])
    monkeypatch.setattr(progress, "PAUSE", math.inf)  # however slow the machine is, no line of progress
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


BAD = {
    "placement": (["predict", "spanorm"], "did you mean spannorm"),
    "no placement": (["predict"], "Missing argument"),
    "option": (["predict", "spannorm", "--dept", "3"], "--depth"),
    "depth type": (["predict", "spannorm", "--depth", "x"], "--depth"),
    "depth range": (["predict", "spannorm", "--depth", "0"], "depth must be at least 1, got 0"),
    "experts": (["predict", "spannorm", "--experts", "8x2"], "experts must be COUNT:TOP_K"),
    "more chosen than there are": (["predict", "spannorm", "--experts", "2:3"], "experts.top_k must be at most 2"),
    "width": (["predict", "spannorm", "--width", "-4"], "width must be at least 1"),
    "tokens": (["predict", "spannorm", "--tokens", "0"], "tokens must be at least 1"),
    "heads": (["predict", "spannorm", "--heads", "7"], "heads must divide the width"),
    "activation": (["predict", "spannorm", "--activation", "relo"], "did you mean relu"),
    "ffn ratio": (["predict", "spannorm", "--ffn-ratio", "0"], "ffn_ratio must be positive"),
    "norm": (["predict", "spannorm", "--norm", "batch"], "norm must be one of rms, layer"),
    "logit std": (["predict", "spannorm", "--logit-std", "inf"], "logit_std must be finite"),
    "value gain": (["predict", "spannorm", "--value-gain", "-1"], "value_gain must be at least 0"),
    "attention gain": (["predict", "spannorm", "--attention-gain", "nan"], "attention_gain must be finite"),
    "ffn gain": (["predict", "spannorm", "--ffn-gain", "nan"], "ffn_gain must be finite"),
    "scaling": (["predict", "spannorm", "--scale-init", "nan"], "exponent must be finite"),
    "scaling unit": (
        ["predict", "spannorm", "--scale-init", "1", "--scale-per", "head"],
        "ScaleInit.per must be one of block, sublayer",
    ),
    "window": (["predict", "spannorm", "--window", "4"], "window must be None unless causal=True"),
    "rotary": (["predict", "spannorm", "--rope", "0"], "rope must be positive"),
    "variance": (["predict", "spannorm", "--variance", "0"], "variance must be positive"),
    "covariance": (["predict", "spannorm", "--covariance", "2"], "covariance must lie"),
    "gradient": (["predict", "spannorm", "--grad-covariance", "nan"], "grad_covariance must be finite"),
    "optimizer": (["coordcheck", "spannorm", "--optimizer", "adamw"], "--optimizer must be one of adam, sign"),
    "momentum": (["coordcheck", "spannorm", "--momentum", "0.9"], "--momentum must be left out"),
    "widths": (["coordcheck", "spannorm", "--widths", "64,x"], "--widths must be whole numbers separated by commas"),
    "one width": (["coordcheck", "spannorm", "--widths", "64"], "widths must be at least two different ones"),
    "rule": (["coordcheck", "spannorm", "--transfer", "mub"], "transfer must be one of standard"),
    "picture": (["coordcheck", "spannorm", "--plot", "x.pdf"], "--plot must end in .png or .svg"),
    "target": (["predict", "spannorm", "--out", "/no/such/folder/x.nc"], "--out"),
    "draws": (["simulate", "spannorm", *SMALL, "--draws", "1"], "draws must be at least 2"),
    "seed": (["simulate", "spannorm", *SMALL, "--seed", "-1"], "seed must be at least 0"),
    "backend": (["simulate", "spannorm", *SMALL, "--backend", "jax"], "backend must be one of"),
    "sampler": (["simulate", "spannorm", *SMALL, "--sampler", "sparse"], "sampler must be one of"),
    "weights": (["simulate", "spannorm", *SMALL, "--weights", "unifrom"], "did you mean uniform"),
    "workers": (["simulate", "spannorm", *SMALL, "--workers", "0"], "workers must be at least 1"),
    "start": (["simulate", "spannorm", *SMALL, "--covariance", "-0.9"], "covariance must lie"),
    "threshold": (["compare", "spannorm", *SMALL, "--threshold", "0"], "threshold must be a positive number"),
    "checkpoint": (["simulate", "spannorm", *SMALL, "--checkpoint", "/no/such/folder/x.npz"], "checkpoint must lie"),
    "verified placement": (["verify", "spanorm"], "did you mean spannorm"),
    "verified activation": (["verify", "spannorm", "-a", "relo"], "activation must be one of"),
    "verified heads": (["verify", "spannorm", "--heads", "7"], "heads must divide the width"),
    "verified backend": (["verify", "spannorm", "-a", "relu", *SMALL, "--backend", "jax"], "backend must be one of"),
    "verifying workers": (["verify", "spannorm", "--workers", "0"], "workers must be at least 1"),
    "verdicts": (["verify", "spannorm", "--out", "/no/such/folder/x.json"], "--out"),
    "explored placement": (["explore", "spanorm"], "did you mean spannorm"),
    "explored placements": (["explore", *"abcde"], "placements must be 1 to 4 different names"),
    "figure": (["figures", "no_such_figure"], "no_such_figure"),
    "proposition": (["prove", "no_such_proposition"], "no_such_proposition"),
    "recursion": (["recursion", "nope"], "unknown placement"),
    "recursion activation": (["recursion", "prenorm", "--activation", "nope"], "activation must be one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, monkeypatch, capsys) -> None:
    arguments, said = BAD[case]
    code, out, err = run(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert said in err


def test_predict_prints_a_table_and_json_and_writes_netcdf(monkeypatch, capsys, tmp_path) -> None:
    target = tmp_path / "moments.nc"
    code, out, _ = run(["predict", "prenorm", *SMALL, "--out", str(target)], monkeypatch, capsys)
    assert code == 0
    assert "grad_variance" in out
    _, out, _ = run(["predict", "prenorm", *SMALL, "--json"], monkeypatch, capsys)
    printed = json.loads(out)
    assert printed["block"] == [0, 1, 2]
    with xr.open_dataset(target) as stored:
        assert printed["variance"] == stored.variance.values.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["moments.nc"]  # no temporary file is left


def test_bias_is_a_column_beside_the_limit(monkeypatch, capsys) -> None:
    _, out, _ = run(["predict", "postnorm", *SMALL, "--json"], monkeypatch, capsys)
    _, biased, _ = run(["predict", "postnorm", *SMALL, "--bias", "--json"], monkeypatch, capsys)
    limit, found = json.loads(out), json.loads(biased)
    assert "grad_variance_bias" in found
    assert "grad_variance_bias" not in limit
    assert found["grad_variance"] == limit["grad_variance"]


def test_compare_exits_with_the_verdict(monkeypatch, capsys) -> None:
    arguments = ["compare", "deepnorm", *SMALL, "--width", "128", "--draws", "48", "--backend", "numpy"]
    code, out, _ = run(arguments, monkeypatch, capsys)
    assert (code, "simulation agree" in out) == (0, True)
    code, out, _ = run([*arguments, "--threshold", "0.01"], monkeypatch, capsys)
    assert (code, "simulation disagree" in out) == (1, True)
    code, out, _ = run([*arguments, "--draws", "3"], monkeypatch, capsys)
    assert (code, "simulation cannot tell" in out) == (3, True)
    assert "the smallest error that would have been rejected is" in out
    code, out, _ = run([*arguments, "--draws", "3", "--resolution", "1e9", "--json"], monkeypatch, capsys)
    assert (code, json.loads(out)["attributes"]["verdict"]) == (0, "agrees")


def test_errors_of_covariances_are_printed_as_they_are(monkeypatch, capsys) -> None:
    """In percent of what, is not to be guessed: one next to nothing would look as if it were known to a fraction."""
    _, out, _ = run(["compare", "deepnorm", *SMALL, "--draws", "8", "--backend", "numpy"], monkeypatch, capsys)
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert "%" in rows["deviation"]
    assert "%" not in rows["covariance"] + rows["grad_covariance"]


def test_verify_prints_the_matrix_and_exits_with_the_verdict(monkeypatch, capsys, tmp_path) -> None:
    which = ["verify", "deepnorm", "-a", "relu", "--mask", "bidirectional", "--backend", "numpy", "--draws", "24"]
    size = ["--depth", "2", "--width", "128", "--tokens", "4", "--heads", "1", "--out", str(tmp_path / "found.json")]
    code, out, _ = run([*which, *size], monkeypatch, capsys)
    assert (code, "2 of 2 cells agree" in out) == (0, True)
    assert "controls rejected" in out
    assert json.loads((tmp_path / "found.json").read_bytes())["summary"]["cells"] == 2
    code, out, _ = run([*which, "--logit-std", "100"], monkeypatch, capsys)
    assert (code, "refused" in out) == (1, True)


def test_an_interrupted_simulation_goes_on_from_its_checkpoint(monkeypatch, capsys, tmp_path) -> None:
    arguments = ["simulate", "prenorm", *SMALL, "--json", "--backend", "numpy"]
    kept = ["--checkpoint", str(tmp_path / "run.npz")]
    run([*arguments, *kept, "--draws", "4"], monkeypatch, capsys)
    _, resumed, _ = run([*arguments, *kept, "--draws", "8"], monkeypatch, capsys)
    _, whole, _ = run([*arguments, "--draws", "8"], monkeypatch, capsys)
    assert json.loads(resumed)["variance"] == json.loads(whole)["variance"]
    code, _, err = run([*arguments, *kept, "--draws", "8", "--seed", "9"], monkeypatch, capsys)
    assert (code, "belongs to another run" in err) == (2, True)


def test_workers_change_nothing(monkeypatch, capsys) -> None:
    arguments = ["simulate", "prenorm", *SMALL, "--json", "--backend", "numpy", "--draws", "4", "--weights", "uniform"]
    alone = run(arguments, monkeypatch, capsys)
    assert alone == run([*arguments, "--workers", "2"], monkeypatch, capsys)
    assert alone[0] == 0


def test_placements_and_recursion_print(monkeypatch, capsys) -> None:
    assert "2601.22580" in run(["placements"], monkeypatch, capsys)[1]
    assert "q' = 1" in run(["recursion", "spannorm"], monkeypatch, capsys)[1]
    assert r"\begin{aligned}" in run(["recursion", "spannorm", "--latex"], monkeypatch, capsys)[1]


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys; sys.argv = ['propagate', '--help']\n"
        "from propagate.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'scipy', 'sympy', 'xarray', 'matplotlib', 'torch', 'cupy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_that_is_listed_can_be_made_whole() -> None:
    """With options of its own, under its name, and with the help that the list of all has."""
    commands = get_command(cli.app).commands
    assert {"predict", "coordcheck", "verify"} < set(commands)
    for name, listed in commands.items():
        made = whole(name)
        assert (made.name, made.help) == (name, listed.help)
        assert not listed.params
        assert made.params or name == "placements"


def test_options_are_the_fields_of_the_dataclasses() -> None:
    """No field of a Model that a word or a number can say is left out, and its help is its documentation."""
    from propagate.cli_options import network_options, start_options

    options = {option.name: option for option in network_options()}
    without = {"mask", "scaling", "attention", "ffn", "layers"}
    assert {field.name for field in dataclasses.fields(pg.Model)} - without <= set(options)
    assert {option.name for option in start_options()} < {field.name for field in dataclasses.fields(pg.Start)}
    help_text = {name: option.annotation.__metadata__[0].help for name, option in options.items()}
    assert help_text["tokens"] == "Tokens in the sequence."
    assert all(help_text.values())
    assert (options["depth"].default, options["width"].default) == (24, pg.Model("prenorm", depth=1).width)


def test_coordcheck_names_the_matrix_and_says_so_in_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    small = ["--depth", "1", "--tokens", "4", "--heads", "2", "--widths", "16,32,64", "--steps", "1", "--draws", "4"]
    out, picture = tmp_path / "check.nc", tmp_path / "check.png"
    command = ["coordcheck", "prenorm", *small, "--transfer", "standard", "--out", str(out), "--plot", str(picture)]
    code, said, _ = run(command, monkeypatch, capsys)
    assert code == 1
    assert "The gain of attention's" in " ".join(said.split())
    assert "DEPARTS" in said
    assert picture.read_bytes()[1:4] == b"PNG"
    assert xr.load_dataset(out).attrs["verdict"] == "disagrees"
    code, said, _ = run(["coordcheck", "prenorm", *small, "--transfer", "mup", "--json"], monkeypatch, capsys)
    found = json.loads(said)
    assert code == {"agrees": 0, "cannot tell": 3}[found["attributes"]["verdict"]]
    assert found["name"][0] == "embedding"


@pytest.mark.parametrize("command", ["propagate", "propagate.cli"])
def test_the_package_runs_as_a_module(command: str) -> None:
    run = subprocess.run([sys.executable, "-m", command, "--version"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, pg.__version__), run.stderr


def test_help_says_which_extra_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Words in square brackets are styles to Rich, and vanish."""
    assert 'extra "explore".' in " ".join(run(["explore", "--help"], monkeypatch, capsys)[1].split())


@pytest.mark.parametrize("command", [["trace", "config.json"], ["train", "spannorm", "--depth", "2"]])
def test_without_torch_one_line_says_what_to_install(command: list[str]) -> None:
    code = f"import sys; sys.modules['torch'] = None; sys.argv[1:] = {command}; import propagate.cli as c; c.main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == "error: this command needs torch: pip install 'propagate[torch,text]'\n"


def test_another_module_that_is_missing_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options: object) -> None:
        raise ModuleNotFoundError(name="propagate.nowhere")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main()
