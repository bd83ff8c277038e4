"""The results folder that an argument names: a path, a study file, a study's name, or by default the newest."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("scalade-results")  # in the current folder: where `run` writes by default


def locate(named: Path | None) -> Path:
    """The results folder, run folder or exported file; without one the results written to last in ./scalade-results.

    Raises
    ------
    ValueError: there is nothing, or the study file is wrong
    """
    if named is None:
        folders = sorted(
            (folder for folder in (RESULTS, *_folders(RESULTS)) if (folder / "runs").is_dir()), key=_written
        )
        if not folders:
            raise ValueError(f"no results in ./{RESULTS}: name a folder, or let `scalade run STUDY.toml` write some")
        return folders[-1]
    if named.suffix == ".toml" and named.is_file():
        from ..launch.study.study import load_study

        return load_study(named).results
    if not named.exists() and (RESULTS / named / "runs").is_dir():
        return RESULTS / named
    return named


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []


def _written(results: Path) -> tuple[float, str]:
    """When an attempt was last added to any run, or a part to the table; the name where two are equal."""
    places = (*_folders(results / "runs"), *_folders(results / "table"))
    return max((entry.stat().st_mtime for entry in places), default=0.0), results.name
