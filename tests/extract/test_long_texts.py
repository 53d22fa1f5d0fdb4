"""`--text-windows windows`, through the whole extraction, for each family of text encoders. What is
true is computed here with transformers, window by window, cut by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.encoders.text import Text
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.extraction import extract
from mer.pipeline.extraction.fingerprint import fingerprint
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.store import FeatureStore

from tests.encoders import textmodels
from tests.encoders.test_text_families import hidden_states, reference
from tests.extract import corpus

LIMIT = textmodels.POSITIONS
KINDS = {"roberta": (1, 1), "llama": (1, 0), "gpt2": (0, 0), "bart": (1, 1), "t5": (0, 1)}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return textmodels.save(tmp_path_factory.mktemp("long") / request.param, request.param)


def options(folder: Path, **changes) -> ExtractOptions:
    asked = {"audio_encoder": "none", "text_encoder": str(folder), "dtype": "float32"}
    return corpus.options(**asked | {"text_windows": "windows", "precision": "fp32"} | changes)


def manifest(root: Path, texts: list[str]) -> Manifest:
    rows = [Utterance(f"u{i}", text=text, label="a") for i, text in enumerate(texts)]
    return Manifest("toy", "single", ("a", "b"), tuple(rows), root)


def made(texts: list[str], root: Path, asked: ExtractOptions) -> FeatureStore:
    extract(manifest(root, texts), root / "feats.h5", asked)
    return FeatureStore(root / "feats.h5")


def words(count: int, seed: int = 0) -> str:
    """So many tokens: of the tokenizer's own words, each one token."""
    known = [" quick", " brown", " jumps", " over", " lazy", " dog", " fox"]
    return "".join(np.random.default_rng(seed).choice(known, count))


