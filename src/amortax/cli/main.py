"""Which commands are there, and which options do they take? Each hands over to a file of its own.

Only Typer is imported here: `amortax --help` answers before JAX would have started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import one_line_errors

app = typer.Typer(
    name="amortax",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would read [data] as a colour
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 FAIL (the verdict, or units not repaired), 130 interrupted.",
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are already there.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random key; equal seeds give equal answers.")]
Model = Annotated[str, typer.Option(help="The model that was trained, as FILE.py:FUNCTION.")]
PosteriorFile = Annotated[Path, typer.Argument(help="What `amortax fit` wrote, such as radon.amx.")]
NewTable = Annotated[Path, typer.Option(help="CSV or Parquet with the columns of the training table.")]
TrainingTable = Annotated[
    Path | None, typer.Option(help="The training table, to judge the globals where --data is another one.")
]
Budget = Annotated[str | None, typer.Option(help="Seconds, or exact; without it as long as it takes.")]
SimulatedUnits = Annotated[int, typer.Option(min=0, help="Units simulated for ranks and coverage; 0: none.")]
GapUnits = Annotated[int, typer.Option(min=0, help="Units refined to see what is lost where; 0: none.")]
PredictiveDraws = Annotated[int, typer.Option(min=0, help="Data sets replicated per unit; 0: none.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 for WARN too.")]


def main() -> None:
    """Runs the command that was typed."""
    app()


def _version(asked: bool) -> bool:
    if asked:
        import importlib.metadata

        typer.echo(f"amortax {importlib.metadata.version('amortax')}")
        raise typer.Exit
    return asked


@app.callback()
def amortax(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Amortized variational inference: a NumPyro model and a table in, a posterior for any new unit out."""


@app.command(epilog="\b\nExample:\n  amortax fit radon.toml --num-steps 2000 --output radon.amx")
def fit(
    job: Annotated[Path, typer.Argument(help="The job: a TOML file that names model, table and output.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the job's seed.")] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="Instead of the job's number of steps.")] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of the job's posterior file (.amx).")] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Train a posterior as a job file says, and save it.

    The job file, all keys (the tables guide, fit and output are optional):

    \b
      model = "radon_model.py:model"       # relative to the job file
      plate = "county"
      [data]
      path = "radon.csv"                   # CSV or Parquet
      unit = "county"                      # names the unit of a row
      columns = ["floor", "log_radon"]     # one value per row
      unit_columns = ["log_uranium"]       # one value per unit
      categories = { kind = ["a", "b"] }   # or kind = "found"
      [guide]                              # default: chosen from the model
      encoder = { recipe = "deep_set", width = 32 }
      family = "full"                      # also shared_family, head
      [fit]
      num_steps = 2000                     # default: until converged
      batch_size = 64
      seed = 0
      [output]
      posterior = "radon.amx"              # default: as the job, .amx

    Ctrl-C saves the best posterior so far and exits with 130.
    """  # noqa: D301 - \b is the character by which help keeps the lines that follow
    with one_line_errors(debug):
        from . import train
        from .info import describe_record

        work = train.read(job, seed=seed, num_steps=num_steps, output=output, force=force)
        posterior = train.fit(work, show=typer.echo)
        code = train.save(work, posterior)
        typer.echo(f"\n{describe_record(posterior.record)}\nsaved to {work.posterior}")
        raise typer.Exit(code)


@app.command(
    epilog="\b\nExample:\n  amortax sample radon.amx --model radon_model.py:model --data new.csv --output draws.nc"
)
def sample(
    posterior: PosteriorFile,
    model: Model,
    data: NewTable,
    output: Annotated[Path, typer.Option(help="Draws: .nc or .parquet. Summary: .csv or .parquet.")],
    num_samples: Annotated[int, typer.Option(min=1, help="Draws of every unit.")] = 1000,
    seed: Seed = 0,
    summary: Annotated[bool, typer.Option("--summary", help="Write mean, sd and quantiles instead of draws.")] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Draw from the posterior of every unit of a table.

    NetCDF (.nc) keeps named dimensions, for xarray and ArviZ. Parquet has one row for each unit and draw, with a column
    for every number; what all units share is repeated in each row. A summary has one row for each unit and number: its
    mean, sd, and 5, 50 and 95% quantiles; rows without a unit are of what all units share.
    """
    with one_line_errors(debug):
        from .answer import sample as answer

        options = {"num_samples": num_samples, "seed": seed, "as_summary": summary, "force": force}
        typer.echo(answer(posterior, model, data, output, **options))


