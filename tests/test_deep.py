"""The deep stage, on decoders of the GPT-2 and Llama kinds: company does not matter, and no list waits for it or lacks."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from decoder_helpers import SHAPES, TITLES, VOCABULARY, write_decoders
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from models import deep
from models.deep import BEST, TITLE_TOKENS, Deep, Reader, open_decoder
from models.deep_decoder import Decoder
from models.devices import CPU
from models.ladder import PAUSE_S
from models.serving import NoModels
from recsys.catalogue import Catalogue, Item
from recsys.errors import ModelRejected
from recsys.events import Click, encode_event
from recsys.features import NAMES
from recsys.policy import Policy
from recsys.scoring import Ask, Scored, Trail
from recsys.slates import Slate, decode_slate
from streams.ranker import RankerTask
from streams.records import Record
from streams.settings import Settings
from streams.state import Held, State

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Wait = Callable[..., None]
ALL, NEW = Policy(), Policy(repeats="new")
NOBODY = Trail(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
NO_VECTORS = np.zeros((0, 0), np.float32)


def shop(titles: Sequence[str]) -> Catalogue:
    return Catalogue([Item(item=f"i{n}", title=title) for n, title in enumerate(titles)])


SHOP = shop([*TITLES, *(f"thing {n} of {TITLES[n % 6]}" for n in range(40))])


def ask(rows: Sequence[int], trail: Sequence[int] = ()) -> Ask:
    """A list of these items for who had those, newest first."""
    had = Trail(np.array(trail, np.int64), np.zeros(len(trail), np.int64), np.zeros((len(trail), 2), np.float32))
    return Ask(np.array(rows, np.int64), np.zeros((len(rows), len(NAMES)), np.float32), had)


def plain(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
    """A scorer whose logits fall along each list, in both columns by another measure."""
    falling = np.concatenate([-np.arange(len(ask.rows), dtype=np.float32) for ask in asks])
    return Scored(np.stack([falling, 2 * falling], axis=1), "network")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_decoders(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def opened(weights: dict[str, Path]) -> dict[str, Decoder]:
    return {name: open_decoder(folder) for name, folder in weights.items()}


@pytest.fixture(params=SHAPES)
def decoder(opened: dict[str, Decoder], request: pytest.FixtureRequest) -> Decoder:
    return opened[request.param]


@pytest.fixture
def reader(decoder: Decoder) -> Reader:
    return Reader(decoder, SHOP, {})


# --- a decoder, and texts in company ------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, count: int, longest: int) -> list[list[int]]:
    return [rng.integers(0, VOCABULARY, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def test_a_text_has_the_bits_in_company_that_it_has_alone(decoder: Decoder) -> None:
    rng = np.random.default_rng(0)
    for count, longest, before in ((1, 1, 1), (2, 5, 3), (7, 16, 15), (20, 12, 16), (20, 32, 40), (33, 17, 17)):
        beginning, texts = rng.integers(0, VOCABULARY, before).tolist(), draw(rng, count, longest)
        together = decoder.log_likelihoods(beginning, texts)
        alone = np.concatenate([decoder.log_likelihoods(beginning, [text]) for text in texts])
        np.testing.assert_array_equal(together, alone, err_msg=f"{count} texts of up to {longest} tokens")


def test_a_text_has_the_likelihood_that_the_models_own_attention_gives_it(
    decoder: Decoder, weights: dict[str, Path]
) -> None:
    name = "gpt2" if decoder.places == 96 else "llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(weights[name], dtype=torch.float32).eval()
    rng = np.random.default_rng(1)
    beginning, texts = rng.integers(0, VOCABULARY, 30).tolist(), draw(rng, 20, 20)
    expected = []
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([beginning + text])).logits[0].log_softmax(1)
        expected.append(np.mean([float(logits[29 + at, token]) for at, token in enumerate(text)]))
    np.testing.assert_allclose(decoder.log_likelihoods(beginning, texts), expected, atol=1e-5)


def test_a_decoder_that_does_not_attend_in_the_plain_way_is_refused(weights: dict[str, Path], tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_logit_softcapping=0.1,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(weights["llama"] / file, tmp_path)
    with pytest.raises(ModelRejected, match="Gemma2ForCausalLM does not attend in the plain way"):
        open_decoder(tmp_path)


def test_a_decoder_that_answers_nan_is_refused(weights: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(weights["llama"], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRejected, match="differ by nan"):
        open_decoder(broken)


# --- titles to scores -------------------------------------------------------------------------------------------------


def test_scores_of_a_list_are_standardised_and_their_order_is_the_candidates(reader: Reader) -> None:
    rows, rng = np.arange(20), np.random.default_rng(0)
    scores = reader.score([ask(rows.tolist(), [25, 30])], NO_VECTORS)[:, 0]
    assert scores.mean() == pytest.approx(0, abs=1e-6)
    assert scores.std() == pytest.approx(1, abs=1e-6)
    shuffled = rng.permutation(rows)
    again = reader.score([ask(shuffled.tolist(), [25, 30])], NO_VECTORS)[:, 0]
    np.testing.assert_allclose(again, scores[shuffled], atol=1e-6)


def test_lists_of_one_call_know_nothing_of_each_other_and_what_is_kept_changes_nothing(reader: Reader) -> None:
    asks = [ask(range(20), [25]), ask([3]), ask([]), ask(range(5, 17), [1, 2, 3])]
    together = reader.score(asks, NO_VECTORS)
    alone = [Reader(reader._decoder, SHOP, {}).score([one], NO_VECTORS) for one in asks]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    np.testing.assert_array_equal(together, reader.score(asks, NO_VECTORS))


def test_what_was_bought_before_counts_and_so_does_its_order(reader: Reader) -> None:
    one, other, turned = (reader.score([ask(range(20), had)], NO_VECTORS) for had in ([25, 30], [41, 7], [30, 25]))
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - turned).max() > 1e-3


def test_who_has_no_history_gets_the_list_as_it_was(reader: Reader) -> None:
    assert not reader.score([ask(range(20))], NO_VECTORS).any()
    assert not Reader(reader._decoder, shop(["mug", " \n"]), {}).score([ask([0, 1], [1])], NO_VECTORS).any()


def test_a_candidate_without_a_title_gains_and_loses_nothing(decoder: Decoder) -> None:
    titled = Reader(decoder, shop(["mug", "红色马克杯", "oak chair", "garden"]), {}).score(
        [ask([0, 1, 2], [3])], NO_VECTORS
    )
    gaps = shop(["mug", "红色马克杯", "oak chair", "garden", "", " \t"])
    scores = Reader(decoder, gaps, {}).score([ask([4, 0, 1, 5, 2], [3])], NO_VECTORS)
    assert not scores[[0, 3]].any()
    np.testing.assert_array_equal(scores[[1, 2, 4]], titled)
    assert not Reader(decoder, gaps, {}).score([ask([4, 5], [3])], NO_VECTORS).any()


def test_a_very_long_title_is_cut_as_candidate_and_in_the_history(decoder: Decoder) -> None:
    long, longer = "x " * 100, "x " * 5000
    names = ["mug", "oak chair", "花园折叠椅"]
    lists = [[0, 1, 2, 3], [0, 1, 2, 4]]
    made = Reader(decoder, shop([*names, long, longer]), {})
    one, other = (made.score([ask(rows, [2, rows[-1], 1])], NO_VECTORS) for rows in lists)
    np.testing.assert_array_equal(one, other)
    assert len(made._tokens(long)) > TITLE_TOKENS


def test_a_history_is_as_long_as_the_decoder_has_places(reader: Reader) -> None:
    lines = reader._history(list(range(20, 46)))
    assert 0 < len(lines) < reader._decoder.places - reader._cut
    newest = reader._history([20])
    assert lines[-len(newest) :] == newest, "newest last"
    assert np.isfinite(reader.score([ask(range(20), range(20, 46))], NO_VECTORS)).all()


def test_chinese_titles_are_told_apart(decoder: Decoder) -> None:
    titles = ["红色马克杯", "蓝色马克杯", "花园折叠椅，橡木", "折叠椅", "杯"]
    scores = Reader(decoder, shop(titles), {}).score([ask([0, 1, 2, 3], [4, 0])], NO_VECTORS)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 4


# --- behind a scorer --------------------------------------------------------------------------------------------------


def test_the_best_twenty_move_by_their_scores_and_the_rest_stay(weights: dict[str, Path]) -> None:
    stage = Deep(str(weights["llama"]), SHOP, 0.5, 60)
    asks = [ask(range(30), [31, 32]), ask([]), ask(range(10, 13), [40])]
    before = plain(asks, NO_VECTORS).logits
    assert before is not None
    for policy, column in ((ALL, 0), (NEW, 1)):
        scored = stage.around(plain, policy)(asks, NO_VECTORS)
        assert (scored.scorer, scored.degraded_reason) == ("network+deep", None)
        assert scored.logits is not None
        moved = scored.logits - before
        assert not moved[:, 1 - column].any()
        assert not moved[BEST:30].any()
        for part in (moved[:BEST, column], moved[30:, column]):
            assert part.std() == pytest.approx(0.5, abs=1e-5)


class Moody:
    """In place of a decoder: says, raises, hangs or answers NaN, as told."""

    provider, places = CPU, 1000

    def __init__(self) -> None:
        self.mood, self.released = "well", threading.Event()

    def tokenizer(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(sign) for sign in text]}

    tokenizer.bos_token_id = None  # type: ignore[attr-defined]
    tokenizer.eos_token_id = None  # type: ignore[attr-defined]

    def log_likelihoods(self, beginning: Sequence[int], texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        if self.mood == "raises":
            raise RuntimeError("out of memory")
        if self.mood == "hangs":
            self.released.wait(30)
        found = np.array([sum(text) / len(beginning) for text in texts])
        return found * np.nan if self.mood == "nan" else found


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moody]:
    made = Moody()
    monkeypatch.setattr(deep, "find_weights", Path)
    monkeypatch.setattr(deep, "open_decoder", lambda weights: made)
    yield made
    made.released.set()


@pytest.mark.parametrize(
    ("mood", "reason"),
    [("raises", "RuntimeError: out of memory"), ("nan", "not finite"), ("hangs", "no answer within")],
)
def test_a_stage_that_fails_leaves_the_list_says_why_and_comes_back(
    moody: Moody, mood: str, reason: str, wait_for: Wait
) -> None:
    clock = SimpleNamespace(now_s=1000.0)
    stage = Deep("folder", SHOP, 1.0, 0.2, clock_s=lambda: clock.now_s)
    score, asks = stage.around(plain, ALL), [ask(range(30), [31])]
    assert score(asks, NO_VECTORS).scorer == "network+deep"
    moody.mood = mood
    for _ in range(2):
        scored = score(asks, NO_VECTORS)
        assert scored.scorer == "network"
        assert (scored.degraded_reason or "").startswith("deep: ")
        assert reason in (scored.degraded_reason or "")
        np.testing.assert_array_equal(scored.logits, plain(asks, NO_VECTORS).logits)
    moody.mood = "well"
    moody.released.set()
    clock.now_s += 2 * PAUSE_S
    wait_for(lambda: score(asks, NO_VECTORS).scorer == "network+deep")


def test_two_reasons_are_both_said(moody: Moody) -> None:
    stage, asks = Deep("folder", SHOP, 1.0, 5), [ask(range(30), [31])]

    def lesser(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        return Scored(plain(asks, vectors).logits, "linear", "network: broken")

    assert stage.around(lesser, ALL)(asks, NO_VECTORS).degraded_reason == "network: broken"
    moody.mood = "raises"
    assert (stage.around(lesser, ALL)(asks, NO_VECTORS).degraded_reason or "").startswith("network: broken | deep: ")


def test_lists_by_rank_fusion_are_left_alone(moody: Moody) -> None:
    scored = Deep("folder", SHOP, 1.0).around(NoModels("none yet").score, ALL)([ask(range(3), [4])], NO_VECTORS)
    assert (scored.logits, scored.scorer, scored.degraded_reason) == (None, "rank_fusion", "none yet")


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_folder_that_is_no_decoder_costs_no_list_and_lists_do_not_say_where_it_lies(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    scored = Deep(str(tmp_path / what), SHOP, 1.0).around(plain, ALL)([ask(range(3), [4])], NO_VECTORS)
    assert scored.scorer == "network"
    assert (scored.degraded_reason or "").startswith(f"deep: {what}")
    assert str(tmp_path) not in (scored.degraded_reason or "")


# --- in a ranker ------------------------------------------------------------------------------------------------------


class Scoring(NoModels):
    """Models with a scorer and nothing else."""

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        return plain(asks, vectors)


def first_list(settings: Settings) -> Slate:
    """What a ranker without a broker publishes for a click."""
    task = RankerTask(settings, Scoring())
    try:
        for item in SHOP.items:
            task.shelf.catalogue.upsert(item)
        task.shelf.signals.grow()
        state, event = State(), Click(user="u", item="i3", ts_ms=1_764_000_000_000)
        state.adopt(0, Held(None, in_memory=True))
        record = Record("d.events", 0, 0, event.ts_ms, b"u", encode_event(event), ())
        [slate] = [out for out in task.process([record], state) if out.topic == "d.slates"]
        return decode_slate(slate.value or b"")
    finally:
        task.shelf._items.close()
        task.shelf._signals.close()


def test_a_rankers_list_names_the_deep_stage_or_why_it_was_not_asked(weights: dict[str, Path], tmp_path: Path) -> None:
    nobody = {"bootstrap": "127.0.0.1:1", "prefix": "d.", "kafka": {"log_level": 0}}
    assert first_list(Settings(**nobody)).scorer == "network"  # type: ignore[arg-type]
    told = first_list(Settings(**nobody, deep=str(weights["gpt2"]), deep_deadline_s=1.9))  # type: ignore[arg-type]
    assert (told.scorer, told.degraded_reason) == ("network+deep", None)
    refused = first_list(Settings(**nobody, deep=str(tmp_path)))  # type: ignore[arg-type]
    assert refused.scorer == "network"
    assert (refused.degraded_reason or "").startswith("deep: ")


def test_a_ranker_without_the_setting_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from models.serving import NoModels; from streams.ranker import RankerTask\n"
        "from streams.settings import Settings\n"
        "RankerTask(Settings(bootstrap='127.0.0.1:1', kafka={'log_level': 0}), NoModels())\n"
        "print(*{'torch', 'transformers', 'models.deep'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
