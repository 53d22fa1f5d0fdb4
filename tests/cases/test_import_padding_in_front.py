"""Arrays that are padded in front lost every real frame (yaohungt/Multimodal-Transformer#3).

The right frames are those of the arrays before they were padded.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mer.pipeline.errors import DataError

from tests.cases.imports import DIMS, LENGTHS, imported, mer, split_of, steps


@pytest.mark.parametrize("lengths", ["true", "full", None, "array of floats"])
@pytest.mark.parametrize("front", [True, False])
def test_padding_on_either_side_leaves_the_frames(tmp_path, front, lengths):
    content = {
        name: split_of(name, pad=not front, front=front) for name in ("train", "valid", "test")
    }
    given = {
        "true": LENGTHS,
        "full": [6] * 4,
        "array of floats": np.array(LENGTHS, np.float64)[:, None],
    }
    for part in content.values():
        part |= {f"{m}_lengths": given[lengths] for m in DIMS} if lengths else {}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    code, _, err = mer("import", "mmsa", tmp_path / "x.pkl", "--out", tmp_path / "f.h5")
    assert code == 0 and err.count("padded in front in 3 of 4") == (9 if front else 0) - (0)
    from mer.pipeline.store import FeatureStore

    store = FeatureStore(tmp_path / "f.h5")
    for seed, (m, dim) in enumerate(DIMS.items()):
        x = steps(dim, seed)
        for row in range(12):
            n = LENGTHS[row % 4]
            right = x[row % 4, 6 - n :] if front else x[row % 4, :n]
            found = store.features(m, row)
            if not front and lengths == "full":  # zeros behind, which the lengths say are steps
                assert len(found) == 6 and "kept, as their lengths say" in err
            np.testing.assert_array_equal(found[:n], right)


def test_a_length_that_leaves_every_frame_out_is_an_error(tmp_path):
    part = split_of("train")
    part["audio"][1] = 0
    part["audio"][1, 2:5] = 1  # three frames in the middle of six
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"train": part | {"audio_lengths": [6, 2, 6, 6]}})
    )
    with pytest.raises(
        DataError, match="audio of 'train1' has length 2, but its data are steps 3 to 5 of 6"
    ):
        imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")


def test_data_behind_the_length_is_counted(tmp_path):
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"train": split_of("train") | {"audio_lengths": [2, 6, 6, 6]}})
    )
    code, _, err = mer("import", "mmsa", tmp_path / "x.pkl", "--out", tmp_path / "f.h5")
    assert (
        code == 0
        and "train: audio: 1 of 4 utterances have data behind their length, which were left out"
        in err
    )


@pytest.mark.parametrize("front", [True, False])
def test_npz_with_lengths_takes_the_frames_and_without_keeps_and_counts(tmp_path, front):
    x = steps(5, 0)
    for one, n in zip(x, LENGTHS, strict=True):
        one[: 6 - n] = 0 if front else one[: 6 - n]
        one[n:] = one[n:] if front else 0
    common = {"id": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}
    np.savez(tmp_path / "with.npz", audio=x, audio_lengths=LENGTHS, **common)
    np.savez(tmp_path / "without.npz", audio=x, **common)
    store = imported("npz", tmp_path / "with.npz", tmp_path / "with.h5")
    for row, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(
            store.features("audio", row), x[row, 6 - n :] if front else x[row, :n]
        )
    code, _, err = mer("import", "npz", tmp_path / "without.npz", "--out", tmp_path / "without.h5")
    assert (
        code == 0
        and f"{3 * front} utterances begin and {3 * (not front)} end with steps that are all zero"
        in err
    )


def test_a_silent_first_frame_of_a_file_padded_behind_stays(tmp_path):
    part = split_of("train", pad=True)
    part["audio"][1, 0] = 0
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": part}))
    code, _, err = mer("import", "mmsa", tmp_path / "x.pkl", "--out", tmp_path / "f.h5")
    assert code == 0 and "1 of 4 utterances begin with steps that are all zero; kept" in err
