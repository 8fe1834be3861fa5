"""Other tools' files in and out: `raypipe import` and `raypipe export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli_output import RunPath, console
from raypipe.errors import GridError


def import_files(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder as `raypipe export` writes it, or a file.")],
    out: Annotated[str, typer.Option(metavar="PLACE", help="Run directory (or URI), or file, to write.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the folder's grid. Repeatable.")
    ] = None,
    source: Annotated[Path | None, typer.Option(metavar="TEXT", help="Source text of a mapping JSON.")] = None,
    target: Annotated[Path | None, typer.Option(metavar="TEXT", help="Target text of a mapping JSON.")] = None,
    max_bad_lines: Annotated[int, typer.Option(metavar="N", min=0, help="Malformed dictionary lines to skip.")] = 0,
) -> None:
    """Makes other tools' files raypipe's: a folder of cluster files becomes a run, with scores and nulls.

    A mapping JSON becomes a Pharaoh file for `words.alignment`, a dictionary one that is ranked and without repetitions.

    Examples: `raypipe import conceptx --out runs/foreign --set calign.theta=0.5,0.8` or
    `raypipe import mapping.json --source en.txt --target de.txt --out en-de.align`
    """
    kind = "folder" if path.is_dir() else "mapping" if path.suffix == ".json" else "dictionary"
    flags: tuple[tuple[str, str, object], ...] = (
        ("--set", "folder", settings),
        ("--source", "mapping", source),
        ("--target", "mapping", target),
        ("--max-bad-lines", "dictionary", max_bad_lines),
    )
    for flag, other, value in flags:
        if value and other != kind:
            raise GridError(f"{flag}: is for a {other}, and {path} is read as a {kind}; leave it out")
    if kind == "folder":
        from raypipe.gridfile import setting_of
        from raypipe.importing import import_conceptx
        from raypipe.progress import Lines

        lines = Lines(console(stderr=True))
        run = import_conceptx(path, out, [setting_of(flag) for flag in settings or []], lines)
        typer.echo(f"{run.path}: {run.calign().num_rows} rows of CALIGN, {run.colap().num_rows} of COLAP")
    elif kind == "mapping":
        if source is None or target is None:
            raise GridError(f"{path}: a mapping needs its texts; give --source and --target")
        typer.echo(f"{out}: {_mapping(path, source, target, out)} links")
    else:
        typer.echo(f"{out}: {_dictionary(path, out, max_bad_lines)}")


def _mapping(path: Path, source: Path, target: Path, out: str) -> int:
    from raypipe.interop.alignments import read_mapping, write_pharaoh
    from raypipe.interop.lines import text_lines

    links = read_mapping(path, *([line.split() for line in text_lines(text)] for text in (source, target))).links
    write_pharaoh(out, links)
    return sum(map(len, links))


def _dictionary(path: Path, out: str, max_bad_lines: int) -> str:
    from raypipe.interop.dictionaries import detect_format, read_dictionary, write_dictionary

    found = read_dictionary(path, max_bad_lines=max_bad_lines)
    write_dictionary(out, found, detect_format(path))
    for line in found.bad_lines:
        typer.echo(f"skipped: {line}", err=True)
    left_out = f"{found.dropped_multiword} multi-word and {found.dropped_duplicates} repeated entries left out"
    return f"{len(found.entries)} words, {left_out}"


def export_run(
    run: RunPath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    format: Annotated[str, typer.Option(help="conceptx, the files of ConceptX and the released code.")] = "conceptx",
    points: Annotated[
        str | None,
        typer.Option(help="Also vocab.npy and points.npy of each layer: float32, or float64 as the released code."),
    ] = None,
) -> None:
    """Writes a run's clusterings and dictionaries as files that other tools and `raypipe calign`, `colap` and `import` read.

    Example: `raypipe export runs/demo --out conceptx --points float32`
    """
    from raypipe.exporting import export_conceptx

    if format != "conceptx":
        raise GridError(f"--format {format}: expected conceptx")
    if points not in (None, "float32", "float64"):
        raise GridError(f"--points {points}: expected float32 or float64")
    counts = export_conceptx(run, out, points)
    typer.echo(f"{out}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
