"""The documentation site builds without warnings, with correct links, and without content from other servers."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

from reshard.errors import DOCUMENTATION, documentation

ROOT = Path(__file__).parents[2]
_LOADED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|@import|url\([\"']?https?:"
)

_CODE = re.compile(r"<pre.*?</pre>|<code.*?</code>", re.DOTALL)
_RAW = re.compile(r"```|\*\*|\]\(|(?:<p>|\n)(?:- |\||\d\. )")


@pytest.fixture(scope="session")
def mkdocs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MkDocs in an environment with the requirements of the extra `docs` only."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), *requirements], check=True)
    return folder / "bin" / "mkdocs"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files that the site is made from."""
    tree = tmp_path / "tree"
    for folder in ("docs", "examples", "findings"):
        shutil.copytree(ROOT / folder, tree / folder)
    pages = [path.name for path in ROOT.glob("*.md")]
    for name in (
        *pages,
        "LICENSE",
        "mkdocs.yml",
        "scripts/site_pages.py",
        "helm/reshard/README.md",
        "tests/conformance/deviations.py",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    return tree


def build(mkdocs: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(mkdocs), "build", "--strict", "--site-dir", str(tree / "site")]
    environment = {"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_the_site_builds_without_warnings(mkdocs: Path, tree: Path) -> None:
    done = build(mkdocs, tree)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    site = tree / "site"
    assert all(
        (site / page).exists() for page in ("index.html", "s3/index.html", "workflows/index.html", "helm/reshard/index.html")
    )
    assert (site / "8-to-4.svg").exists()
    page, anchor = documentation("AmbiguousFiles").removeprefix(f"{DOCUMENTATION}/").split("#")
    assert f'id="{anchor}"' in (site / page / "index.html").read_text()
    texts = {path.relative_to(site): path.read_text() for path in site.rglob("*") if path.suffix in {".html", ".css"}}
    assert [name for name, text in texts.items() if _LOADED.search(text)] == []
    assert f'<link rel="canonical" href="{DOCUMENTATION}/s3/">' in texts[Path("s3/index.html")]
    articles = {name: re.search(r"<article.*?</article>", text, re.DOTALL) for name, text in texts.items()}
    raw = [name for name, article in articles.items() if article is not None and _RAW.search(_CODE.sub("", article.group()))]
    assert raw == [], "MkDocs needs a blank line before a list, and four spaces before code in a list"


def test_broken_links_and_pages_outside_the_navigation_are_refused(mkdocs: Path, tree: Path) -> None:
    links = ["s3.md#no-such-heading", "no-such-page.md", "../examples/no-such-file.yaml"]
    with (tree / "docs" / "get-started.md").open("a") as page:
        page.writelines(f"\n[broken]({link})\n" for link in links)
    (tree / "docs" / "lost.md").write_text("# Lost\n")
    done = build(mkdocs, tree)
    assert done.returncode == 1
    assert [name for name in (*links, "docs/lost.md") if name not in done.stderr] == []