@app.command(
    epilog="\b\nExample:\n  amortax check radon.amx --model radon_model.py:model --data radon.csv --output report.html"
)
def check(
    posterior: PosteriorFile,
    model: Model,
    data: NewTable,
    training: TrainingTable = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Draws of every unit.")] = 500,
    simulated_units: SimulatedUnits = 2000,
    gap_units: GapUnits = 32,
    predictive_draws: PredictiveDraws = 200,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="Write the report, as .html (with pictures) or .json.")] = None,
    units: Annotated[Path | None, typer.Option(help="Write the table of all units, as .csv or .parquet.")] = None,
    strict: Strict = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Judge how far each unit's answer can be trusted.

    Exits with 0 for PASS and WARN, with 3 for FAIL; the report itself is written in every case.
    """
    with one_line_errors(debug):
        from .answer import exit_code
        from .judge import check as judge

        parts = {"num_samples": num_samples, "simulated_units": simulated_units}
        parts |= {"gap_units": gap_units, "predictive_draws": predictive_draws}
        files = {"training": training, "output": output, "units_output": units}
        report = judge(posterior, model, data, seed=seed, force=force, parts=parts, **files)
        typer.echo(str(report))
        for path in (output, units):
            if path is not None:
                typer.echo(f"wrote {path}")
        raise typer.Exit(exit_code(report.verdict, strict))


@app.command(
    epilog="\b\nExample:\n  amortax refine radon.amx --model radon_model.py:model --data new.csv --output draws.nc"
)
def refine(
    posterior: PosteriorFile,
    model: Model,
    data: NewTable,
    output: Annotated[Path, typer.Option(help="Draws: .nc or .parquet.")],
    training: TrainingTable = None,
    budget: Budget = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Draws of every unit.")] = 1000,
    seed: Seed = 0,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Draw as `sample` does, and repair the units that are answered badly.

    Each unit goes only as far as it needs: encoder, own parameters, reweighting, SMC, HMC. The output has the draws
    and, for every unit, rung, verdict and seconds. With --budget exact small errors are repaired too, and what all
    units share, which needs --training where --data is another table.

    Exits with 0 where every unit is answered well at last, with 3 where some FAIL; draws are written in either case.
    """
    with one_line_errors(debug):
        from .answer import exit_code
        from .repair import refine as mend

        options = {"budget": budget, "num_samples": num_samples, "seed": seed, "force": force}
        said, verdict = mend(posterior, model, data, training=training, output=output, **options)
        typer.echo(said)
        raise typer.Exit(exit_code(verdict, strict=False))


@app.command(
    epilog="\b\nExample:\n  amortax report radon.amx --model radon_model.py:model --data new.csv --output r.html"
)
def report(
    posterior: PosteriorFile,
    model: Model,
    data: NewTable,
    output: Annotated[Path, typer.Option(help="The page, .html; it needs no other file.")],
    training: TrainingTable = None,
    refine: Annotated[bool, typer.Option("--refine", help="Repair units too, and show before and after.")] = False,
    budget: Budget = None,
    simulated_units: SimulatedUnits = 2000,
    gap_units: GapUnits = 32,
    predictive_draws: PredictiveDraws = 200,
    seed: Seed = 0,
    strict: Strict = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write a page on how far answers can be trusted, with pictures; with --refine also what repair changes.

    Exits as `check` does, by the verdict before repair.
    """
    with one_line_errors(debug):
        from .answer import exit_code
        from .judge import report as write

        parts = {"simulated_units": simulated_units, "gap_units": gap_units, "predictive_draws": predictive_draws}
        options = {"training": training, "output": output, "seed": seed, "force": force, "budget": budget}
        found, said = write(posterior, model, data, refined=refine, parts=parts, **options)
        typer.echo("\n".join([str(found), *([f"\n{said}"] if said else []), f"wrote {output}"]))
        raise typer.Exit(exit_code(found.verdict, strict))


@app.command(epilog="\b\nExample:\n  amortax info radon.amx")
def info(posterior: PosteriorFile, debug: Debug = False) -> None:
    """Show what a posterior file holds.

    Plan, training run, needed columns, versions. The model is not needed.
    """
    with one_line_errors(debug):
        from .info import describe_file

        typer.echo(describe_file(posterior))


@app.command(epilog="\b\nExample:\n  amortax demo --output radon-demo")
def demo(
    every: Annotated[bool, typer.Option("--all", help="Fit all 85 counties and compare with Stan's answer.")] = False,
    output: Annotated[
        Path, typer.Option(help="Folder for what it writes; files of an earlier demo are replaced.")
    ] = Path("amortax-demo"),
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Try it: real data, and the exact answer beside.

    Trains on radon in 75 counties of Minnesota, answers for 10 counties never seen, compares with their exact
    posterior, and repairs what the check flags; two minutes or so, most of it compiling. With
    --all it trains on all 85 and compares with Stan's answer.

    Exits with 3 where the answers are further from the exact ones than the stated limits.
    """
    with one_line_errors(debug):
        from ..demo import run
        from .answer import exit_code

        outcome = run(output, every=every, seed=seed, show=typer.echo)
        raise typer.Exit(exit_code("PASS" if outcome.passed else "FAIL", strict=False))
