"""Make the training files of the bundled priors from reference images: CT, MR, photographs, complex MR.

    python scripts/prior_data.py ../shared/data OUT

Each file holds x (N, C, 128, 128) with `group` (patient or photograph) and `split`; no group is on both sides.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
import skimage
from scipy import ndimage

SIZE = 128
#: The subject whose MR slices are held out; the other subject is trained on.
HELD_OUT_MR = "C-STAR"
HELD_OUT_PHOTOS = ("kodim04", "kodim14", "kodim20", "coins")
SCIKIT = ("camera", "coins", "moon", "page", "brick", "grass", "gravel", "astronaut", "chelsea", "coffee", "rocket")


def write(path: Path, x: np.ndarray, group: list[str], split: list[str], unit: str) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=x, compression="gzip", compression_opts=4)
        data.attrs["axes"], data.attrs["unit"] = "item:channel:row:column", unit
        for name, labels in (("group", group), ("split", split)):
            file.create_dataset(name, data=np.array(labels, dtype=object), dtype=h5py.string_dtype())
    counts = {side: split.count(side) for side in ("train", "val")}
    print(f"{path}: {x.shape} {x.dtype}, {counts}")


def ct(shared: Path, out: Path) -> None:
    """Hounsfield units, averaged to 128 x 128; the split is that of slices_128.h5."""
    with h5py.File(shared / "ct_slices_256.h5") as file:
        hu = file["hu"][:].astype(np.float32).reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4))
        patients = list(file["patient_id"].asstr()[:])
    with h5py.File(shared / "slices_128.h5") as file:
        labels = dict(zip(file["group"].asstr()[:], file["split"].asstr()[:], strict=True))
    write(out / "ct-128.h5", hu.round().astype(np.int16)[:, None], patients, [labels[p] for p in patients], "HU")


def fit(image: np.ndarray, scale: float) -> np.ndarray:
    """Resampled by `scale`, then cut or filled with zeros to 128 x 128 about its middle."""
    small = (
        ndimage.zoom(image, scale, order=1)
        if scale >= 1
        else skimage.transform.rescale(image, scale, anti_aliasing=True)
    )
    canvas = np.zeros((SIZE, SIZE), np.float32)
    take = [min(SIZE, n) for n in small.shape]
    a, b = ([(n - t) // 2 for n, t in zip(shape, take, strict=True)] for shape in (small.shape, canvas.shape))
    canvas[b[0] : b[0] + take[0], b[1] : b[1] + take[1]] = small[a[0] : a[0] + take[0], a[1] : a[1] + take[1]]
    return canvas


def other_contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same anatomy in another weighting: magnitudes through a random smooth curve that keeps zero."""
    heights = np.concatenate([[0], rng.uniform(0.1, 1, 4)])
    curve = ndimage.gaussian_filter1d(np.interp(np.linspace(0, 1.2, 241), np.linspace(0, 1.2, 5), heights), 15)
    return np.interp(image, np.linspace(0, 1.2, 241), curve * np.clip(np.linspace(0, 10, 241), 0, 1)).astype(np.float32)


def magnitudes(shared: Path) -> tuple[np.ndarray, list[str]]:
    """MR magnitudes, 1 at the volume's 99.8 % quantile: axial slices of the held-out subject; all three cuts of the other.

    That one was measured in one weighting only: each of its slices comes a second time in an invented one.
    """
    images, groups = [], []
    rng = np.random.default_rng(1)
    for path in sorted((shared / "volumes").glob("*.h5")):
        with h5py.File(path) as file:
            volume = file["volume"][:].astype(np.float32)
        subject = "seg3D-MR" if "seg3D" in path.name else "C-STAR"
        volume = np.clip(volume / np.quantile(volume[volume > 0], 0.998), 0, 1.2)
        held_out = subject == HELD_OUT_MR
        scale = SIZE / max(volume.shape[1:] if held_out else volume.shape)
        for axis in (0,) if held_out else (0, 1, 2):
            for cut in np.moveaxis(volume, axis, 0):
                # The z axis is turned up, as a reader sees it.
                picture = fit(cut if axis == 0 else cut[::-1], scale)
                if (picture > 0.1).mean() > 0.05:
                    images += [picture] if held_out else [picture, other_contrast(picture, rng)]
                    groups += [subject] if held_out else [subject] * 2
    return np.stack(images)[:, None], groups


def mr(shared: Path, out: Path) -> None:
    x, groups = magnitudes(shared)
    split = ["val" if g == HELD_OUT_MR else "train" for g in groups]
    write(out / "mr-128.h5", x.astype(np.float16), groups, split, "")
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(*2 * [np.linspace(-1, 1, SIZE)], indexing="ij")
    pictures, names = [], []
    for image, group in zip(x[:, 0], groups, strict=True):
        for _ in range(1 if group == HELD_OUT_MR else 2):
            # Shims, receive coils and echo times leave phases that are smooth over the head: low polynomials, a random offset.
            phase = sum(
                rng.normal(0, 1.2 / (1 + i + j)) * rows**i * columns**j
                for i in range(4)
                for j in range(4)
                if 0 < i + j < 5
            )
            pictures.append(image * np.exp(1j * (phase + rng.uniform(0, 2 * np.pi))))
            names.append(group)
    split = ["val" if g == HELD_OUT_MR else "train" for g in names]
    write(out / "mr-complex-128.h5", np.stack(pictures).astype(np.complex64)[:, None], names, split, "")


def photographs(shared: Path, out: Path) -> None:
    """Grey tiles of 128 x 128 at full and half resolution."""
    sources = {p.stem: skimage.io.imread(p) for p in sorted((shared / "natural").glob("*.jpg"))}
    sources |= {name: getattr(skimage.data, name)() for name in SCIKIT}
    tiles, groups = [], []
    for name, picture in sources.items():
        grey = skimage.color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture / 255.0
        for image in (grey, skimage.transform.rescale(grey, 0.5, anti_aliasing=True)):
            step = SIZE if name in HELD_OUT_PHOTOS else SIZE // 2
            for i in range(0, image.shape[0] - SIZE + 1, step):
                for j in range(0, image.shape[1] - SIZE + 1, step):
                    tiles.append(image[i : i + SIZE, j : j + SIZE])
                    groups.append(name)
    x = np.clip(np.stack(tiles), 0, 1).astype(np.float16)[:, None]
    write(out / "natural.h5", x, groups, ["val" if g in HELD_OUT_PHOTOS else "train" for g in groups], "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for make in (ct, mr, photographs):
        make(arguments.shared, arguments.out)
