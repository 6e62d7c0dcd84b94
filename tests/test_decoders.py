"""Small decoders of the GPT-2 and Llama kinds become towers: padding, pooling, prompt, Chinese, and the folder's checks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from decoder_helpers import PROMPT, SHAPES, TITLES, WIDTH, write_decoders
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models import text_export
from models.export import export_tower, find_weights, source_digest, weight_files
from models.item_vectors import build_text
from models.text_export import load, pooled
from models.text_tower import TOKEN_BUDGET, Reading, TextTower
from recsys.errors import Misuse, ModelRejected
from streams.cli.export import export

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter warns of what its own parts are going to deprecate

READINGS = {"gpt2": Reading(), "llama": Reading("last", PROMPT)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each kind one."""
    return write_decoders(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def towers(weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One by the mean, made in this process; one by the last token of a prompt, made meanwhile by the command."""
    gpt2, ready = tmp_path_factory.mktemp("ready"), tmp_path_factory.mktemp("commanded") / "llama"
    options = ["--model", str(weights["llama"]), "--out", str(ready), "--pooling", "last", "--prompt", PROMPT, "--json"]
    command = [sys.executable, "-P", "-c", "from streams.cli.main import main; main()", "export", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        text_export.main(weights["gpt2"], gpt2, source_digest(weights["gpt2"]), Reading())
        said = json.loads(process.communicate()[0])
    assert (said["folder"], said["dim"], said["pooling"], said["prompt"]) == (str(ready), WIDTH, "last", PROMPT)
    assert 0 < said["parity"] < 1e-5
    return {"gpt2": gpt2, "llama": ready}


def expected(folder: Path, reading: Reading, texts: list[str]) -> NDArray[np.float32]:
    """What torch says of each text alone, unpadded, its pooling written out."""
    model, tokenizer = load(folder)
    vectors = []
    for text in texts:
        with torch.no_grad():
            ids = tokenizer(reading.prompt.replace("{}", text), return_tensors="pt")["input_ids"]
            (hidden,) = model(input_ids=ids).last_hidden_state
        vector = hidden.mean(0) if reading.pooling == "mean" else hidden[-1]
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("name", SHAPES)
def test_an_exported_decoder_says_what_torch_says(weights: dict[str, Path], towers: dict[str, Path], name: str) -> None:
    tower = TextTower(towers[name])
    assert tower.settings.pad_id == 0, "the end of a text, where there is no token for padding"
    assert tower.settings.digest == source_digest(weights[name], READINGS[name])
    np.testing.assert_allclose(tower.encode(TITLES), expected(weights[name], READINGS[name], TITLES), atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_texts_of_all_lengths_have_the_vectors_in_a_batch_that_they_have_alone(
    towers: dict[str, Path], name: str
) -> None:
    rng = np.random.default_rng(0)
    words = ["red", "mug", "红色马克杯", "花园", "garden", "chair", "330", "ml", "crème"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(60)]
    tower = TextTower(towers[name])
    alone = np.concatenate([tower.encode([text]) for text in texts])
    batches: list[int] = []
    together = tower.encode(texts, lambda done, of: batches.append(done))
    assert 1 < len(batches) < 60, f"several texts a batch, {TOKEN_BUDGET} tokens at most"
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", SHAPES)
def test_padding_changes_nothing_whichever_side_it_stands_on(weights: dict[str, Path], name: str, pooling: str) -> None:
    tower = pooled(load(weights[name])[0], Reading(pooling).pooling)  # type: ignore[arg-type]
    ids, no, yes = torch.arange(1, 10)[None], torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 9, dtype=torch.int64)
    with torch.no_grad():
        alone = tower(ids, yes).numpy()
        left = tower(torch.cat([no, ids], 1), torch.cat([no, yes], 1)).numpy()
        right = tower(torch.cat([ids, no], 1), torch.cat([yes, no], 1)).numpy()
    np.testing.assert_allclose(left, alone, atol=1e-6)
    np.testing.assert_allclose(right, alone, atol=1e-6)


def test_a_prompt_stays_whole_behind_a_text_that_is_cut(towers: dict[str, Path]) -> None:
    tower = TextTower(towers["llama"])
    for text in ("折叠椅" * 400, "garden chair " * 400):
        (prompted,) = tower.reader.prompted([text])
        before, _, after = PROMPT.partition("{}")
        assert prompted.startswith(before + text[:3])
        assert prompted.endswith(after)
        tokens = Tokenizer.from_file(str(towers["llama"] / "tokenizer.json")).encode(prompted).ids
        assert 100 < len(tokens) <= tower.settings.max_tokens
    assert not tower.encode([""]).any(), "a prompt around nothing is no text"


def test_a_mug_prompted_is_not_a_mug_and_the_last_token_not_the_mean(weights: dict[str, Path]) -> None:
    readings = [Reading(), Reading("last"), Reading("last", PROMPT)]
    assert len({source_digest(weights["gpt2"], reading) for reading in readings}) == len(readings)
    first, second, third = (expected(weights["gpt2"], reading, TITLES) for reading in readings)
    assert min(np.abs(first - second).max(), np.abs(second - third).max()) > 0.1


def test_a_decoder_whose_places_are_used_up_is_cut_there(towers: dict[str, Path]) -> None:
    tower = TextTower(towers["gpt2"])
    assert tower.settings.max_tokens == 96
    exact, longer = tower.encode(["x " * 48, "x " * 500])
    np.testing.assert_allclose(exact, longer, atol=1e-6)


def test_an_encoder_has_no_last_token_to_speak_of() -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    with pytest.raises(ModelRejected, match="left to right"):
        pooled(transformers.BertModel(config).eval(), "last")


def test_train_takes_a_ready_tower_as_it_takes_weights(towers: dict[str, Path], tmp_path: Path) -> None:
    side = build_text(tmp_path, TITLES, source=towers["llama"], dim=4)
    assert side.tower.parent == tmp_path / "towers", "nothing is written beside the tower that was given"
    assert side.vectors.shape == (len(TITLES), 4)
    assert export_tower(towers["llama"], tmp_path / "towers") == side.tower
    np.testing.assert_array_equal(TextTower(side.tower).encode(TITLES), TextTower(towers["llama"]).encode(TITLES))


@pytest.mark.parametrize("file", ["tower.onnx", "tokenizer.json"])
def test_a_tower_that_is_not_what_was_exported_is_refused(towers: dict[str, Path], tmp_path: Path, file: str) -> None:
    changed = shutil.copytree(towers["llama"], tmp_path / "changed")
    with (changed / file).open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(ModelRejected, match=rf"{file} is not the file that was exported"):
        export_tower(changed, tmp_path / "towers")
    (changed / file).unlink()
    with pytest.raises(ModelRejected, match=rf"{file} is missing"):
        export_tower(changed, tmp_path / "towers")
    assert not list((tmp_path / "towers").iterdir())


def test_a_model_is_a_folder_or_the_name_of_one_in_a_package(tmp_path: Path) -> None:
    assert weight_files(find_weights("all-MiniLM-L6-v2"))
    assert find_weights(str(tmp_path)) == tmp_path
    with pytest.raises(Misuse, match=r"all-MiniLM-L6-v2, SmolLM2-135M-Instruct"):
        find_weights("owner/some-model")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelRejected, match=r"not one \*\.gguf"):
        weight_files(tmp_path)


@pytest.mark.parametrize("prompt", ["a shop item", "{} and {}"])
def test_a_prompt_says_once_where_the_text_goes(prompt: str, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="where the text goes"):
        CliRunner().invoke(export, ["--out", str(tmp_path / "out"), "--prompt", prompt], catch_exceptions=False)


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(Misuse, match="not empty"):
        CliRunner().invoke(export, ["--out", str(tmp_path)], catch_exceptions=False)
