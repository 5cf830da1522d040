"""DexYCB: damaged, foreign and hostile files are named, and nothing in them is run."""

import shutil
import zipfile

import numpy as np
import pytest
from dexycb_tree import copied_tree, labels_path, no_mano_by_environment, open_dexycb, rewrite, written_tree  # noqa: F401
from fake_dexycb import SERIALS
from fake_mano import fake_hand, write_official

from pam_aug.converters.dexycb_calibration import T_world_cams, read_tuple_yaml
from pam_aug.converters.dexycb_npz import read_npz
from pam_aug.errors import SourceError, UnsafeInput


def test_15_intrinsics_of_another_camera_are_noticed(copy):
    folder = copy.root / "calibration" / "intrinsics"
    shutil.copy(folder / f"{SERIALS[1]}_640x480.yml", folder / f"{SERIALS[0]}_640x480.yml")
    with pytest.raises(SourceError, match=r"labels_000001.npz: joint_2d is .* px from joint_3d"):
        open_dexycb(copy, mano=False).item(0)


def test_another_mano_is_noticed_at_the_wrist(fake, tmp_path):
    write_official(fake_hand(5), tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(SourceError, match=r"the wrist of the MANO parameters is .* mm"):
        open_dexycb(fake, mano=False, sides="right", mano_dir=str(tmp_path)).item(0)


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "flipped", "no joints", "shape", "nan", "mirrored object", "gone"]
)
def test_a_damaged_label_is_named(copy, damage):
    path = labels_path(copy)
    label, data = dict(np.load(path)), path.read_bytes()
    if damage in ("truncated", "empty"):
        path.write_bytes(data[: len(data) // 2 if damage == "truncated" else 0])
    elif damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo("joint_3d.npy").header_offset + 80
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    elif damage == "gone":
        path.unlink()
    else:
        if damage == "no joints":
            del label["joint_3d"]
        elif damage == "shape":
            label["joint_3d"] = label["joint_3d"][:, :20]
        elif damage == "nan":
            label["pose_m"][0, 7] = np.nan
        else:
            label["pose_y"][0, 0] *= -1
        rewrite(path, label)
    converter = open_dexycb(copy, mano=False)
    with pytest.raises(SourceError, match=r"labels_000001\.npz"):
        converter.item(0)
    assert converter.item(1).sample.key.endswith("000002")


def test_a_damaged_image_or_sequence_is_named(copy):
    converter = open_dexycb(copy, mano=False)
    path = copy.root / converter.item(0).sample.source.name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"color_000001\.jpg: not a whole JPEG"):
        converter.item(0)
    pose = labels_path(copy).parent.parent / "pose.npz"
    pose.write_bytes(pose.read_bytes()[:400])
    with pytest.raises(SourceError, match=r"pose\.npz"):
        open_dexycb(copy)
    pose.unlink()
    with pytest.raises(SourceError, match=r"pose\.npz"):
        open_dexycb(copy)


SHAPES = {"joint_3d": (1, 21, 3), "pose_m": (1, 51), "seg": (480, 640)}


def test_archives_are_read_as_numpy_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"joint_3d": rng.normal(size=(1, 21, 3)).astype(">f4"), "pose_m": rng.normal(size=(1, 51)),
              "seg": np.asfortranarray(rng.integers(0, 255, (480, 640), np.uint8))}  # fmt: skip
    for k, save in enumerate((np.savez, np.savez_compressed)):
        save(tmp_path / f"{k}.npz", **arrays)
        read = read_npz(tmp_path / f"{k}.npz", SHAPES)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
    with zipfile.ZipFile(tmp_path / "1.npz", "a") as archive:
        archive.comment = b"repacked"
    np.testing.assert_array_equal(read_npz(tmp_path / "1.npz", SHAPES)["pose_m"], arrays["pose_m"])


