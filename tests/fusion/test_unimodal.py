"""Unimodal labels: learnt by the heads of single modalities (`data.unimodal_labels`), and what
these heads and emotion discrimination are measured by. Figures are held against scikit-learn and
against loops.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from sklearn import metrics as reference

from mer.cli import main
from mer.fusion import config, report
from mer.fusion.data import feature_sets, sources, splits, unimodal
from mer.fusion.evaluation import inconsistency, robustness, robustness_tables
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

from tests.fusion.models import make_batch, make_model, make_spec
from tests.fusion.stores import LABELS, make_store, quiet
from tests.fusion.test_crosscorpus import renamed

pytestmark = pytest.mark.usefixtures("few_resamples")

LEARN = "data.unimodal_labels=true"
QUICK = {
    "drkf": ("model_args.d=16", "model_args.layers=1", "model_args.ffn=32", "model_args.heads=2"),
    "dmd": ("model_args.width=8", "model_args.heads=2", "model_args.layers=1"),
}
# the auxiliary terms of DRKF, which this has nothing to do with
ALONE = tuple(f"model_args.w_{term}=0" for term in ("mi", "cross", "rec", "ed"))


def own(row: dict) -> list[str]:
    """The words say the next class, or the other sign, every seventh row nobody knows what; the
    voice every second time the same as the words, else what the label says.
    """
    number = int(row["id"][1:])
    if row["label"] is not None:
        label = row["label"]
        words = LABELS[(LABELS.index(label) + 1) % 3]
    else:
        label, words = row["targets"][0], -row["targets"][0]
    said = [f"audio={words if number % 2 else label}"]
    return said if number % 7 == 0 else [f"text={words}", *said]


def labelled(folder, **given) -> FeatureStore:
    """A store whose rows say what each modality says."""
    return renamed(make_store(folder, **given), lambda row: {**row, "unimodal": own(row)})


def settings(*more: str, model: str = "drkf") -> config.TrainConfig:
    return config.load(model=model, sets=[*QUICK.get(model, ()), "train.epochs=1", *more])


# ---- Which rows disagree


def test_inconsistent_rows_are_those_of_a_loop():
    """200 random cases of classes and of numbers, zeros, ties and gaps among them."""
    rng = np.random.default_rng(0)
    for case in range(200):
        numbers = bool(case % 2)
        columns = {}
        for m in ("text", "audio", "vision")[: 2 + case % 3 // 2]:
            if numbers:
                values = rng.choice([-1.0, -0.2, 0.0, 0.4, np.nan], size=(9, 1))
                columns[m] = values.astype(np.float32)
            else:
                columns[m] = rng.integers(-1, 3, size=9)
        wanted, known = [], []
        for row in range(9):
            there = []
            for values in columns.values():
                value = float(values[row].item())
                if numbers and not np.isnan(value):
                    there.append((value > 0) - (value < 0))
                elif not numbers and value >= 0:
                    there.append(value)
            known.append(len(there) > 1)
            wanted.append(len(set(there)) > 1)
        found = inconsistency.inconsistent(columns)
        assert found[0].tolist() == wanted and found[1].tolist() == known


def test_a_score_is_held_against_the_rows_that_are_known():
    rng = np.random.default_rng(1)
    columns = {"text": rng.integers(-1, 2, size=60), "audio": rng.integers(-1, 2, size=60)}
    score = rng.choice([0.1, 0.5, 0.6, 0.9], size=60).tolist()
    score[3] = None
    differ, known = inconsistency.inconsistent(columns)
    known[3] = False
    found = inconsistency.told_by(score, columns)
    said = np.array([0.0 if value is None else value for value in score])[known]
    assert (found.n, found.of) == (differ[known].sum(), known.sum())
    assert found.auc == pytest.approx(reference.roc_auc_score(differ[known], said))
    wanted = reference.balanced_accuracy_score(differ[known], said > 0.5)
    assert found.balanced_accuracy == pytest.approx(wanted)
    assert inconsistency.told_by(score, {"text": columns["text"]}) is None
    assert inconsistency.told_by([None] * 60, columns) is None


# ---- What heads learn


@pytest.mark.parametrize("model", ["drkf", "dmd", "dhmd"])
@pytest.mark.parametrize("task", ["single", "regression"])
def test_a_head_learns_its_own_labels_and_skips_rows_without(model, task):
    spec = make_spec(task=task)
    batch, net = make_batch(spec), make_model(model, spec).eval()
    gap = -1 if task == "single" else torch.nan
    words = batch.target.roll(1, 0).clone()
    words[[0, 5]] = gap
    taught = replace(batch, unimodal={"text": words})
    torch.manual_seed(0)
    plain = net.losses(batch, 1.0)
    torch.manual_seed(0)
    found = net.losses(taught, 1.0)
    heads = net(batch).unimodal
    known = [1, 2, 3, 4, 6, 7]
    if task == "single":
        wanted = F.cross_entropy(heads["text"][known], words[known])
        common = F.cross_entropy(heads["text"], batch.target)
    else:
        wanted = (heads["text"][known] - words[known]).abs().mean()
        common = (heads["text"] - batch.target).abs().mean()
    name = "uni_text" if model == "drkf" else "homo"
    torch.testing.assert_close(found[name] - plain[name], wanted - common)
    changed = {term for term in found if not torch.equal(found[term], plain[term])}
    assert changed == ({"uni_text", "kl_text"} if model == "drkf" else {"homo"})
    nobody = replace(batch, unimodal={"text": torch.full_like(words, gap)})
    assert all(value.isfinite() for value in net.losses(nobody, 1.0).values())


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_batches_bring_the_labels_of_their_rows(tmp_path, residence):
    store = labelled(tmp_path, n=30)
    asked = config.DataConfig(unimodal_labels=True, residence=residence)
    spec = feature_sets.spec(store, asked)
    rows = np.arange(4, 24)
    target = splits.targets(store.table(), spec.task, spec.labels)[rows]
    part = sources.batch_source(store, spec, asked, rows, target, device="cpu")
    wanted = unimodal.targets(store.table(), spec.task, spec.labels)
    for batch in part.batches(part.shuffled(7, (0,))):
        for whole in (batch, *batch.split([2, len(batch) - 2])):
            for m in ("audio", "text"):
                assert whole.unimodal[m].tolist() == wanted[m][whole.row].tolist()
    plain = sources.batch_source(store, spec, config.DataConfig(), rows, target, device="cpu")
    assert next(plain.batches(plain.in_order(8))).unimodal is None


def test_what_is_learnt_is_what_the_head_then_says(tmp_path):
    """Words that say another class than the label: their head learns theirs, or the label."""
    store = labelled(tmp_path, signal=8.0)
    found = {}
    more = ("train.epochs=6", "optim.lr=1e-2", "train.batch_size=16", *ALONE)
    for name, sets in (("off", ()), ("on", (LEARN,))):
        run = experiment.train(store, settings(*more, *sets), tmp_path / name, note=quiet)
        found[name] = evaluate(run, note=quiet)
    assert found["on"].own_labels["text"]["wa"] > 0.9 > 0.1 > found["on"].unimodal["text"]["wa"]
    assert found["off"].own_labels["text"]["wa"] < 0.1 < 0.9 < found["off"].unimodal["text"]["wa"]
    assert found["on"].metrics["wa"] > 0.9


# ---- Emotion discrimination by the labels of the modalities themselves


def class_of(value: float, task: str) -> float | None:
    """What a label says, None where there is none: its class, or of a number the sign."""
    if task == "single":
        return None if value < 0 else value
    return None if np.isnan(value) else np.sign(value)


@pytest.mark.parametrize("task", ["single", "regression"])
def test_pairs_are_alike_where_the_labels_of_their_modalities_are(task):
    """200 random cases against loops, gaps, zeros and rows that nobody labelled among them."""
    rng = np.random.default_rng(2)
    values = [-1, 0, 1, 2] if task == "single" else [-1.0, -0.2, -0.0, 0.0, 0.4, np.nan]
    spec = make_spec(task=task)
    net = make_model("drkf", spec, ed_labels="own")
    for case in range(200):
        batch = make_batch(spec, b=int(rng.integers(1, 7)))
        own = {}
        for m in ("audio", "text")[case % 2 :]:
            own[m] = torch.as_tensor(rng.choice(values, size=batch.target.shape))
        batch = replace(batch, unimodal=own)
        same, known = net.truths(batch)["audio", "text"]
        taught = {m: batch.taught(m)[0].flatten().tolist() for m in ("audio", "text")}
        for i, heard in enumerate(taught["audio"]):
            for j, read in enumerate(taught["text"]):
                one, other = class_of(heard, task), class_of(read, task)
                assert bool(known[i, j]) == (one is not None and other is not None)
                if known[i, j]:
                    assert bool(same[i, j]) == (one == other)


def test_by_default_pairs_go_by_the_common_labels():
    batch = make_batch(make_spec())
    words = replace(batch, unimodal={"text": batch.target.roll(1, 0)})
    net = make_model("drkf", make_spec())
    (same, known), (again, _) = (net.truths(b)["audio", "text"] for b in (batch, words))
    assert torch.equal(same, batch.target[:, None] == batch.target[None]) and known.all()
    assert torch.equal(again, same)


def test_true_pairs_are_what_their_own_labels_say():
    """Of two utterances nobody is another's partner where only true pairs have labels."""
    spec = make_spec()
    batch = make_batch(spec, b=2)
    own = {"audio": torch.tensor([0, 1]), "text": torch.tensor([0, 2])}
    net = make_model("drkf", spec, ed_labels="own", ed_natural=True).eval()
    batch = replace(batch, unimodal=own)
    seen = net.encode(batch)
    z = net.fe(seen.x, seen.mask)[0]
    asked = []

    def remembered(logit, target, valid):
        asked.append((target[-2:].tolist(), valid[-2:].tolist()))
        return logit.sum() * 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mer.fusion.models.drkf.balanced_bce", remembered)
        net.discrimination(seen, batch, z)
    assert asked == [([True, False], [True, True])]