def tokens(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"]


def by_hand(folder: Path, ids: list[int]) -> list[np.ndarray]:
    """Each layer's states of a transcript of 1.75 windows' length, which two steps cover."""
    before, behind = KINDS[folder.name]
    room = LIMIT - before - behind
    body = ids[before : len(ids) - behind]
    over = len(body) - room
    assert room // 2 < over <= 2 * (room // 2), "three windows"
    starts = [0, over // 2, over]
    causal = folder.name in textmodels.DECODERS
    ends = []  # of what is kept of each window, in the body
    for left, right in zip(starts, starts[1:], strict=False):
        ends.append(left + room if causal else (left + room + right) // 2)
    ends.append(len(body))
    model, joined = reference(folder), []
    for number, start in enumerate(starts):
        row = [*ids[:before], *body[start : start + room], *ids[len(ids) - behind :]]
        states = hidden_states(model, np.array(row))
        first = 0 if not number else before + ends[number - 1] - start
        last = len(row) if number == 2 else before + ends[number] - start
        joined.append([state[first:last] for state in states])
    return [np.concatenate(parts) for parts in zip(*joined, strict=True)]


def test_a_long_transcript_is_joined_from_its_windows(tmp_path, folder):
    text = words(LIMIT + 40)
    ids = tokens(folder, text)
    store = made([text, "the fox", text], tmp_path, options(folder))
    true = by_hand(folder, ids)
    for row in (0, 2):  # they share their items
        frames = store.features("text", row)
        assert frames.shape == (len(ids), true[-1].shape[1])
        np.testing.assert_allclose(frames, true[-1], atol=2e-5, rtol=1e-5)
        means = store.layer_means("text", [row])[0]
        np.testing.assert_allclose(means, [s.mean(0) for s in true], atol=2e-5, rtol=1e-4)
    assert store.flags[0] == store.flags[2] == Flag.chunked and store.flags[1] == 0


def test_at_the_limit_nothing_changes(tmp_path, folder):
    """A transcript of exactly the limit gives the same bytes with windows as without; one token
    more is cut, or has two windows.
    """
    special = sum(KINDS[folder.name])
    texts = [words(LIMIT - special), words(LIMIT - special + 1), "fox"]
    assert len(tokens(folder, texts[0])) == LIMIT
    assert len(tokens(folder, texts[1])) == LIMIT + 1
    stores = {}
    for way in ("cut", "windows"):
        stores[way] = made(texts, tmp_path / way, options(folder, text_windows=way))
    for row in (0, 2):
        a, b = (stores[way].features("text", row) for way in stores)
        np.testing.assert_array_equal(a, b)
    assert [len(stores[way].features("text", 1)) for way in stores] == [LIMIT, LIMIT + 1]
    assert list(stores["cut"].flags) == [0, Flag.text_cut, 0]
    assert list(stores["windows"].flags) == [0, Flag.chunked, 0]


def test_layers_of_windows(tmp_path, folder):
    text = words(LIMIT + 40)
    true = by_hand(folder, tokens(folder, text))
    store = made([text], tmp_path, options(folder, text_layer="stack:1-last:2"))
    side_by_side = np.concatenate([true[1], true[3]], axis=1)
    np.testing.assert_allclose(store.features("text", 0), side_by_side, atol=2e-5, rtol=1e-5)
    assert store.header.modalities["text"].stack == (1, 3)


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_batches_and_order_do_not_matter(tmp_path, family):
    """The same features from one item at a time, from large batches, and in another order."""
    folder = textmodels.save(tmp_path / family, family)
    texts = [words(count, count) for count in (5, 200, 63, 64, 65, 130, 2, 90)]
    one = made(texts, tmp_path / "one", options(folder, budget_tokens=1))
    many = made(texts[::-1], tmp_path / "many", options(folder, budget_tokens=2000, threads=2))
    for row in range(len(texts)):
        a, b = one.features("text", row), many.features("text", len(texts) - 1 - row)
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_recipe_has_it_only_where_it_is_asked_for(tmp_path, folder):
    rows = manifest(tmp_path, ["fox"])
    keys = {fingerprint(rows, options(folder, text_windows=way)) for way in ("cut", "windows")}
    assert len(keys) == 2
    store = made(["fox"], tmp_path, options(folder, text_windows="cut", layer_means=False))
    assert list(store.header.recipe["text"]) == ["encoder"]
    store = made(["fox"], tmp_path, options(folder, force=True))
    assert store.header.recipe["text"]["windows"] == "windows"


def test_the_recipe_gives_its_options_again(folder):
    """As `mer predict` asks for a run's features, and a changed store for its old ones."""
    asked = Text.of(options(folder, text_layer="stack:0-2:2"))
    recipe = asked.recipe(asked.resolve(str(folder)))
    assert (recipe["layer"], recipe["windows"]) == ("stack:0-2:2", "windows")
    given = Text.options_of(recipe)
    again = Text.of(ExtractOptions(text_encoder=str(folder), **given))
    assert again.recipe(again.resolve(str(folder))) == recipe
    assert Text.options_of({"encoder": "of an old store"}) == {
        "text_layer": "last",
        "text_windows": "cut",
        "layer_means": False,
    }
    assert Text.differs("windows", None, "windows") == "text windows: cut there, windows now"
    assert Text.differs("layer", "3", None) == "text layer: 3 there, last now"


def test_an_unknown_value_is_one_line():
    with pytest.raises(DataError, match="--text-windows 'slide' is not cut or windows"):
        ExtractOptions(text_windows="slide")


def with_tokenizer(folder: Path, tokenizer) -> None:
    """Put it in the place of the folder's own."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def test_a_transcript_without_a_token_is_counted(tmp_path):
    """A tokenizer that knows a few letters only, and puts nothing around them."""
    from tokenizers import Tokenizer, models

    folder = textmodels.save(tmp_path / "gpt2", "gpt2")
    letters = {letter: number for number, letter in enumerate("thefoxab")}
    with_tokenizer(folder, Tokenizer(models.BPE(letters, [])))
    texts = ["the fox", "你好", "fox"]
    rows = manifest(tmp_path, texts)
    report = extract(rows, tmp_path / "feats.h5", options(folder, text_windows="cut"))
    store = FeatureStore(tmp_path / "feats.h5")
    assert list(store.flags) == [0, Flag.wordless, 0] and not report.failures
    assert [len(store.features("text", row)) for row in (0, 2)] == [6, 3]
    assert list(store.lengths("text")) == [6, 0, 3]


def test_a_tokenizer_that_refuses_a_transcript_is_one_line(tmp_path):
    """The library raises a bare Exception."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = textmodels.save(tmp_path / "gpt2", "gpt2")
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "fox": 1, "a": 2, "b": 3}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with_tokenizer(folder, tokenizer)
    rows = manifest(tmp_path, ["the fox", "the cat"])
    with pytest.raises(EncoderError, match="text encoder gpt2: its tokenizer refuses") as raised:
        extract(rows, tmp_path / "feats.h5", options(folder))
    assert len(str(raised.value)) <= 300


def test_rows_that_share_a_transcript_share_its_windows(tmp_path, folder):
    text = words(20 * LIMIT)
    rows = manifest(tmp_path, [text] * 5)
    report = extract(rows, tmp_path / "feats.h5", options(folder))
    store = FeatureStore(tmp_path / "feats.h5")
    special = sum(KINDS[folder.name])
    room = LIMIT - special
    body = len(tokens(folder, text)) - special
    windows = 1 + -(-(body - room) // (room // 2))
    assert report.extracted == 5
    # padded over valid length is 1 where all windows are equally long: none is computed twice
    assert report.padding == {"text": 1.0}
    assert report.batches == {"text": windows}
    first = store.features("text", 0)
    assert len(first) == len(tokens(folder, text)) and np.isfinite(first).all()
    np.testing.assert_array_equal(first, store.features("text", 4))
