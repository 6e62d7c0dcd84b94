"""`slatecast evaluate`: how good the lists would have been at past moments, beside what they have to beat."""

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import numpy as np
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from recsys.catalogue import item_text
from recsys.errors import Misuse
from recsys.policy import Policy, Share
from streams.cli.options import home_options, json_option, print_json, set_option, steps
from streams.settings import Settings

if TYPE_CHECKING:  # the models come with SciPy, and `slatecast --help` must not wait for it
    from numpy.typing import NDArray

    from models.comparing import Comparison
    from models.evaluate import Evaluation, Line
    from models.history import History
    from models.train_settings import Step, TrainSettings

JOURNEY_MIN_BUYERS = 30  # of 2,469 households; with fewer buyers the long tail makes EASE's matrix too large
TASKS = {"new": "what the user had not bought before", "all": "repeats count too"}


@click.command()
@click.argument("source", metavar="FOLDER|completejourney")
@click.option("--origins", metavar="DATE,…", help="Moments to judge at  [three, 28 days apart, the last 28 days before"
              " the end of the data]")  # fmt: skip
@click.option("--min-buyers", type=click.IntRange(min=1), help="Rank items with so many buyers before the moment"
              f"  [5; completejourney {JOURNEY_MIN_BUYERS}]")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(min=1), help="Fit ours so often; figures are"
              " means over the fits.")  # fmt: skip
@click.option("--tower", type=click.Path(path_type=Path), help="Text tower, as of `train`.")
@click.option("--strengths", metavar="S,…", default="", help="Judge ours with these strengths of diversity too.")
@click.option("--deep", metavar="FOLDER", help="Judge ours with this decoder behind the scorer too: a second a list on"
              " a core.")  # fmt: skip
@click.option("--deep-weight", type=click.FloatRange(0, 10), help="Of its scores, in logits  [0.1]")
@click.option("--diversity", is_flag=True, help="Instead: which cure helps against which sameness, on one scorer.")
@click.option("--plots", type=click.Path(path_type=Path), help="Draw frontier.svg and bands.svg into this folder; with"
              " --diversity diversity.svg.")  # fmt: skip
