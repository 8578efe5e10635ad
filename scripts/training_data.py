"""Make the training files of the bundled priors: CT in HU, MR magnitudes, photographs; no share-alike sources.

    python scripts/training_data.py ../shared/data OUT

Each file holds x (N, C, rows, columns) with `group` (person or picture), `source`, `split` and `weight`: how often an image is
trained on. The files of `prior_data.py`, on which the benchmarks measure, have no training image in common with these.
"""

import argparse
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import skimage
from prior_data import HELD_OUT_PHOTOS, SCIKIT  # type: ignore[import-not-found]  # beside this script

#: Images of one source that are validated on, at most: no source may rule the choice of the weights.
VALIDATED = 24
#: What one source may have of all draws, over what its people and slices would give it (square roots of both).
STRESS = {
    "Soft-tissue-Sarcoma": 0.45,  # limbs, mostly
    "Visible Human": 0.5,  # one man
    "TCGA-LUAD": 2.0,
    "Lung-PET-CT-Dx": 2.0,
    "Colorectal": 2.5,
    "TotalSegmentator": 2.0,
    "FNNDSC/data": 1.5,
    "LIDC-IDRI (Kaggle": 0.4,  # parts of lungs, at another pixel size
    "spine": 0.5,
    "Cheng": 0.8,
}
#: Sources of which every second slice is taken: neighbours are nearly alike, and these are many.
HALVED = ("Soft-tissue-Sarcoma", "Cheng", "Ljubljana", "LIDC-IDRI (Kaggle")
#: Pictures that are validated on, beside those that the file says; those of the benchmarks are others.
VALIDATION_PHOTOS = ("kodim18", "coffee", "rocket")


def weights(group: np.ndarray, source: np.ndarray) -> np.ndarray:
    """A source counts as the square root of its slices times the fourth root of its people; its people count nearly alike."""
    weight = np.zeros(len(group))
    for name in np.unique(source):
        mine = source == name
        people = Counter(group[mine])
        each = np.array([people[g] ** -0.5 for g in group[mine]])
        share = mine.sum() ** 0.5 * len(people) ** 0.25
        share *= next((value for key, value in STRESS.items() if key in name), 1.0)
        weight[mine] = share * each / each.sum()
    return weight / weight.sum() * len(weight)


