"""Where data files are, and whether they are what they should be."""

from __future__ import annotations

import functools
import hashlib
import os
import urllib.error
from dataclasses import dataclass
from pathlib import Path

from filigree.config import one_line
from filigree.optional import needed

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
_ASU = "https://raw.githubusercontent.com/jundongl/scikit-feature/master/skfeature/data"
_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Source:
    """A file: its path below the data folder, its checksums (any of them is accepted), and where to download it."""

    path: str
    checksums: tuple[str, ...]
    url: str | None = None
    member: str | None = None  # the name inside the archive at `url`


def _idx(folder: str, url: str, sums: dict[str, str]) -> dict[str, Source]:
    return {name: Source(f"{folder}/{name}.gz", (f"sha256:{s}",), f"{url}/{name}.gz") for name, s in sums.items()}


FILES = {
    "mnist": _idx("mnist", _MNIST, {
        "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }),
    "fashion-mnist": _idx("fashion-mnist", _FASHION, {
        "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }),
    "cifar-10": {
        name: Source(f"cifar-10/{name}.bin", sums, _CIFAR, f"cifar-10-batches-bin/{name}.bin")
        for name, sums in {
            "data_batch_1": ("sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",),
            "data_batch_2": ("sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",),
            "data_batch_3": ("sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",),
            "data_batch_4": ("sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",),
            "data_batch_5": ("sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",),
            # the published test batch, and one of which 20 rows were decoded from JPEG
            "test_batch": (
                "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
                "sha256:123ca0dad8f960344d9149742165d4215093c84c8c4bdc5922af93b614bdb501",
            ),
        }.items()
    },
    "orl": {"": Source("asu/ORL.mat", (
        "sha256:e257ec36002e48688ed7f3b9fda13f479f2fd98864fa0672d1353eda1912b189",), f"{_ASU}/ORL.mat")},
    "prostate-ge": {"": Source("asu/Prostate-GE.mat", (
        "sha256:050b598534dbc662f23e30f39b41354b61d02ab8567837bcf9b1091c1c636ab4",), f"{_ASU}/Prostate-GE.mat")},
    "glioma": {"": Source("asu/GLIOMA.mat", (
        "sha256:c31cd32edd770c7a102729839e670e588bc959a591e0eae5a0676c9ca11d4c4f",), f"{_ASU}/GLIOMA.mat")},
    "tox-171": {"": Source("asu/TOX-171.mat", (
        "sha256:f52f57e61775b7830c84750456d7fadfd220d1cc8eed26419c3390eb9216cc84",), f"{_ASU}/TOX-171.mat")},
    "lung": {"": Source("asu/lung.mat", ("git:becb82c675f788b040d5ced741955e19b94ce9b8",))},
    "ptb": {  # the text is the LDC's: it has to be brought
        part: Source(f"ptb/ptb.{part}.txt", (f"sha256:{checksum}",))
        for part, checksum in {
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        }.items()
    },
    "tiny-shakespeare": {"": Source("tiny-shakespeare/input.txt", (
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",), _SHAKESPEARE)},
}  # fmt: skip


IMAGENET = ("train_x", "train_y", "test_x", "test_y")


def path(root: str | Path | None, name: str) -> Path:
    """A file below `root` or `FILIGREE_DATA` (else the user's cache) that is not checked: it is the user's own."""
    file = _folder(root) / name
    if not file.is_file():
        raise FileNotFoundError(f"data: {file} is absent. Put the file there; it cannot be downloaded.")
    return file


def _folder(root: str | Path | None) -> Path:
    """`root`, or the folder that `FILIGREE_DATA` names, or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root or os.environ.get("FILIGREE_DATA") or Path(cache) / "filigree")


def locate(source: Source, root: str | Path | None) -> Path:
    """The file, checked: below `root` (or `FILIGREE_DATA`), else downloaded into the user's cache.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded; says where to put it.
        ValueError: it is there, but is not what it should be.
    """
    path = _folder(root) / source.path
    if not path.is_file():
        if root or os.environ.get("FILIGREE_DATA"):
            other = ", or unset FILIGREE_DATA to download it" if source.url else "; it cannot be downloaded"
            raise FileNotFoundError(f"data: {path} is absent. Put the file there{other}.")
        _download(source, path)
    status = path.stat()
    actual = [_checksum(path, kind.partition(":")[0], status.st_size, status.st_mtime_ns) for kind in source.checksums]
    if not any(mine == expected for mine, expected in zip(actual, source.checksums, strict=True)):
        raise ValueError(
            f"data: {path} is damaged or another file: expected {source.checksums[0]}, got {actual[0]} "
            f"({status.st_size:,} bytes)."
        )
    return path


def is_present(name: str, root: str | Path | None = None) -> bool:
    """Whether all files of a data set are present."""
    folder = _folder(root)
    if name == "imagenet":
        return all((folder / "imagenet" / f"{part}.npy").is_file() for part in IMAGENET)
    return all((folder / source.path).is_file() for source in FILES.get(name, {}).values())


def _download(source: Source, path: Path) -> None:
    where = f"Put it at {path}, or into a folder that FILIGREE_DATA names, as {source.path}."
    if source.url is None:
        raise FileNotFoundError(f"data: {source.path} cannot be downloaded. {where}")
    pooch = needed("pooch", f"data: downloading {source.path}", "data")
    processor = None if source.member is None else pooch.Untar(members=[source.member], extract_dir=".")
    try:
        pooch.get_logger().setLevel("WARNING")
        files = pooch.retrieve(source.url, None, source.url.rsplit("/", 1)[1], path.parent, processor=processor)
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = one_line(error, 1000)
        raise FileNotFoundError(f"data: {source.url} could not be downloaded ({reason}). {where}") from None
    if source.member is not None:
        inside = next(Path(file) for file in files if file.endswith(source.member))
        inside.replace(path)


@functools.lru_cache(maxsize=64)
def _checksum(path: Path, kind: str, size: int, changed: int) -> str:
    """`sha256:...`, `sha1:...`, or `git:...` (the id of the file as a git blob); hashed once a process."""
    digest = hashlib.new("sha1" if kind == "git" else kind)
    if kind == "git":
        digest.update(f"blob {size}\0".encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"