@set_option
@home_options
@json_option
def evaluate(
    settings: Settings,
    source: str,
    origins: str | None,
    min_buyers: int | None,
    seed: int,
    seeds: int,
    tower: Path | None,
    strengths: str,
    deep: str | None,
    deep_weight: float | None,
    diversity: bool,
    plots: Path | None,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Judge recommendations by what users bought next, at moments in the past.

    Every model sees the events before the moment only and ranks the whole catalogue. Task new: what the user has not
    bought before; task all: repeats count too.

    FOLDER has events.jsonl.gz and items.jsonl.gz. Columns of the second table: ILD, mean distance of a list's items by
    category; closest, that of the nearest two; kinds, categories in effect; text, distance of their texts; mix, how far
    from the user's own categories (KL); novelty, bits; overlap, what two users' lists have in common.

    With --diversity: top-k and each cure alone, then the policy, on the three axes: within a list, over time (four lists
    within six days, one scorer), across users; for what the policy's `repeats` says (new or all).

    \b
    Example:  slatecast evaluate shop/ --diversity --plots plots/
              slatecast evaluate shop/ --origins 2011-09-02,2011-09-16
              slatecast evaluate completejourney --seeds 3 --strengths 0,0.3,0.6 --plots plots/
    """
    from models.comparing import compare, ways
    from models.deep import NEVER_S, Deep
    from models.evaluate import evaluate as judge
    from models.export import find_weights
    from models.history import JOURNEY
    from models.judging import Shop
    from models.origins import default_origins, parse_origins
    from models.ours import Ours, Scorers
    from models.plots import check_plots, plot, plot_cures
    from models.settings_file import read_settings
    from models.train_settings import TrainSettings

    chosen = read_settings(TrainSettings, "train", None, changes)
    bare = replace(settings.policy, diversity="none", exposure_penalty=0)
    policies = {"": settings.policy, "relevance only": bare} | _variants(settings.policy, strengths)
    if plots:
        check_plots()
    if deep:
        find_weights(deep)  # minutes before it is opened
    asked = parse_origins(origins) if origins else None
    least = min_buyers or least_buyers(source)
    with steps() as step:
        history, vectors = past_and_texts(settings, source, least, chosen, tower, step)
        known = vectors if chosen.dim else None
        asked = asked or default_origins(history)
        scorers = Scorers(history, vectors, settings.policy, chosen, step, seeds)
        if diversity:
            task, shop = settings.policy.repeats, Shop(history, known)
            found = compare(scorers, ways(settings.policy), asked, task, shop, source, least, seed, True, step)
        else:
            ours = {name: Ours(scorers, policy) for name, policy in policies.items()}
            if deep:
                weight = settings.deep_weight if deep_weight is None else deep_weight
                stage = Deep(deep, scorers.learner.world.shop.catalogue, weight, deadline_s=NEVER_S)
                if stage.reason:
                    raise Misuse(f"--{stage.reason}")
                ours[f"deep {weight:g}"] = Ours(scorers, settings.policy, stage)
            result = judge(history, source, asked, ours, min_buyers=least, vectors=known, seed=seed, step=step)
    if plots:
        plot_cures(found, plots) if diversity else plot(result, plots)
    if as_json:
        print_json(found if diversity else result)
        return
    if source == JOURNEY:
        click.echo("data: 84.51° Complete Journey (may be simulated)")
    if diversity:
        show_compared(found)
    else:
        _show(result)


def past_and_texts(
    settings: Settings, source: str, least: int, chosen: "TrainSettings", tower: Path | None, step: "Step"
) -> "tuple[History, NDArray[np.float32]]":
    """A source's events, and a vector of each item with enough buyers, zeros for the others. Raises Misuse."""
    from models.history import read_history, sold_items
    from models.item_vectors import build_text

    step("reading", 0, 1)
    history = read_history(source)
    step("reading", 1, 1)
    # A tower reads texts, not events, so embedding what will be sold later tells the past nothing.
    sold = sold_items(history, least)
    if not sold.any():
        raise Misuse(f"no item has {least} buyers, so there is nobody to ask; lower --min-buyers")
    texts = [item_text(item) for item, enough in zip(history.items, sold.tolist(), strict=True) if enough]
    side = build_text(
        Path(settings.home),
        texts,
        source=tower,
        dim=chosen.dim,
        whiten=chosen.whiten,
        progress=lambda done, of: step("embedding items", done, of),
    )
    vectors = np.zeros((len(history.items), side.vectors.shape[1]), np.float32)
    vectors[sold] = side.vectors
    return history, vectors


def _variants(policy: Policy, strengths: str) -> dict[str, Policy]:
    """The policy at other strengths of diversity, by name. Raises Misuse."""
    variants = {}
    for text in filter(None, strengths.split(",")):
        try:
            strength = msgspec.convert(text.strip(), Share, strict=False)
        except msgspec.ValidationError as error:
            raise Misuse(f"--strengths {strengths}: {error}; write numbers from 0 to 1 as 0,0.3,0.6") from None
        method = policy.diversity if strength else "none"
        variants[f"strength {strength:g}"] = replace(policy, strength=strength, diversity=method)
    return variants


def least_buyers(source: str) -> int:
    """With so many buyers an item of this source is ranked, where nobody says another number."""
    from models.history import JOURNEY
    from models.origins import MIN_BUYERS

    return JOURNEY_MIN_BUYERS if source == JOURNEY else MIN_BUYERS


def _show(result: "Evaluation") -> None:
    """Two tables a task on stdout, then what ours comes to."""
    console = Console(highlight=False)
    for at in result.origins:
        console.print(f"{at.day}: {at.items} items, {at.users_all} users ({at.users_new} with something new)")
    settings = (
        f"at {result.tuned_at}" if result.tuned_at else "by default: there is nobody to ask before the first moment"
    )
    console.print(f"items with {result.min_buyers} or more buyers; settings of baselines chosen {settings}")
    for task, about in TASKS.items():
        lines = [line for line in result.table if line.task == task]
        console.print(_accuracy(lines, f"task {task}: {about}", result.k), _variety(lines))
    for line in result.table:
        if line.model == "slatecast" and line.ratio is not None and line.ratio_95 is not None:
            best = result.best_new if line.task == "new" else result.best_all
            ends = f"(95 %: {line.ratio_95[0]:.3f} to {line.ratio_95[1]:.3f})"
            console.print(f"task {line.task}: {line.model} {line.setting} is {line.ratio:.3f} times {best} {ends}")
    for variant in result.variants:
        if variant.ratio is not None and variant.ratio_95 is not None:
            said = f"{variant.ratio:.3f} times ours (95 %: {variant.ratio_95[0]:.3f} to {variant.ratio_95[1]:.3f})"
            console.print(f"task {variant.task}: {variant.setting} is {said}")
    for band in result.bands:
        said = "no ratio, the best baseline finds nothing"
        if band.ratio is not None and band.ratio_95 is not None:
            said = f"{band.ratio:.3f} ({band.ratio_95[0]:.3f} to {band.ratio_95[1]:.3f}) times {band.best}"
        console.print(f"  {band.task}, {band.users} users who know {band.items} items: {said}")
    if result.overlap_ratio is not None:
        console.print(f"overlap between users: ours is {result.overlap_ratio:.2f} times that of EASE")


def show_compared(found: "Comparison") -> None:
    """A row a policy: what it costs, then the three axes."""
    console = Console(highlight=False)
    console.print(f"{', '.join(found.days)}; task {found.task}: {TASKS[found.task]}; {found.users} lists a row")
    table = table_of("NDCG", "ratio", "95 %", "ILD", "pair", "6 days", "overlap", "/EASE", "homog.")
    for row in found.table:
        v, ends = row.variety, row.ratio_95
        cells = ["–" if row.accuracy is None else f"{row.accuracy.ndcg:.4f}"]
        cells += ["–" if row.ratio is None else f"{row.ratio:.3f}", f"{ends[0]:.2f}–{ends[1]:.2f}" if ends else "–"]
        cells += [f"{v.category_distance:.3f}", f"{v.category_minimum:.3f}"]
        cells += ["–" if v.temporal_diversity is None else f"{v.temporal_diversity:.3f}", f"{v.overlap:.4f}"]
        cells += ["–" if row.overlap_of_ease is None else f"{row.overlap_of_ease:.2f}", f"{v.homogenisation:.3f}"]
        table.add_row(row.name[:17], *cells)
    console.print(table)
    if (last := found.table[-1]).accuracy is None:
        low, high = last.variety.category_low, last.variety.category_high
        console.print(f"of real baskets four in five have an ILD of {low:.3f} to {high:.3f}")


def _accuracy(lines: "list[Line]", title: str, k: int) -> Table:
    table = table_of(f"NDCG@{k}", "95 %", "recall", "MAP", "F1", "hit rate", title=title)
    for line in lines:
        if (a := line.accuracy) is not None:
            ends = f"{a.ndcg_95[0]:.4f}–{a.ndcg_95[1]:.4f}"
            rest = (f"{value:.3f}" for value in (a.recall, a.average_precision, a.f1, a.hit_rate))
            table.add_row(f"{line.model} {line.setting}", f"{a.ndcg:.4f}", ends, *rest)
    return table


def _variety(lines: "list[Line]") -> Table:
    table = table_of("ILD", "closest", "kinds", "text", "mix", "novelty", "coverage", "gini", "overlap")
    for line in lines:
        v = line.variety
        cells = [f"{v.category_distance:.2f}", f"{v.category_minimum:.2f}", f"{exp(v.category_entropy):.1f}"]
        cells += ["–" if v.text_distance is None else f"{v.text_distance:.2f}", f"{v.calibration_kl:.2f}"]
        cells += [f"{v.novelty:.1f}", f"{v.coverage:.3f}", f"{v.gini:.3f}", f"{v.overlap:.3f}"]
        table.add_row(line.model, *cells)
    return table


def table_of(*columns: str, title: str | None = None) -> Table:
    """Narrow enough for 80 signs, the width of a pipe."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