def thinned(group: np.ndarray, source: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Which images are taken: all to validate on, and of the sources in HALVED every second training slice."""
    keep = np.ones(len(group), bool)
    for name in np.unique(source):
        if any(key in name for key in HALVED):
            keep[np.flatnonzero((source == name) & (split == "train"))[1::2]] = False
    return keep


def write(
    path: Path, x: np.ndarray, group: np.ndarray, source: np.ndarray, split: np.ndarray, unit: str, weight: np.ndarray
) -> None:
    """Store the training images, and of the others at most VALIDATED a source."""
    keep = split == "train"
    for name in np.unique(source):
        rows = np.flatnonzero((source == name) & (split == "val"))
        keep[rows[np.linspace(0, len(rows) - 1, min(VALIDATED, len(rows))).astype(int)]] = True
    x, group, source, split, weight = (a[keep] for a in (x, group, source, split, weight))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=x, compression="gzip", compression_opts=4, chunks=(1, *x.shape[1:]))
        data.attrs["axes"], data.attrs["unit"] = "item:channel:row:column", unit
        file["weight"] = weight
        for name, labels in (("group", group), ("source", source), ("split", split)):
            file.create_dataset(name, data=labels.astype(object), dtype=h5py.string_dtype())
    print(f"{path}: {x.shape} {x.dtype}, {dict(Counter(split))}")
    train = split == "train"
    for name, count in Counter(source[train]).most_common():
        share = weight[train & (source == name)].sum() / weight[train].sum()
        print(
            f"  {share:6.1%} of the draws from {count:5d} slices of {len({*group[source == name]}):4d} groups: {name}"
        )


def load(path: Path) -> tuple[np.ndarray, ...]:
    """x, group, source, split, licence, note."""
    with h5py.File(path) as file:
        labels = [file[name].asstr()[:].astype(str) for name in ("group", "source", "split", "licence", "note")]
        return file["x"][:], *labels


def ct(shared: Path, out: Path) -> None:
    """Whole slices, and lung crops at 0.7 mm a pixel."""
    parts = [load(shared / "train" / name) for name in ("ct_128.h5", "ct_lidc_crops_128.h5")]
    x, group, source, split = (np.concatenate([p[k] for p in parts]) for k in range(4))
    kept = thinned(group, source, split)
    x, group, source, split = x[kept], group[kept], source[kept], split[kept]
    write(out / "ct-128.h5", np.clip(x, -1000, 1200), group, source, split, "HU", weights(group, source))


def mr(shared: Path, out: Path) -> None:
    """Magnitudes, 1 at the 99.7 % quantile; `mr-complex-128` is trained on them too, with phases made during training."""
    x, group, source, split, licence, _ = load(shared / "train" / "mr_128.h5")
    free = np.array(["BY-SA" not in text for text in licence]) & thinned(group, source, split)
    x, group, source, split = x[free], group[free], source[free], split[free]
    with h5py.File(shared / "slices_128.h5") as file:
        # One more head, which `prior_data.py` has for training as well; 8 bit like the others.
        rows = np.flatnonzero(np.char.startswith(file["group"].asstr()[:].astype(str), "seg3D"))
        more = file["images"][:][rows].reshape(-1, 1, 128, 128)
    x = np.concatenate([x, more])
    group, source, split = (
        np.concatenate([a, np.full(len(more), b)])
        for a, b in ((group, "seg3D-MR"), (source, "Seg3DData | MIT"), (split, "train"))
    )
    weight = weights(group, source)
    write(out / "mr-128.h5", (x / 255).astype(np.float16), group, source, split, "", weight)


def photographs(shared: Path, out: Path) -> None:
    """Grey, 256 x 256: Unsplash and freely licensed pictures, Kodak's and scikit-image's."""
    x, group, source, split, licence, _ = load(shared / "train" / "natural_256.h5")
    free = np.array(["BY-SA" not in text for text in licence])
    tiles, groups, sources = list(x[free][:, 0]), list(group[free]), [s.split(":")[0] for s in source[free]]
    splits = list(split[free])
    pictures = {p.stem: skimage.io.imread(p) for p in sorted((shared / "natural").glob("*.jpg"))}
    pictures |= {name: getattr(skimage.data, name)() for name in SCIKIT}
    for name, picture in pictures.items():
        if name in HELD_OUT_PHOTOS:
            continue
        grey = skimage.color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture / 255.0
        half = skimage.transform.rescale(grey, 0.5, anti_aliasing=True)
        for image in (grey, half):
            fill = [(0, max(0, 256 - n)) for n in image.shape]
            image = np.pad(image, fill, mode="reflect") if max(max(f) for f in fill) < min(image.shape) else None
            if image is None:
                continue
            for i in steps(image.shape[0]):
                for j in steps(image.shape[1]):
                    tiles.append((image[i : i + 256, j : j + 256] * 255).round().clip(0, 255).astype(np.uint8))
                    groups.append(name)
                    sources.append("Kodak" if name.startswith("kodim") else "scikit-image")
                    splits.append("val" if name in VALIDATION_PHOTOS else "train")
    x = (np.stack(tiles)[:, None] / 255).astype(np.float16)
    group, source, split = (np.array(a) for a in (groups, sources, splits))
    write(out / "natural.h5", x, group, source, split, "", weights(group, source))


def steps(length: int) -> list[int]:
    """Starts of windows of 256 that cover a length and overlap by no more than they must."""
    count = -(-length // 256)
    return [round(k * (length - 256) / max(1, count - 1)) for k in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for make in (ct, mr, photographs):
        make(arguments.shared, arguments.out)
