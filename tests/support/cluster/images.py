"""Container images without a registry: made on this machine, kept in the cache as archives, loaded into a cluster."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.layout import ClusterError, program

BASE = "localhost/reshard-base:tests"
SANDBOX = "localhost/reshard-sandbox:tests"

# The Debian and the Python of the image that the project's Dockerfiles take by default.
_SUITE = "trixie"
_PACKAGES = "python3,python3-venv,ca-certificates"
_BASE_RECIPE = 'FROM scratch\nADD root.tar /\nCMD ["python3"]\n'
_SANDBOX_RECIPE = 'FROM scratch\nCOPY busybox /bin/sleep\nENTRYPOINT ["/bin/sleep", "infinity"]\n'
_MACHINE_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")  # Debian's, and the same in the base image


def base() -> Path:
    """The archive of a small Debian with Python: `BASE`."""
    with _kept(BASE, _digest(_SUITE, _PACKAGES, _BASE_RECIPE)) as archive:
        if not archive.exists():
            with _folder() as folder:
                _debian(folder / "root")
                _call("tar", "-C", str(folder / "root"), "-cf", str(folder / "root.tar"), ".")
                shutil.rmtree(folder / "root")
                (folder / "Dockerfile").write_text(_BASE_RECIPE)
                _build(BASE, folder / "Dockerfile", folder, archive)
    return archive


def sandbox() -> Path:
    """The archive of the image that holds a pod's namespaces open: `SANDBOX`."""
    busybox = Path(program("busybox"))
    with _kept(SANDBOX, _digest(_SANDBOX_RECIPE, busybox.read_bytes())) as archive:
        if not archive.exists():
            with _folder() as folder:
                shutil.copy(busybox, folder)
                (folder / "Dockerfile").write_text(_SANDBOX_RECIPE)
                _build(SANDBOX, folder / "Dockerfile", folder, archive)
    return archive


def build(dockerfile: Path, context: Path, name: str) -> Path:
    """The archive of the image that a Dockerfile builds from a context, with `BASE` as its BASE_IMAGE."""
    foundation = base()
    with _kept(name, _digest(foundation.name, dockerfile.read_bytes(), *_contents(dockerfile, context))) as archive:
        if not archive.exists():
            _build(name, dockerfile, context, archive, "--build-arg", f"BASE_IMAGE=oci-archive:{foundation}")
    return archive


def loading(archive: Path) -> list[str]:
    """Return the command that imports an archive's image into the containerd of this namespace."""
    return [program("ctr"), "--namespace", "k8s.io", "images", "import", str(archive)]


def load(archive: Path) -> None:
    """Import an archive's image into the containerd of this namespace."""
    _call(*loading(archive))


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _contents(dockerfile: Path, context: Path) -> Iterator[str | bytes]:
    """Yield the files that a Dockerfile copies: in a checkout those known to Git, because build results do not count."""
    listing = [program("git"), "-C", str(context), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    known = subprocess.run([*listing, "--", *_copied(dockerfile)], capture_output=True, check=False)
    found = (context / os.fsdecode(name) for name in known.stdout.split(b"\0") if name)
    for path in sorted(found if known.returncode == 0 else context.rglob("*")):
        if path.is_file():
            yield f"{path.relative_to(context)} {path.stat().st_mode:o}"
            yield path.read_bytes()


def _copied(dockerfile: Path) -> list[str]:
    lines = dockerfile.read_text().replace("\\\n", " ").splitlines()
    words = [line.split()[1:-1] for line in lines if line.startswith(("COPY ", "ADD ")) and "--from=" not in line]
    return [word for sources in words for word in sources if not word.startswith("--")] or ["."]


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reshard"
    folder = Path(os.environ.get("RESHARD_CACHE", default)) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _kept(name: str, digest: str) -> Iterator[Path]:
    """Yield the path of an archive, with a lock against other processes that make it."""
    title = name.rpartition("/")[2].partition(":")[0]
    path = _cache() / f"{title}-{digest}.tar"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            path.touch()
        else:
            print(f"images: making {name}, once for what it is made of", file=sys.stderr)
            _forget(f"{title}-*.tar")
        yield path


def _forget(archives: str) -> None:
    """Remove archives of older versions that were not used for a day."""
    for archive in _cache().glob(archives):
        if archive.stat().st_mtime < time.time() - 86_400:
            archive.unlink(missing_ok=True)


@contextmanager
def _folder() -> Iterator[Path]:
    # Next to the cache, because folders for temporary files may be small, or forbid devices.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=_cache()) as folder:
        yield Path(folder)


def _debian(root: Path) -> None:
    # Mounts of debootstrap that are left over vanish with its namespace.
    debootstrap = ["unshare", "--mount", program("debootstrap")]
    _call(*debootstrap, "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root), *_mirror())
    for downloaded in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / downloaded)
        (root / downloaded).mkdir()


def _mirror() -> list[str]:
    """Return the sources of this machine's Debian packages; empty on other systems, where debootstrap's default is used."""
    _call("apt-get", "update", "-qq")  # what it says comes from the lists
    form = "$(ORIGIN) $(LABEL) $(REPO_URI)"
    targets = subprocess.run([program("apt-get"), "indextargets", "--format", form], capture_output=True, text=True, check=True)
    return [line.split()[2] for line in targets.stdout.splitlines() if line.startswith("Debian Debian ")][:1]


def _build(name: str, dockerfile: Path, context: Path, archive: Path, *options: str) -> None:
    with _folder() as folder:
        # A persistent store would grow without bound and save little: frequent changes come before slow steps.
        own = ["--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "overlay"]
        buildah = ["unshare", "--mount", program("buildah"), *own]
        made = folder / "image.tar"
        settings = ["--isolation", "chroot", *network_settings(folder), *options]
        _call(*buildah, "bud", *settings, "--tag", name, "--file", str(dockerfile), str(context))
        _call(*buildah, "push", name, f"oci-archive:{made}:{name}")
        made.rename(archive)


def network_settings(folder: Path) -> list[str]:
    """Return pip's settings and trusted certificates of this machine, so that a build reaches the same index."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found = re.findall(r"^(global|:env:)\.(index-url|extra-index-url|trusted-host|proxy)='(.*)'$", listed.stdout, re.MULTILINE)
    settings = {name: value for _, name, value in sorted(found, reverse=True)}  # those of the environment last: they count
    file = folder / "pip.conf"
    file.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]))
    volumes = {file: Path("/etc/pip.conf"), _MACHINE_AUTHORITIES: _MACHINE_AUTHORITIES}
    return [part for outside, inside in volumes.items() if outside.exists() for part in ("--volume", f"{outside}:{inside}:ro")]


def _call(name: str, *arguments: str) -> None:
    done = subprocess.run([program(name), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{name} {' '.join(arguments)}\nended with {done.returncode}:\n{done.stdout[-3000:]}")