def test_no_damage_to_an_archive_goes_unseen(fake, tmp_path):
    data, path = labels_path(fake).read_bytes(), tmp_path / "labels.npz"
    whole, messages = read_npz(labels_path(fake), SHAPES), []
    rng = np.random.default_rng(0)
    for at in (*rng.integers(0, len(data), 150), *range(len(data) - 30, len(data))):
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :]):
            path.write_bytes(broken)
            try:
                read = read_npz(path, SHAPES)
            except (SourceError, UnsafeInput) as error:
                messages.append(str(error))
                continue
            for name, array in whole.items():  # a flipped bit of a time or of a member that is not read
                np.testing.assert_array_equal(read[name], array)
    assert len(messages) > 200
    assert all("labels.npz" in message for message in messages)


def test_what_unpacks_to_more_than_it_says_is_refused(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, pose_m=np.zeros((1, 51)), padding=np.zeros(9_000_000))  # the larger one, 72 MB
    with pytest.raises(UnsafeInput, match="padding unpacks to 72000128 bytes"):
        read_npz(path, {"padding": (9_000_000,)})
    data = path.read_bytes()
    path.write_bytes(data.replace((72000128).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(SourceError, match="padding is cut short, or unpacks to more than 1000 bytes"):
        read_npz(path, {"padding": (9_000_000,)})


class _Bomb:
    def __reduce__(self):
        return (eval, ("1/0",))


def test_nothing_is_unpickled(copy):
    label = dict(np.load(labels_path(copy)))
    label["joint_3d"] = np.array([_Bomb()], dtype=object)
    rewrite(labels_path(copy), label)
    with pytest.raises(UnsafeInput, match=r"labels_000001\.npz: joint_3d holds Python objects"):
        open_dexycb(copy, mano=False).item(0)


@pytest.mark.parametrize(
    "text",
    [
        "betas: !!python/object/apply:os.system ['touch {marker}']",
        "betas: !!python/name:os.system",
        "betas: !!python/tuple [!!python/object/apply:os.system ['touch {marker}']]",
        "? !!python/tuple [!!python/tuple [1], 2]\n: 1",
    ],
)
def test_01_yaml_has_tuples_and_nothing_else(tmp_path, text):
    path = tmp_path / "mano.yml"
    path.write_text("a: !!python/tuple [1, 2.5, x]\n")
    assert read_tuple_yaml(path) == {"a": (1, 2.5, "x")}
    path.write_text(text.format(marker=tmp_path / "ran"))
    with pytest.raises(UnsafeInput, match=r"mano\.yml: refused"):
        read_tuple_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_bad_calibration_and_meta_are_named(copy):
    extrinsics = copy.root / "calibration" / "extrinsics_20200702_151821" / "extrinsics.yml"
    good = extrinsics.read_text()
    inverse_scaled = good.replace("1.0", "2.0")
    for text in (inverse_scaled, good.replace(SERIALS[3], "1"), "extrinsics: 3\n", "a: [", "- 1\n"):
        extrinsics.write_text(text)
        with pytest.raises(SourceError, match=r"extrinsics\.yml"):
            T_world_cams(copy.root, "20200702_151821")
    extrinsics.unlink()
    with pytest.raises(SourceError, match=r"calibration archive"):
        open_dexycb(copy)
    extrinsics.write_text(good)
    meta = labels_path(copy).parent.parent / "meta.yml"
    text = meta.read_text()
    for wrong in (
        text.replace("20200702_151821", "../../etc"),
        text.replace("ycb_grasp_ind: 1", "ycb_grasp_ind: 3"),
        text.replace("num_frames: 6", "num_frames: yes"),
        text.replace("- right", "- both"),
        text.replace(SERIALS[0], "1"),
    ):
        assert wrong != text
        meta.write_text(wrong)
        with pytest.raises(SourceError, match=r"meta\.yml"):
            open_dexycb(copy)
    shapes = copy.root / "calibration" / "mano_20200709-subject-01_right" / "mano.yml"
    meta.write_text(text)
    shapes.write_text("betas: [1, 2, .nan, 4, 5, 6, 7, 8, 9, 10]\n")
    with pytest.raises(SourceError, match=r"mano\.yml: betas should be 10 finite numbers"):
        open_dexycb(copy)
