"""`slatecast tune-training`: a shop's history and a budget in, settings of `train` out."""

import shutil
import time
from pathlib import Path

import click
import msgspec

from recsys.errors import Misuse
from streams.cli.options import (
    home_options,
    json_option,
    print_json,
    set_option,
    stderr,
    steps,
    wandb_option,
)
from streams.settings import Settings


@click.command(name="tune-training")
@click.argument("source", metavar="FOLDER|completejourney")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=20, show_default=True, help="Time budget.")
@click.option("--trials", type=click.IntRange(min=1), help="End after so many trials, if that is earlier.")
@click.option("--resume", metavar="RUN", help="Go on with a copy of this run's journal, as `slatecast runs` names it.")
@click.option("--min-buyers", type=click.IntRange(min=1), help="As of `evaluate`.")
@click.option("--until", help="Learn from what came before this day only, as in 2011-08-05.")
@click.option(
    "--tower", type=click.Path(path_type=Path), help="Text tower: of `slatecast export`, or a Hugging Face folder."
)
@click.option("--settings", "file", type=click.Path(path_type=Path), help="TOML to begin with, as of `train`.")
@set_option
@wandb_option
@home_options
@json_option
def tune_training(
    settings: Settings,
    source: str,
    minutes: float,
    trials: int | None,
    resume: str | None,
    min_buyers: int | None,
    until: str | None,
    tower: Path | None,
    file: Path | None,
    changes: tuple[str, ...],
    wandb: bool,
    as_json: bool,
) -> None:
    """Find settings of `train` that fit this shop's history better.

    Trials are judged on the week before the newest; what is found is judged beside the default on the newest, which no trial
    has seen. The settings are best.toml in the run's folder.

    \b
    Example:  slatecast tune-training shop/ --minutes 20
              slatecast tune-training shop/ --resume last
    """
    from models.history import only_items, read_history, sold_items
    from models.item_vectors import build_text
    from models.origins import parse_day
    from models.runs import check_same, read_run, start_run, window_of
    from models.settings_file import describe, read_settings
    from models.train_settings import TrainSettings
    from models.tune_training import JOURNAL, search
    from recsys.catalogue import item_text
    from streams.cli.learn import least_buyers

    base = read_settings(TrainSettings, "train", file, changes)
    home, least = Path(settings.home), min_buyers or least_buyers(source)
    earlier, about = read_run(home, resume) if resume else (None, None)
    with stderr.status(f"reading {source}"):
        history = read_history(source)
        history = history.before(parse_day(until, "--until")) if until else history
        history = only_items(history, sold_items(history, least))
    if not len(history):
        raise Misuse(f"no item of {source} has {least} buyers; lower --min-buyers")
    window, now_ms = window_of(source, history), time.time_ns() // 1_000_000
    if about:
        check_same(about, "tune-training", base, window)
    with steps() as step, start_run(home, "tune-training", base, window, now_ms, wandb) as run:
        texts = [item_text(item) for item in history.items]
        side = build_text(
            home, texts, source=tower, dim=base.dim, whiten=base.whiten,
            progress=lambda done, of: step("embedding items", done, of),
        )  # fmt: skip
        if earlier and (earlier / JOURNAL).is_file():  # copied, so that this run can be gone on with in its turn
            shutil.copyfile(earlier / JOURNAL, run.folder / JOURNAL)
        found = search(history, side.vectors, base, run.folder, minutes, trials, step, run.log)
        (run.folder / "best.toml").write_text(describe(found.settings, "train") + "\n", encoding="utf-8")
        run.close("done", msgspec.to_builtins(found))
    if as_json:
        print_json({**msgspec.structs.asdict(found), "folder": str(run.folder)})
        return
    low, high = found.gain_95
    gain = found.unseen_best - found.unseen_default
    stderr.print(f"{found.trials} trials, {found.pruned} ended early; NDCG@10 {found.default:.4f} → {found.best:.4f}")
    stderr.print(
        f"on the newest week, unseen: {found.unseen_default:.4f} → {found.unseen_best:.4f} (gain {gain:+.4f}, 95 %: "
        f"{low:+.4f} to {high:+.4f})"
    )
    if low <= 0:
        stderr.print("that is no proof of a gain: the default is as good a choice")
    stderr.print(f"now: slatecast train {source} --settings {run.folder / 'best.toml'}")
