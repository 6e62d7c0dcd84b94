"""What `slatecast evaluate` found, drawn: accuracy against variety, and who is served how well. Two SVG files.

Called by the command line. Matplotlib comes with the extra `plots`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.evaluate import Evaluation, Line
from models.judging import Variety
from models.origins import TASKS
from recsys.errors import Unavailable

# The three axes of sameness: within a list, between users; and how much of the catalogue is seen at all.
_AXES: dict[str, Callable[[Variety], float]] = {
    "mean distance of a list's items by category": lambda variety: variety.category_distance,
    "overlap between users (less is better)": lambda variety: variety.overlap,
    "coverage of the catalogue": lambda variety: variety.coverage,
}
_WIDTH_IN, _HEIGHT_IN = 4.2, 3.4  # of one panel


def check_plots() -> None:
    """Raises Unavailable, before hours of work, if nothing can be drawn."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise Unavailable("plots need matplotlib: pip install 'slatecast[plots]'") from None


def plot(result: Evaluation, folder: Path) -> list[Path]:
    """Draw frontier.svg (a row a task, a column an axis) and bands.svg; where they are. A second."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw_frontier(result, folder / "frontier.svg"), _draw_bands(result, folder / "bands.svg")]


def _draw_frontier(result: Evaluation, path: Path) -> Path:
    figure, panels = _panels(len(TASKS), len(_AXES))
    for task, row in zip(TASKS, panels, strict=True):
        lines = [line for line in result.table if line.task == task]
        for (label, read), axes in zip(_AXES.items(), row, strict=True):
            axes.set(xlabel=label, ylabel=f"NDCG@{result.k}, task {task}")
            ours = sorted((at for at in lines if _is_ours(at)), key=lambda line: read(line.variety))
            for line in lines:
                if line.accuracy is None:
                    axes.axvline(read(line.variety), color="grey", linestyle=":", label=line.model)
                elif not _is_ours(line):
                    axes.plot(read(line.variety), line.accuracy.ndcg, "o", label=line.model)
            points = [(read(line.variety), line.accuracy.ndcg) for line in ours if line.accuracy]
            if points:
                axes.plot(*zip(*points, strict=True), "k.-", label="slatecast")
            for line, point in zip(ours, points, strict=True):
                axes.annotate(line.setting.removeprefix("strength ") or "default", point, fontsize=7)
        row[-1].legend(fontsize=7)
    return _save(figure, path)


def _draw_bands(result: Evaluation, path: Path) -> Path:
    figure, (row,) = _panels(1, len(TASKS))
    for task, axes in zip(TASKS, row, strict=True):
        bands = [band for band in result.bands if band.task == task]
        names = [f"{band.items}\n{band.users} users" for band in bands]
        axes.bar(names, [band.ndcg for band in bands], width=-0.4, align="edge", label="slatecast")
        axes.bar(names, [band.ndcg_best for band in bands], width=0.4, align="edge", label="best baseline of the band")
        axes.tick_params("x", labelsize=7)
        axes.set(xlabel="distinct items that users know", ylabel=f"NDCG@{result.k}, task {task}")
    row[-1].legend(fontsize=7)
    return _save(figure, path)


def _is_ours(line: Line) -> bool:
    return line.model == "slatecast"


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure((_WIDTH_IN * columns, _HEIGHT_IN * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    # Neither date nor random names: the same figures make the same file.
    with mpl.rc_context({"svg.hashsalt": "slatecast"}):
        figure.savefig(path, metadata={"Date": None})
    return path