def contradicting(folder, n: int) -> FeatureStore:
    """Voices and words that each say a class of their own; the common label is the voice's."""
    rng = np.random.default_rng(5)
    centre = {m: np.random.default_rng(k).normal(size=(3, 6)) for k, m in enumerate("av")}
    voice, words = rng.integers(3, size=(2, n))
    shard = folder / "c.shards" / "shard-00000.h5"
    shard.parent.mkdir(parents=True)
    with ShardWriter(shard, {"audio": 6, "text": 6}) as writer:
        for i in range(n):
            heard = 3 * centre["a"][voice[i]] + rng.normal(size=(2, 6))
            read = 3 * centre["v"][words[i]] + rng.normal(size=(2, 6))
            writer.add(f"u{i:03d}", {"audio": heard, "text": read}, duration=1.0)
    rows = []
    for i in range(n):
        rows.append(
            {
                "id": f"u{i:03d}",
                "split": ("train", "train", "train", "dev", "test")[i // 4 % 5],
                "dialogue": f"d{i // 4}",
                "label": LABELS[voice[i]],
                "unimodal": [f"audio={LABELS[voice[i]]}", f"text={LABELS[words[i]]}"],
            }
        )
    info = {m: ModalityInfo(6, None, encoder=m) for m in ("audio", "text")}
    return build_index(
        folder / "c.h5", [shard], rows, dataset="c", task="single", labels=LABELS, modalities=info
    )


def test_what_contradicts_itself_is_told_by_pairs_of_their_own_labels(tmp_path):
    """The common label is the voice's alone, so that words tell nothing of it: only their own
    labels teach that an utterance contradicts itself.
    """
    store = contradicting(tmp_path / "store", n=160)
    others = tuple(f"model_args.w_{term}=0" for term in ("mi", "cross", "rec", "kl"))
    more = (
        *others,
        LEARN,
        "model_args.w_ed=1",
        "model_args.ed_anchors=1",
        "train.epochs=12",
        "optim.lr=5e-3",
        "train.batch_size=16",
        "train.select_metric=loss",
        "train.patience=12",
    )
    found = {}
    for name, sets in (
        ("common", ()),
        ("own", ("model_args.ed_labels=own",)),
    ):
        run = experiment.train(store, settings(*more, *sets), tmp_path / name, note=quiet)
        found[name] = evaluate(run, note=quiet).unlike_labels.auc
    assert found["own"] > 0.85 > 0.6 > found["common"]


def test_pairs_by_own_labels_need_these(tmp_path):
    own = "model_args.ed_labels=own"
    store = labelled(tmp_path / "store", n=40)
    with pytest.raises(DataError, match="set data.unimodal_labels=true, too"):
        experiment.train(store, settings(own), tmp_path / "a", note=quiet)
    plain = make_store(tmp_path / "plain", n=40)
    with pytest.raises(DataError, match="has no unimodal labels; prepare it with --unimodal"):
        experiment.train(plain, settings(own, LEARN), tmp_path / "b", note=quiet)
    off = ("model_args.w_uni=0", "model_args.w_kl=0", "model_args.w_mi=0", "model_args.w_cross=0")
    experiment.train(store, settings(own, LEARN, *off), tmp_path / "c", note=quiet)
    with pytest.raises(DataError, match="ed_labels='ours': known are common, own"):
        settings("model_args.ed_labels=ours")


# ---- Figures


def test_figures_are_those_of_the_predictions(tmp_path):
    store = labelled(tmp_path, n=80)
    run = experiment.train(store, settings(LEARN), tmp_path / "run", seeds=2, note=quiet)
    whole = evaluate(run, note=quiet)
    each = []
    for child in run.children:
        rows = pq.read_table(child.path / "predictions.parquet").to_pylist()
        there = [row for row in rows if row["unimodal_text"] is not None]
        right = np.mean([row["unimodal_text"] == row["pred_text"] for row in there])
        differ = [row["unimodal_text"] != row["unimodal_audio"] for row in there]
        ed = reference.roc_auc_score(differ, [row["disagreement"] for row in there])
        heads = [row["pred_text"] != row["pred_audio"] for row in there]
        each.append((right, ed, reference.balanced_accuracy_score(differ, heads)))
    assert whole.own_labels["text"].n == len(there)
    assert whole.own_labels["text"].without == len(rows) - len(there) > 0
    assert whole.unlike_labels.n == sum(differ) and whole.unlike_labels.of == len(there)
    found = (
        whole.own_labels["text"]["wa"],
        whole.unlike_labels.auc,
        whole.unlike_heads.balanced_accuracy,
    )
    assert found == pytest.approx(np.mean(each, axis=0), abs=1e-6)
    titles = {table.title: table for table in report.tables(whole)}
    alone = titles["each unimodal head against the labels of its own modality"]
    assert [row[0] for row in alone.rows] == ["audio", "text"]
    told = [row[0] for row in titles["telling apart what disagrees"].rows]
    assert f"unimodal labels differ ({sum(differ)} of {len(there)})" in told
    other = labelled(tmp_path / "other", n=40, dataset="other", prefix="o")
    assert evaluate(run, other.path, mapping=["calm=sad"], note=quiet).own_labels is None


def test_values_have_the_sign_of_a_class(tmp_path):
    store = labelled(tmp_path, n=60, task="regression")
    run = experiment.train(store, settings(LEARN, model="dmd"), tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    rows = pq.read_table(run.path / "predictions.parquet").to_pylist()
    there = [row for row in rows if row["unimodal_text"] is not None]
    errors = [abs(row["unimodal_text"] - row["pred_text"]) for row in there]
    assert found.own_labels["text"]["mae"] == pytest.approx(np.mean(errors), abs=1e-6)
    differ = [np.sign(row["unimodal_text"]) != np.sign(row["unimodal_audio"]) for row in there]
    assert found.unlike_labels is None  # it has no ED
    assert (found.unlike_heads.n, found.unlike_heads.of) == (sum(differ), len(there))


def test_robustness_has_the_rows_where_labels_agree_and_differ(tmp_path):
    store = labelled(tmp_path / "store", n=60)
    run = experiment.train(store, settings(LEARN, *ALONE), tmp_path / "run", note=quiet)
    evaluate(run, note=quiet)
    measured = robustness.measure(run, note=quiet)
    rows = pq.read_table(run.path / "predictions.parquet").to_pylist()
    there = [row for row in rows if row["unimodal_text"] is not None]
    for agree in (True, False):
        mine = [r for r in there if (r["unimodal_text"] == r["unimodal_audio"]) == agree]
        (found,) = [one for one in measured.heads if one.labels and one.agree == agree]
        wanted = reference.f1_score(
            [r["label"] for r in mine], [r["pred"] for r in mine], average="weighted"
        )
        assert (found.n, found.value) == (len(mine), pytest.approx(wanted))
    titles = [table.title for table in robustness_tables.tables(measured)]
    assert "where the unimodal heads, and the unimodal labels, agree and disagree" in titles
    assert robustness.stored(run).heads == measured.heads


# ---- What is said, and what is refused


def notes_of(store: FeatureStore, folder, *more: str) -> str:
    lines: list[str] = []
    experiment.train(store, settings(LEARN, *more, *ALONE), folder, note=lines.append)
    return "\n".join(lines)


def test_gaps_and_labels_that_nothing_can_be_learnt_from_are_said(tmp_path):
    store = labelled(tmp_path / "a", n=40)
    said = notes_of(store, tmp_path / "run")
    assert "text: 4 of 24 training rows without a unimodal label, left out of its head" in said
    words = renamed(store, lambda row: {**row, "unimodal": ["text=sad", "vision=sad"]})
    said = notes_of(words, tmp_path / "b")
    assert "all train's unimodal labels of text are sad: nothing to learn from them" in said
    assert "no unimodal labels of audio: its head learns the common label" in said
    assert "unimodal labels of vision are not used: the model does not read it" in said


def test_what_cannot_be_learnt_is_refused_in_one_line(tmp_path):
    plain = make_store(tmp_path / "plain", n=40)
    with pytest.raises(DataError, match="has no unimodal labels; prepare it with --unimodal"):
        experiment.train(plain, settings(LEARN), tmp_path / "a", note=quiet)
    store = labelled(tmp_path / "store", n=40)
    with pytest.raises(DataError, match="concat has no unimodal heads that learn, as drkf, dmd"):
        experiment.train(store, settings(LEARN, model="concat"), tmp_path / "b", note=quiet)
    off = (LEARN, "model_args.w_uni=0", "model_args.w_kl=0")
    with pytest.raises(DataError, match="drkf has no unimodal heads that learn"):
        experiment.train(store, settings(*off), tmp_path / "c", note=quiet)
    faces = renamed(store, lambda row: {**row, "unimodal": ["vision=sad"]})
    with pytest.raises(DataError, match="those of vision, and the model reads audio, text"):
        experiment.train(faces, settings(LEARN), tmp_path / "d", note=quiet)


def test_other_unimodal_labels_are_another_run_only_where_they_are_learnt(tmp_path):
    store = labelled(tmp_path / "store", n=40)
    for sets, name in (((), "off"), ((LEARN,), "on")):
        experiment.train(store, settings(*sets, *ALONE), tmp_path / name, note=quiet)
    changed = renamed(store, lambda row: {**row, "unimodal": ["text=sad", "audio=calm"]})
    said: list[str] = []
    experiment.train(changed, settings(*ALONE), tmp_path / "off", note=said.append)
    assert any("already trained" in line for line in said)
    with pytest.raises(DataError, match="holds another run .*other unimodal labels"):
        experiment.train(changed, settings(LEARN, *ALONE), tmp_path / "on", note=quiet)


def test_the_command_prints_the_tables(tmp_path):
    store = labelled(tmp_path / "store", n=40)
    experiment.train(store, settings(LEARN, *ALONE), tmp_path / "run", note=quiet)
    done = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert "each unimodal head against the labels of its own modality" in done.stdout
    assert "unimodal labels differ (" in done.stdout
