"""MkDocs hook that gives the site the repository's paths, so that links work in the site as they do in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

# Pages, and the files that pages link to.
PATTERNS = (
    "*.md",
    "LICENSE",
    "docs/**/*.md",
    "docs/**/*.svg",
    "examples/**/*",
    "findings/*",
    "helm/reshard/README.md",
    "tests/conformance/deviations.py",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files below docs/ by those of the whole repository. The theme's own files stay.

    Pages below docs/ get short URLs: docs/s3.md becomes s3/. SECURITY.md becomes project/security/, because a file system that
    ignores case cannot hold it next to security/.
    """
    root = Path(config.config_file_path).parent
    for file in files.documentation_pages() + files.media_files():
        if Path(file.abs_src_path or "").is_relative_to(root):
            files.remove(file)
    for path in sorted({path for pattern in PATTERNS for path in root.glob(pattern) if path.is_file()}):
        file = File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path))
        if path.parent == root and path.name != "README.md":
            file.dest_uri = f"project/{file.dest_uri.lower()}"
        else:
            file.dest_uri = file.dest_uri.removeprefix("docs/")
        files.append(file)
    return files
