"""Options of what is read: the source, the storage of both sides, keys, and the volumes of a resource."""

from __future__ import annotations

from typing import get_args

import click

from reshard.cli.arguments import DIRECTORY, MESH, PATH, Word
from reshard.cli.options.declaration import LAYOUT, PLAN, RANKS, REMOTE, SHARED, WRITE, Declared, option
from reshard.spec.keys import KEY_BYTES
from reshard.spec.storage_options import Addressing, Checksums

SOURCE: tuple[Declared, ...] = (
    option(
        RANKS,
        "--source",
        required=True,
        type=PATH,
        metavar="DIR",
        help="Checkpoint to read: a directory, a single file, or s3://bucket/prefix.",
    ),
    option(
        LAYOUT,
        "--checkpoint",
        "source",
        required=True,
        type=PATH,
        metavar="DIR",
        help="Checkpoint with the parameters to divide: a directory, a single file, or s3://bucket/prefix.",
    ),
    option(
        f"{RANKS} {LAYOUT}",
        "--source-format",
        metavar="NAME",
        help="Format of the source, such as torch-dcp. Default: detected from the file names.",
    ),
    option(
        "layout-infer",
        "--checkpoint",
        type=PATH,
        metavar="DIR",
        help="Checkpoint of this strategy, for the threshold of optimizer parallelism. Default: the threshold is unknown.",
    ),
    option("layout-infer", "--mesh", type=MESH, required=True, metavar="AXES", help="Axes of the ranks, such as pp=2,dp=2,tp=4."),
    option(
        "layout-derive",
        "--source-mesh",
        type=MESH,
        metavar="AXES",
        help="Axes of the source, such as dp=2,tp=4, outermost first. Default: `derive` of --layout.",
    ),
    option(
        "layout-derive",
        "--witness",
        type=PATH,
        metavar="PATH",
        help="Second strategy of the same model, for what the source does not show.",
    ),
    option("layout-derive", "--witness-mesh", type=MESH, metavar="AXES", help="Axes of --witness."),
    option(
        "layout-derive",
        "--witness-expert-mesh",
        type=MESH,
        metavar="AXES",
        help="Axes of the experts of --witness. Default: it shows nothing about experts.",
    ),
    option(
        f"{RANKS} layout-check layout-export",
        "--source-strategy",
        type=PATH,
        metavar="PATH",
        help="Sharding of the source: strategy file, directory with one per stage, or layout file."
        " Default: its manifest, else one whole rank.",
    ),
    *(
        option(
            "diff",
            f"--strategy-{side}",
            type=PATH,
            metavar="PATH",
            help=f"Strategy file of {side.upper()}, directory with one per stage, or layout file. Default: its manifest"
            " or metadata.",
        )
        for side in ("a", "b")
    ),
    option(
        "diff",
        "--read",
        is_flag=True,
        help="Read all parameters, even if the manifests of both checkpoints have fingerprints.",
    ),
    option(
        "inspect",
        "--strategy",
        "how",
        type=PATH,
        metavar="PATH",
        help="MindSpore strategy of the checkpoint: a file, or a directory with one file per stage. Default: the manifest.",
    ),
    option(
        PLAN,
        "--stages",
        type=click.IntRange(1, 65536),
        metavar="N",
        help="Number of pipeline stages of the source, for --output stage. Default: derived from the ranks of the source.",
    ),
    option(
        RANKS,
        "--index",
        type=DIRECTORY,
        metavar="DIR",
        help="Index of the source, a directory written with `--output index`. Used instead of the strategies and file headers.",
    ),
    option(
        f"{WRITE} inspect {LAYOUT}",
        "--step",
        type=click.IntRange(min=0),
        metavar="N",
        help="Training step to read. Default: the newest step that every rank has.",
    ),
    option(
        f"{WRITE} inspect {LAYOUT}",
        "--files",
        metavar="PATTERN",
        help="Glob pattern of the files to read, for names (`net-*.ckpt`) or paths (`rank_*/ckpt/*`).",
    ),
    option(
        f"{RANKS} {LAYOUT}",
        "--allow-single-rank",
        is_flag=True,
        help="Read the directory or file of one rank as a complete checkpoint, even if other ranks are next to it.",
    ),
)


def _storage(side: str = "") -> tuple[Declared, ...]:
    """Return the storage options of the source, of the target, or of both."""
    prefix = f"--{side}-" if side else "--"
    only, commands = (f" of the {side} only", WRITE if side == "source" else SHARED) if side else ("", REMOTE)
    default = "Default: --{}." if side else "Default: from the AWS configuration."
    return (
        option(commands, f"{prefix}profile", metavar="NAME", help=f"AWS profile{only}. {default.format('profile')}"),
        option(
            commands, f"{prefix}endpoint-url", metavar="URL", help=f"URL of the S3 server{only}. {default.format('endpoint-url')}"
        ),
        option(
            commands,
            f"{prefix}addressing-style",
            type=Word(*get_args(Addressing)),
            help=f"Position of the bucket name in S3 URLs{only}: path or host name. {default.format('addressing-style')}",
        ),
    )


def _key(kind: str, side: str, commands: str, purpose: str) -> tuple[Declared, ...]:
    """Return the options for a key. They name a file or a variable, because other users can read the command line."""
    return (
        option(commands, f"--{kind}-key-file", type=PATH, metavar="FILE", help=f"File that contains the key to {purpose}."),
        option(commands, f"--{kind}-key-env", metavar="NAME", help=f"Environment variable that contains the key to {purpose}."),
        option(
            commands,
            f"--{kind}-mode",
            type=click.Choice(list(KEY_BYTES)),
            help=f"Encryption mode of the {side}. Default: AES-GCM.",
        ),
    )


STORAGE: tuple[Declared, ...] = (
    *_storage(),
    *_storage("source"),
    *_storage("target"),
    option(
        f"{SHARED} commit",
        "--checksums",
        type=Word(*get_args(Checksums)),
        help="Checksum of uploads to S3. Default: auto, the strongest checksum that the server accepts.",
    ),
)
ENCRYPTION: tuple[Declared, ...] = (
    *_key("decryption", "source", f"{WRITE} inspect diff {LAYOUT}", "decrypt the source"),
    *_key("encryption", "target", WRITE, "encrypt the target"),
)
VOLUMES: tuple[Declared, ...] = (
    option(
        "run",
        "--volume",
        "volumes",
        multiple=True,
        type=str,
        metavar="CLAIM=DIR",
        help="Local directory to use as a PersistentVolumeClaim. Repeatable.",
    ),
    option(
        "run",
        "--config-map",
        "config_maps",
        multiple=True,
        metavar="NAME=DIR",
        help="Local directory to use as a ConfigMap, with one file per key. Repeatable.",
    ),
    option(
        "run",
        "--secret",
        "secrets",
        multiple=True,
        metavar="NAME=DIR",
        help="Local directory to use as a Secret, with one file per key. Repeatable.\n\n"
        "S3 credentials can also come from the environment.",
    ),
)
