"""Any local model becomes a tower, checked against torch; a wrong graph, a strange model, a slow export do not."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from models import export, text_export
from models.export import default_weights, export_tower, source_digest
from models.text_export import check_parity, pooled, write_graph
from models.text_tower import Reading, TextTower
from recsys.errors import ModelRejected, Unavailable

# torch's exporter warns of what its own parts are going to deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["Red mug", "a folding chair for the garden, of oak", "x"]


def tiny_bert() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30_522, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return transformers.BertModel(config).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_bert().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default_weights() / name, folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


def test_a_local_model_becomes_a_tower_without_a_word(
    weights: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tower = TextTower(export_tower(weights, cache))
    assert capfd.readouterr() == ("", "")
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        expected = pooled(tiny_bert(), "mean")(batch["input_ids"], batch["attention_mask"]).numpy()
    np.testing.assert_allclose(tower.encode(TEXTS), expected, atol=1e-5)
    assert tower.settings.digest == source_digest(weights)
    assert {path.name for path in cache.iterdir()} == {tower.settings.digest[:16]}


@pytest.mark.parametrize("whole", [transformers.T5Model, transformers.T5EncoderModel])
def test_of_an_encoder_and_decoder_in_one_the_encoder_reads_the_text(
    weights: Path, tmp_path: Path, whole: type[transformers.PreTrainedModel]
) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30_522, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    model = whole(config).eval()
    own = shutil.copytree(weights, tmp_path / "own")
    model.save_pretrained(own)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.get_encoder()(**{name: batch[name] for name in ("input_ids", "attention_mask")})[0]
    mask = batch["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(TextTower(export_tower(own, tmp_path / "towers")).encode(TEXTS), expected, atol=1e-5)


def test_a_tower_is_exported_once(weights: Path, cache: Path) -> None:
    # No process can start within no time at all: what comes back was there.
    assert export_tower(weights, cache) == export_tower(weights, cache, limit_s=0)


def test_an_export_that_takes_too_long_is_ended_and_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"took over 0\.05 s"):
        export_tower(weights, tmp_path, limit_s=0.05)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported_is_refused_in_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text(r"raise OSError('cannot read\nthese weights')")
    ours = Path(export.__file__).parents[1]
    monkeypatch.setitem(export.QUIET, "PYTHONPATH", os.pathsep.join([str(tmp_path), str(ours)]))
    with pytest.raises(ModelRejected) as caught:
        export_tower(weights, tmp_path / "towers")
    assert str(caught.value) == f"{weights} makes no text tower: OSError: cannot read"
    assert not list((tmp_path / "towers").iterdir())


def test_code_that_lies_beside_the_weights_is_not_run(weights: Path, tmp_path: Path) -> None:
    own = shutil.copytree(weights, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "never-heard-of", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="custom code"):
        text_export.main(own, tmp_path, "digest", Reading())
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(weights, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelRejected, match="safetensors"):
        export_tower(pickled, tmp_path / "towers")


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForCausalLM"])
def test_a_folder_that_lacks_weights_is_not_filled_with_noise(tmp_path: Path, kind: str) -> None:
    short = transformers.GPT2Config(
        vocab_size=99, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=False, architectures=["GPT2LMHeadModel"]
    )
    transformers.GPT2Model(short).save_pretrained(tmp_path)  # neither a third layer nor a head
    if kind == "AutoModel":
        short.n_layer = 3
        short.save_pretrained(tmp_path)
    with pytest.raises(ModelRejected, match=r"lacks (12|1) of the weights of a GPT2.*, (h\.2|lm_head)\..* first: copy"):
        text_export.load(tmp_path, kind)


def test_the_tokenizer_of_a_larger_model_is_refused(weights: Path, tmp_path: Path) -> None:
    other = shutil.copytree(weights, tmp_path / "other")
    config = transformers.BertConfig(vocab_size=29_000, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    transformers.BertModel(config).save_pretrained(other)  # no row for "juniper", which the export's own texts lack
    with pytest.raises(ModelRejected, match="has 30,522 tokens and its model 29,000: take"):
        export_tower(other, tmp_path / "towers")


def test_a_text_that_spells_a_token_without_a_row_is_read_as_any_other(weights: Path, tmp_path: Path) -> None:
    own = shutil.copytree(weights, tmp_path / "own")
    tokenizer = transformers.AutoTokenizer.from_pretrained(own, local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == 30_522
    tokenizer.save_pretrained(own)
    tower, plain = (TextTower(export_tower(one, tmp_path / "towers")) for one in (own, weights))
    np.testing.assert_array_equal(tower.encode(["<image> mug"]), plain.encode(["<image> mug"]))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_change_of_any_source_file_is_another_tower(weights: Path, tmp_path: Path, file: str) -> None:
    changed = shutil.copytree(weights, tmp_path / "changed")
    assert source_digest(changed) == source_digest(weights)
    with (changed / file).open("ab") as opened:
        opened.write(b" ")
    assert source_digest(changed) != source_digest(weights)


def test_the_default_weights_are_found_without_importing_their_package() -> None:
    assert (default_weights() / "tokenizer.json").exists()
    assert export.INSTALLED[export.DEFAULT_MODEL] not in sys.modules


@pytest.fixture(scope="module")
def graph(weights: Path, cache: Path) -> Path:
    return export_tower(weights, cache) / "tower.onnx"


def test_a_graph_agrees_with_its_model_at_shapes_it_has_not_seen(graph: Path) -> None:
    assert check_parity(pooled(tiny_bert(), "mean"), graph, 30_522) < 1e-5


def test_a_graph_tells_nothing_of_the_machine_that_made_it(graph: Path) -> None:
    assert not any(word in graph.read_bytes() for word in (b"site-packages", b"export.py", b"stack_trace"))


@pytest.mark.parametrize("change", [2.0, float("nan")])
def test_a_graph_of_other_weights_is_refused(graph: Path, change: float) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.get_parameter("encoder.layer.1.output.dense.weight").mul_(change)
    with pytest.raises(ModelRejected, match="differs from the model"):
        check_parity(pooled(model, "mean"), graph, 30_522)


def test_a_graph_with_two_inputs_taken_for_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = torch.ones(2, 7, dtype=torch.int64)
    monkeypatch.setattr(text_export, "_example", lambda vocabulary: (same, same))
    tower = pooled(tiny_bert(), "mean")
    write_graph(tower, tmp_path / "tower.onnx", 30_522)
    with pytest.raises(ModelRejected, match="differs from the model"):
        check_parity(tower, tmp_path / "tower.onnx", 30_522)
