"""OAKINK2: damaged and hostile files are named, cost their frame only, and run nothing."""

import os
import pickle
import re

import cv2
import numpy as np
import pytest
import torch
from fake_oakink2 import KEY_A, annotation_of, write_annotation
from oakink2_tree import by_name, copy_tree, open_oakink2, written_tree  # noqa: F401

from pam_aug.converters.oakink2_annotation import read_annotation
from pam_aug.converters.oakink2_program import read_programme
from pam_aug.converters.oakink2_tensors import load_tensor_pickle, to_array
from pam_aug.errors import SourceError, UnsafeInput
from pam_aug.rollouts.scene import LeftOut

pytestmark = pytest.mark.filterwarnings("ignore:oakink2")


def test_broken_images_are_named(tree, tmp_path):
    root = copy_tree(tree[0], tmp_path)
    source = open_oakink2(root)
    jpg = source.index.tracks[0].folder / "000009.jpg"
    png = source.index.tracks[-1].folder / "000108.png"
    for path, index in ((jpg, 0), (png, len(source) - 1)):
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"GIF89a", whole[:20]):
            path.write_bytes(broken)
            with pytest.raises(SourceError, match=path.name):
                source.item(index)
        path.write_bytes(whole)
        source.item(index)
    small = cv2.imencode(".jpg", np.zeros((120, 160, 3), np.uint8))[1].tobytes()
    jpg.write_bytes(small)
    with pytest.raises(SourceError, match="160 × 120 do not fit the intrinsics"):
        source.item(0)


def test_unknown_programme_entries_are_reported(tree, tmp_path):
    programme = read_programme(tree[0] / "program", KEY_A, "Make tea.")
    assert programme.unknown == ("(None, (41, 45))",)
    assert [p.name for p in programme.primitives] == ["hold", "pour"]
    assert programme.primitives[1].intervals == {"left": (17, 29), "right": (25, 37)}
    assert programme.order == ((0, 1),)
    (tmp_path / "program_info").mkdir()
    path = tmp_path / "program_info" / f"{KEY_A.replace('/', '++')}.json"
    path.write_text('{"__import__(\'os\')": {}, "(None, None)": {}, "((5, 2), None)": {}, "((1, 2), None)": 7}')
    assert len(read_programme(tmp_path, KEY_A).unknown) == 4
    path.write_text("{")
    with pytest.raises(SourceError, match="not JSON"):
        read_programme(tmp_path, KEY_A)


@pytest.mark.parametrize("protocol", range(6))
def test_09_tensors_of_every_kind_come_back_without_torch(tmp_path, protocol):
    """Pitfall 9."""
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    tensors = [base, base[1:, ::2], base.T, torch.zeros(0, 3), torch.tensor(2.5), torch.ones(2, 2, requires_grad=True),
               torch.arange(3), torch.tensor([True, False]), torch.ones(3, dtype=torch.float16),
               torch.ones(1).expand(4)]  # fmt: skip
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"t": tensors, "same": [base, base]}, protocol))
    back = load_tensor_pickle(tmp_path / "t.pkl")
    for got, want in zip(back["t"], tensors, strict=True):
        np.testing.assert_array_equal(got.array(), want.detach().numpy())
        assert got.array().dtype == want.detach().numpy().dtype
    assert back["same"][0] is back["same"][1]


class Evil:
    def __init__(self, call, *args):
        self.parts = (call, args)

    def __reduce__(self):
        return self.parts


