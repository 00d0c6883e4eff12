"""food-11, the data set of the notebook from which this project grew: its photographs and its trained teacher.

Both lie on Google Drive. gdown (the extra `food11`) fetches them, or you put them into the cache by hand.
"""

import importlib.util
import shutil
import stat
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from toolkit.console import err, progress, say
from toolkit.data.cache import REMEDY, cache_folder
from toolkit.data.dataset import Dataset
from toolkit.data.directory import load_directory
from toolkit.data.split_names import SPLIT_FOLDERS
from toolkit.errors import DataError, one_line
from toolkit.settings import DataRecipe

ARCHIVE_URL = "https://drive.google.com/uc?id=1O6pFYd9aw1cZbry-NXk3k3tTXLVgssIg"
TEACHER_URL = "https://drive.google.com/uc?id=1B8ljdrxYXJsZv2vmTequdPOofp3VF3NN"
TIMEOUT_S = 30.0
"""s; the longest wait for a server's next bytes."""
RETRIES = 3
"""Further attempts within one call; each resumes the one before."""

CLASSES = (
    *("Bread", "Dairy product", "Dessert", "Egg", "Fried food", "Meat"),
    *("Noodles/Pasta", "Rice", "Seafood", "Soup", "Vegetable/Fruit"),
)
"""The publisher's names of labels 0 to 10 (Singla et al. 2016)."""


def load_food11(recipe: DataRecipe) -> Dataset:
    """The notebook's photographs, fetched and unpacked if they are not in the cache yet."""
    images = cache_folder("food-11", "images")
    if not images.is_dir():
        _unpack(_fetch(ARCHIVE_URL, cache_folder("food-11", "food-11.zip"), "the food-11 archive"), images)
    found = load_directory(_folder_with_splits(images), recipe)
    classes = CLASSES if len(found.classes) == len(CLASSES) else found.classes
    return replace(found, name="food-11", classes=classes)


def teacher_weights() -> Path:
    """The notebook's ResNet18 (a state dict for 11 classes), fetched if it is not in the cache yet; not read."""
    return _fetch(TEACHER_URL, cache_folder("food-11", "teacher_resnet18.bin"), "the notebook's teacher")


def _fetch(url: str, path: Path, what: str) -> Path:
    """Download `url` to `path` unless it is there; resumes an interrupted download. Raises DataError."""
    if path.is_file():
        return path
    by_hand = f"put the file at {path} by hand"
    if importlib.util.find_spec("gdown") is None:
        raise DataError(
            f"{what} is not at {path}, and its download needs the package gdown",
            f"pip install 'kd-toolkit[food11]', or {by_hand}",
        )
    import gdown
    from gdown.exceptions import DownloadError

    say(f"downloading {what} to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        gdown.download(
            url,
            str(path),
            quiet=not err.is_terminal,
            use_cookies=False,
            resume=True,
            timeout=TIMEOUT_S,
            retries=RETRIES,
        )
    except (DownloadError, OSError) as error:
        raise DataError(
            f"{what} could not be downloaded from {url} ({_reason(error, url)})", f"run again to resume, or {by_hand}"
        ) from None
    return path


def _reason(error: BaseException, url: str) -> str:
    from requests.exceptions import ConnectionError  # comes with gdown

    if isinstance(error, ConnectionError) or isinstance(error.__cause__, ConnectionError):
        return f"the connection to {urlsplit(url).hostname} failed"
    return one_line(error)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip so that `folder` appears whole or not at all. Raises DataError for members outside of it."""
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                _require_inside(archive, member)
            with progress("unpack", len(members)) as advance:
                for member in members:
                    opened.extract(member, temporary)
                    advance(1)
        temporary.chmod(0o755)
        temporary.replace(folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive} is not a whole zip archive ({one_line(error)})", "delete it to fetch it again"
        ) from None
    except OSError as error:
        if not folder.is_dir():  # another process may have been first
            raise DataError(f"cannot unpack {archive} into {folder}: {error.strerror}", REMEDY) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _require_inside(archive: Path, member: zipfile.ZipInfo) -> None:
    # orig_filename is what the archive says; zipfile has already tidied filename
    name = member.orig_filename
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    leaves = windows.anchor or posix.is_absolute() or ".." in windows.parts
    if leaves or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(
            f"{archive} has a member outside of its folder: {name!r}",
            "delete the archive; it is not the published one",
        )


def _folder_with_splits(images: Path) -> Path:
    """`images`, or the one folder in it that holds the splits: archives differ in their top folder."""
    for folder in (images, *sorted(path for path in images.iterdir() if path.is_dir())):
        if any(SPLIT_FOLDERS.get(path.name.lower()) == "train" for path in folder.iterdir() if path.is_dir()):
            return folder
    raise DataError(
        f"{images} holds no folder training/", f"delete {images} and the archive beside it to fetch them again"
    )
