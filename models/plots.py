"""What `slatecast evaluate` and `slatecast tune` found and how a training went, drawn as SVG.

Accuracy against variety, and who is served how well; which cure helps against which sameness; what was tried in tuning.

Called by the command line. Matplotlib comes with the extra `plots`.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.comparing import Compared, Comparison
from models.evaluate import Evaluation, Line
from models.judging import BASKETS, Variety
from models.origins import TASKS
from models.tuning import Tried, Tuned
from recsys.errors import Unavailable, how_to_install

# The three axes of sameness: within a list, between users; and how much of the catalogue is seen at all.
_AXES: dict[str, Callable[[Variety], float]] = {
    "mean distance of a list's items by category": lambda variety: variety.category_distance,
    "overlap between users (less is better)": lambda variety: variety.overlap,
    "coverage of the catalogue": lambda variety: variety.coverage,
}
_WIDTH_IN, _HEIGHT_IN = 4.2, 3.4  # of one panel
# Of the demonstration: what is asked, of whom, and whether more of it is better.
_CURES: tuple[tuple[str, Callable[[Compared], float | None], bool], ...] = (
    ("within a list:\nmean distance by category", lambda row: row.variety.category_distance, True),
    ("within a list:\nclosest pair", lambda row: row.variety.category_minimum, True),
    ("over time:\nnew since six days ago", lambda row: row.variety.temporal_diversity, True),
    ("across users:\noverlap", lambda row: row.variety.overlap, False),
    ("across users:\nhomogenisation", lambda row: row.variety.homogenisation, False),
    ("what it costs:\nNDCG over top-k's", lambda row: row.ratio, True),
)
_CHANGE = 0.03  # of top-k's figure: a smaller one is neither cure nor harm
_BETTER, _SAME, _WORSE = "#2a9d5c", "#b8b8b8", "#d1495b"


def check_plots() -> None:
    """Raises Unavailable, before hours of work, if nothing can be drawn."""
    if not can_plot():
        raise Unavailable(f"plots need matplotlib: {how_to_install('plots')}")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], folder: Path) -> Path | None:
    """Draw curves.svg: a panel a figure, its value by step; nothing where nothing was logged."""
    if not curves:
        return None
    figure, panels = _panels(-(-len(curves) // 3), min(3, len(curves)))
    for axes in panels.flat[len(curves) :]:
        axes.set_axis_off()
    for (name, points), axes in zip(curves.items(), panels.flat, strict=False):
        axes.plot(*zip(*points, strict=True), "." if len(points) == 1 else "-")
        axes.set(xlabel="step", title=name)
    return _save(figure, folder / "curves.svg")


def plot(result: Evaluation, folder: Path) -> list[Path]:
    """Draw frontier.svg (a row a task, a column an axis) and bands.svg; where they are. A second."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw_frontier(result, folder / "frontier.svg"), _draw_bands(result, folder / "bands.svg")]


def plot_cures(result: Comparison, folder: Path) -> Path:
    """Draw diversity.svg: a row a policy, a column a sameness; green where it is cured, red where it is made worse."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = result.table[::-1]  # bars are drawn from below
    figure, (panels,) = _panels(1, len(_CURES), 2.3, 0.9 + 0.3 * len(rows))
    first = result.table[0]
    for (label, read, more), axes in zip(_CURES, panels, strict=True):
        top = read(first)
        for at, row in enumerate(rows):
            value = read(row)
            if value is None:
                continue
            axes.barh(at, value, color=_colour(value, top, more, row is first or row.name == BASKETS))
            axes.text(value, at, f" {value:.3f}", va="center", fontsize=6)
        if top is not None:
            axes.axvline(top, color="black", linewidth=0.7)
        axes.set_title(f"{label}\n({'more' if more else 'less'} is better)", fontsize=7)
        axes.set_yticks(range(len(rows)), [row.name for row in rows] if axes is panels[0] else [], fontsize=7)
        axes.tick_params("x", labelsize=6)
        axes.margins(x=0.22)
        axes.set_ylim(-0.6, len(rows) - 0.4)  # a row that has no figure keeps its place
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Which cures which sameness ({', '.join(result.days)}; {result.users} lists). Green: better than top-k by more "
        f"than {_CHANGE:.0%}, red: worse.",
        fontsize=8,
    )
    return _save(figure, folder / "diversity.svg")


def plot_tuned(result: Tuned, folder: Path) -> Path:
    """Draw tuned.svg: what every policy tried costs, against both axes it is chosen by. Raises ImportError."""
    figure, (panels,) = _panels(1, 2)
    reads: dict[str, Callable[[Tried], float]] = {
        "overlap between users (less is better)": lambda one: one.overlap,
        "mean distance of a list's items by category": lambda one: one.category_distance,
    }
    for (label, read), axes in zip(reads.items(), panels, strict=True):
        for price in sorted({one.knobs["exposure_penalty"] for one in result.tried}, key=float):
            of = [one for one in result.tried if one.knobs["exposure_penalty"] == price]
            axes.plot([read(one) for one in of], [one.ratio for one in of], "o", markersize=4, label=f"price {price}")
        chosen = next(one for one in result.tried if one.name == result.chosen)
        axes.plot(read(chosen), chosen.ratio, "o", markersize=11, fillstyle="none", color="black", label="chosen")
        axes.axhline(1 - result.lose, color="grey", linestyle=":", label="may be lost")
        axes.set(xlabel=label, ylabel=f"NDCG@{result.tuned.k} over relevance alone")
    panels[-1].legend(fontsize=7)
    return _save(figure, folder / "tuned.svg")


def _colour(value: float, top: float | None, more: bool, neutral: bool) -> str:
    if neutral or not top or abs(value / top - 1) <= _CHANGE:
        return _SAME
    return _BETTER if (value > top) == more else _WORSE


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


def _panels(rows: int, columns: int, width_in: float = _WIDTH_IN, height_in: float = _HEIGHT_IN) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure((width_in * columns, height_in * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    # Neither date nor random names: the same figures make the same file.
    with mpl.rc_context({"svg.hashsalt": "slatecast"}):
        figure.savefig(path, metadata={"Date": None})
    return path