def test_09_hostile_pickles_are_refused_and_run_nothing(tree, tmp_path):
    """Pitfall 9: in the file itself, in place of a storage, and in the pickle inside a storage."""
    root = copy_tree(tree[0], tmp_path)
    path = next((root / "anno_preview").glob("scene_01*"))
    honest = path.read_bytes()
    marker = tmp_path / "ran"
    annotation = annotation_of(tree[1], as_torch=True)
    annotation["extra"] = Evil(os.system, f"touch {marker}")
    write_annotation(path, annotation)
    with pytest.raises(UnsafeInput, match=rf"{re.escape(path.name)}.*system"):
        open_oakink2(root, sequences=[KEY_A]).item(0)
    inner = pickle.dumps(Evil(os.system, f"touch {marker}"), 2)
    annotation = annotation_of(tree[1], as_torch=True)
    annotation["raw_mano"][9]["rh__tsl"] = Evil(
        torch._utils._rebuild_tensor_v2, Evil(torch.storage._load_from_bytes, inner), 0, (1, 3), (3, 1), False, {}
    )
    write_annotation(path, annotation)
    with pytest.raises(UnsafeInput, match=rf"{re.escape(path.name)}.*right hand, frame 9, tsl.*system"):
        open_oakink2(root, sequences=[KEY_A]).item(0)
    for foreign in (torch.nn.Linear, torch.load, torch._utils._rebuild_parameter, eval):
        annotation["extra"] = foreign
        write_annotation(path, annotation)
        with pytest.raises(UnsafeInput):
            read_annotation(path)
    assert not marker.exists()
    path.write_bytes(honest)
    assert len(open_oakink2(root, sequences=[KEY_A]).item(0).sample.hands) == 2


@pytest.mark.parametrize("change", [(0, (1, 4), (4, 1)), (1, (1, 3), (3, 1)), (-1, (1, 3), (3, 1)), (0, (9**9,), (0,))])
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path, change):
    storage = torch.zeros(3).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    forged = Evil(torch._utils._rebuild_tensor_v2, typed, *change, False, {})
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"t": forged}))
    with pytest.raises(SourceError):
        to_array(load_tensor_pickle(tmp_path / "t.pkl")["t"], (1, 3), "t")


def test_damaged_annotations_are_named(tree, tmp_path):
    path = tmp_path / "anno.pkl"
    write_annotation(path, annotation_of(tree[1], as_torch=True))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole) - 1, 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"anno\.pkl"):
            read_annotation(path)
    for content, what in (([1], "list"), ({}, "cam_def"), ({"cam_def": 3}, "raw_mano")):
        write_annotation(path, content)
        with pytest.raises(SourceError, match=what):
            read_annotation(path)
    annotation = annotation_of(tree[1], as_torch=False)
    write_annotation(path, {**annotation, "obj_list": ["../../etc"]})
    with pytest.raises(SourceError, match="is no object id"):
        read_annotation(path)
    with pytest.raises(SourceError, match="no such annotation"):
        read_annotation(tmp_path / "none.pkl")


def test_a_bad_part_costs_its_frame_only(tree, tmp_path):
    """NaN, wrong shape, a zero quaternion, a scaled pose, a missing entry: named, and other frames stay usable."""
    root = copy_tree(tree[0], tmp_path)
    annotation = annotation_of(tree[1], as_torch=True)
    mano = annotation["raw_mano"]
    mano[9]["rh__tsl"][0, 1] = float("nan")
    mano[13]["lh__pose_coeffs"] = torch.zeros(1, 16, 4)
    mano[17]["rh__betas"] = torch.zeros(10)
    del mano[25]["lh__tsl"]
    del mano[29]
    annotation["cam_extr"]["allocentric_top"][33] = np.eye(4) * 2.0
    annotation["obj_transf"]["C12001"][37] = np.full((4, 4), np.nan)
    del annotation["obj_transf"]["O02@0015@00001"]
    write_annotation(next((root / "anno_preview").glob("scene_01*")), annotation)
    source = open_oakink2(root, sequences=[KEY_A], cameras=["allocentric_top"])
    number = by_name(source)
    for frame, left, why in ((9, "left", "NaN"), (13, "right", "unit quaternions"), (17, "left", "shape"),
                             (25, "right", "lh__tsl is missing")):  # fmt: skip
        sample = source.item(number["104422071041", frame]).sample
        assert [h.side for h in sample.hands] == [left]
        assert any(n.startswith("left out: ") and why in n for n in sample.source.notes)
        assert not any(str(tmp_path) in n for n in sample.source.notes)
    with pytest.raises(LeftOut, match=r"no hand can be used.*frame 29"):
        source.item(number["104422071041", 29])
    with pytest.raises(SourceError, match="allocentric_top, frame 33, extrinsics: not a rigid"):
        source.item(number["104422071041", 33])
    assert [o.valid for o in source.item(number["104422071041", 37]).sample.objects] == [False, False, True]
    assert len(source.item(number["104422071041", 41]).sample.hands) == 2
