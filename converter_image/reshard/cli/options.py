"""The options of every command, in the groups that the help shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from reshard.cli.arguments import DIRECTORY, MESH, MOST_RANKS, PATH, Format, Word, kebab
from reshard.cli.help import Option
from reshard.spec.keys import KEY_BYTES
from reshard.spec.outputs import OutputKind
from reshard.spec.request import CopyMode, LinkReplicas, Options, Replicas, SourceOnly, Verification
from reshard.spec.storage_options import Addressing, Checksums, Io, StorageOptions

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
_Option = tuple[frozenset[str], tuple[str, ...], dict[str, Any]]  # commands, names, and settings of click
_DEFAULTS = Options()


def _option(commands: str, *names: str, **settings: Any) -> _Option:
    return frozenset(commands.split()), names, settings


def _words(kind: Any, default: str | None = None) -> dict[str, Any]:
    """Return the settings of an option whose value is one of an enumeration. The help shows the default."""
    shown = {} if default is None else {"default": kebab(default), "show_default": True}
    return {"type": Word(*get_args(kind)), **shown}


_PLAN = "transform plan"
_RANKS = f"{_PLAN} fetch"
_WRITE = f"{_RANKS} convert"
_LAYOUT = "layout-check layout-export layout-derive"  # they read the parameters of a checkpoint
_SHARED = f"{_PLAN} convert"  # targets that several processes may write
_REMOTE = f"{_WRITE} commit verify inspect diff layout-show layout-infer {_LAYOUT}"
_RESULTS = f"{_REMOTE} run strategy-show version"

# Help is read in a column of 45 characters.
_FORMAT_HELP = """Format of the target:

\b
source             the source's format if ckpt
                   or safetensors, otherwise
                   safetensors (default)
ckpt               MindSpore's .ckpt files
safetensors        safetensors files
huggingface        whole parameters and an index
torch-dcp          PyTorch distributed format
torch-safetensors  PyTorch shards in
                   safetensors
megatron           torch_dist of Megatron-core

A format of another package is selected by its name.
"""
_OUTPUT_HELP = """Files to write to the target:

\b
per-rank  one file per rank, sharded by the
          target strategy (default)
stage     like per-rank, with the parameters of
          one pipeline stage of the source
unified   whole parameters, in safetensors files
          of limited size
same      the source files, converted one by one
index     only an index of the source, for ranks
          that load or fetch their slices
"""
_VERIFICATION_HELP = """Verification of the written files, and of copies in the source:

\b
none    only some copies in the source
sample  blocks of every parameter (default)
full    every byte, and CRCs in the source
"""


def _storage(side: str = "") -> tuple[_Option, ...]:
    """Return the storage options of the source, of the target, or of both."""
    prefix = f"--{side}-" if side else "--"
    only, commands = (f" of the {side} only", _WRITE if side == "source" else _SHARED) if side else ("", _REMOTE)
    default = "Default: --{}." if side else "Default: from the AWS configuration."
    return (
        _option(commands, f"{prefix}profile", metavar="NAME", help=f"AWS profile{only}. {default.format('profile')}"),
        _option(
            commands, f"{prefix}endpoint-url", metavar="URL", help=f"URL of the S3 server{only}. {default.format('endpoint-url')}"
        ),
        _option(
            commands,
            f"{prefix}addressing-style",
            type=Word(*get_args(Addressing)),
            help=f"Position of the bucket name in S3 URLs{only}: path or host name. {default.format('addressing-style')}",
        ),
    )


def _key(kind: str, side: str, commands: str, purpose: str) -> tuple[_Option, ...]:
    """Return the options for a key. They name a file or a variable, because other users can read the command line."""
    return (
        _option(commands, f"--{kind}-key-file", type=PATH, metavar="FILE", help=f"File that contains the key to {purpose}."),
        _option(commands, f"--{kind}-key-env", metavar="NAME", help=f"Environment variable that contains the key to {purpose}."),
        _option(
            commands,
            f"--{kind}-mode",
            type=click.Choice(list(KEY_BYTES)),
            help=f"Encryption mode of the {side}. Default: AES-GCM.",
        ),
    )


GROUPS: dict[str, tuple[_Option, ...]] = {
    "Source": (
        _option(
            _RANKS,
            "--source",
            required=True,
            type=PATH,
            metavar="DIR",
            help="Checkpoint to read: a directory, a single file, or s3://bucket/prefix.",
        ),
        _option(
            _LAYOUT,
            "--checkpoint",
            "source",
            required=True,
            type=PATH,
            metavar="DIR",
            help="Checkpoint with the parameters to divide: a directory, a single file, or s3://bucket/prefix.",
        ),
        _option(
            f"{_RANKS} {_LAYOUT}",
            "--source-format",
            metavar="NAME",
            help="Format of the source, such as torch-dcp. Default: detected from the file names.",
        ),
        _option(
            "layout-infer",
            "--checkpoint",
            type=PATH,
            metavar="DIR",
            help="Checkpoint of this strategy, for the threshold of optimizer parallelism. Default: the threshold is unknown.",
        ),
        _option(
            "layout-infer", "--mesh", type=MESH, required=True, metavar="AXES", help="Axes of the ranks, such as pp=2,dp=2,tp=4."
        ),
        _option(
            "layout-derive",
            "--source-mesh",
            type=MESH,
            metavar="AXES",
            help="Axes of the source, such as dp=2,tp=4, outermost first. Default: `derive` of --layout.",
        ),
        _option(
            "layout-derive",
            "--witness",
            type=PATH,
            metavar="PATH",
            help="Second strategy of the same model, for what the source does not show.",
        ),
        _option("layout-derive", "--witness-mesh", type=MESH, metavar="AXES", help="Axes of --witness."),
        _option(
            "layout-derive",
            "--witness-expert-mesh",
            type=MESH,
            metavar="AXES",
            help="Axes of the experts of --witness. Default: it shows nothing about experts.",
        ),
        _option(
            f"{_RANKS} layout-check layout-export",
            "--source-strategy",
            type=PATH,
            metavar="PATH",
            help="Sharding of the source: strategy file, directory with one per stage, or layout file."
            " Default: its manifest, else one whole rank.",
        ),
        *(
            _option(
                "diff",
                f"--strategy-{side}",
                type=PATH,
                metavar="PATH",
                help=f"Strategy file of {side.upper()}, directory with one per stage, or layout file. Default: its manifest"
                " or metadata.",
            )
            for side in ("a", "b")
        ),
        _option(
            "diff",
            "--read",
            is_flag=True,
            help="Read all parameters, even if the manifests of both checkpoints have fingerprints.",
        ),
        _option(
            "inspect",
            "--strategy",
            "how",
            type=PATH,
            metavar="PATH",
            help="MindSpore strategy of the checkpoint: a file, or a directory with one file per stage. Default: the manifest.",
        ),
        _option(
            _PLAN,
            "--stages",
            type=click.IntRange(1, 65536),
            metavar="N",
            help="Number of pipeline stages of the source, for --output stage. Default: derived from the ranks of the source.",
        ),
        _option(
            _RANKS,
            "--index",
            type=DIRECTORY,
            metavar="DIR",
            help="Index of the source, a directory written with `--output index`. Used instead of the strategies and file"
            " headers.",
        ),
        _option(
            f"{_WRITE} inspect {_LAYOUT}",
            "--step",
            type=click.IntRange(min=0),
            metavar="N",
            help="Training step to read. Default: the newest step that every rank has.",
        ),
        _option(
            f"{_WRITE} inspect {_LAYOUT}",
            "--files",
            metavar="PATTERN",
            help="Glob pattern of the files to read, for names (`net-*.ckpt`) or paths (`rank_*/ckpt/*`).",
        ),
        _option(
            f"{_RANKS} {_LAYOUT}",
            "--allow-single-rank",
            is_flag=True,
            help="Read the directory or file of one rank as a complete checkpoint, even if other ranks are next to it.",
        ),
    ),
    "Target": (
        _option(
            _RANKS, "--target", required=True, type=DIRECTORY, metavar="DIR", help="Directory to write, or s3://bucket/prefix."
        ),
        _option(
            _RANKS,
            "--target-strategy",
            type=PATH,
            metavar="PATH",
            help="Sharding of the target: a strategy file, a directory with one per stage, or a layout file."
            " Default: one rank with whole parameters.",
        ),
        _option(
            _RANKS,
            "--target-ranks",
            type=click.IntRange(1, 65536),
            metavar="N",
            help="Number of target ranks. Each gets a chunk of dimension 0 of every tensor, as in FSDP.",
        ),
        _option(
            _RANKS,
            "--scale",
            metavar="CHANGES",
            help="Layout of the source with other sizes of axes, such as dp=2, tp/2 or dp*2,tp/2.",
        ),
        _option(_SHARED, "--only-ranks", metavar="LIST", help="Target ranks, such as 0,2-5. Default: all."),
        _option(
            "commit",
            "--only-ranks",
            metavar="LIST",
            help="Ranks that must be finished, such as 0,2-5. Default: all ranks of the target.",
        ),
        _option("fetch", "--rank", type=click.IntRange(0, MOST_RANKS), metavar="N", help="Target rank to write."),
        _option(
            "transform fetch",
            "--rank-from",
            metavar="NAME",
            help="Environment variable that contains the target rank to write, such as RANK_ID or OMPI_COMM_WORLD_RANK.",
        ),
        _option(
            "fetch",
            "--ranks-per-pod",
            type=click.IntRange(1, 1 << 10),
            metavar="N",
            default=1,
            show_default=True,
            help="Number of consecutive ranks to write. With 8, `--rank 1` writes ranks 8 to 15.",
        ),
        _option("transform plan commit convert", "--owner", metavar="NAME", hidden=True, help="Owner of the target's lock."),
    ),
    "Output": (
        _option(
            "layout-derive",
            "--mesh",
            type=MESH,
            metavar="AXES",
            help="Axes of the target, such as dp=4,tp=2. Default: of --layout.",
        ),
        _option(
            "layout-derive",
            "--layout",
            type=PATH,
            metavar="FILE",
            help="Layout file with what is not derived: rules, which take precedence, `pipeline` and `zero`.",
        ),
        _option(
            "layout-derive layout-infer",
            "-o",
            "--output-file",
            "output",
            required=True,
            type=PATH,
            metavar="FILE.yaml",
            help="Layout file to write.",
        ),
        _option(
            "layout-export",
            "-o",
            "--output-dir",
            "output",
            required=True,
            type=DIRECTORY,
            metavar="DIR",
            help="Directory to write, or s3://bucket/prefix.",
        ),
        _option(
            "layout-export",
            "--form",
            type=click.Choice(["protobuf", "json"]),
            default="protobuf",
            show_default=True,
            help="Form of the files. MindSpore cannot read the JSON form if several axes divide a dimension.",
        ),
        _option(_PLAN, "--output", type=Word(*get_args(OutputKind)), default=kebab(_DEFAULTS.output), help=_OUTPUT_HELP),
        _option(
            _RANKS,
            "--format",
            type=Format(),
            default=kebab(_DEFAULTS.format),
            metavar="FORMAT",
            help=_FORMAT_HELP,
        ),
        _option("convert", "--format", type=Word("Ckpt", "Safetensors"), required=True, help="File format."),
        _option(
            _RANKS,
            "--file-prefix",
            default=_DEFAULTS.file_prefix,
            show_default=True,
            help="Prefix of file names, as in `rank_<r>/<prefix><r>.<format>`.",
        ),
        _option(
            _PLAN,
            "--max-file-size-bytes",
            type=click.IntRange(min=1 << 10),
            metavar="BYTES",
            help="Maximum size of a unified file. Each larger parameter is written to a separate file. Default: 3 GiB.",
        ),
        _option(
            _PLAN,
            "--copy-settings",
            is_flag=True,
            help="Copy the configuration of the model and its tokenizer, with --format huggingface.",
        ),
        _option(
            _PLAN,
            "--write-strategy",
            is_flag=True,
            help="Write the sharding of the target to `reshard-strategy.ckpt`, a strategy file that MindSpore and Reshard read.",
        ),
        _option(
            _RANKS,
            "--remove-redundancy",
            is_flag=True,
            help="Write each replicated slice once, like MindSpore's remove_redundancy.",
        ),
        _option(_WRITE, "--crc", is_flag=True, help="Write a CRC32 to each file, for MindSpore's crc_check."),
        _option(
            _WRITE,
            "--file-mode",
            metavar="OCTAL",
            help="Permission bits of files, such as 0640. Default: 0666 minus the umask.",
        ),
        _option("plan", "--write", is_flag=True, help="Save the plan in the target, for `transform --no-commit`."),
    ),
    "Parameters": (
        _option(
            f"{_WRITE} {_LAYOUT}",
            "--include",
            multiple=True,
            metavar="PATTERN",
            help="Pattern of parameters to write, such as `model.*`. `*` matches any characters. Repeatable. Default: all.",
        ),
        _option(
            f"{_WRITE} {_LAYOUT}",
            "--exclude",
            multiple=True,
            metavar="PATTERN",
            help="Pattern of parameters to omit, such as `optim.*`, even if the target strategy names them. Repeatable.",
        ),
        _option(
            f"{_RANKS} {_LAYOUT}",
            "--source-only",
            **_words(SourceOnly, _DEFAULTS.source_only),
            help="Handling of parameters that only the source strategy names: `drop` omits them, and `keep` copies them whole"
            " to every rank.",
        ),
        _option(_RANKS, "--allow-missing", is_flag=True, help="Omit parameters that only the target strategy names."),
        _option(
            f"{_WRITE} {_LAYOUT}",
            "--rename",
            "renames",
            multiple=True,
            metavar="OLD=NEW",
            help="New name of a parameter in the target. Repeatable.",
        ),
        _option(
            f"{_WRITE} {_LAYOUT}",
            "--rename-pattern",
            "patterns",
            multiple=True,
            metavar="OLD=NEW",
            help="New names of the parameters that match a pattern, such as `model.*.w=net.*.w`. Repeatable.\n\n"
            "`*` matches any characters (non-greedy). The first matching pattern applies. --rename takes precedence.",
        ),
        _option(
            f"{_WRITE} {_LAYOUT}",
            "--rename-file",
            type=PATH,
            metavar="FILE.yaml",
            help="YAML file with a list of rename rules, in the form of spec.parameters.rename.",
        ),
        _option(
            f"{_WRITE} {_LAYOUT}",
            "--cast",
            "casts",
            multiple=True,
            metavar="PATTERN=TYPE",
            help="Type of the floating-point parameters that match a pattern, such as `*=bfloat16`. Repeatable.\n\n"
            "Types: float64, float32, float16, bfloat16. Values are rounded to the nearest. The first matching pattern applies.",
        ),
        _option(
            f"{_RANKS} {_LAYOUT}",
            "--pad",
            "pads",
            multiple=True,
            metavar="NAME:DIM=LENGTH",
            help="New length of a dimension of a parameter, such as `embed.weight:0=32768`. Repeatable.\n\n"
            "A longer dimension is padded with zeros. A shorter one is an error if the trimmed values are not all zero.",
        ),
        _option(
            "inspect diff",
            "--parameter",
            "parameters",
            multiple=True,
            metavar="PATTERN",
            help="Parameters to show or compare, such as `*.weight`. Repeatable. Default: all.",
        ),
        _option("inspect", "--all", "every", is_flag=True, help="Show all parameters and files, one per line."),
        _option(
            "inspect",
            "--check-replicas",
            is_flag=True,
            help="Compare every byte of all copies of each parameter, instead. The exit code is 1 if some differ.",
        ),
        _option("diff", "--all", "every", is_flag=True, help="Show all parameters that differ."),
    ),
    "Picture": (
        _option("plan", "--picture", is_flag=True, help="Draw the traffic between source ranks and target ranks."),
        _option("plan", "--svg", type=PATH, metavar="FILE", help="Write the picture to this SVG file instead of the terminal."),
        _option(
            "plan",
            "--parameter",
            "parameters",
            multiple=True,
            metavar="PATTERN",
            help="Draw the sharding of these parameters, such as `*.weight`. Repeatable.",
        ),
    ),
    "Volumes": (
        _option(
            "run",
            "--volume",
            "volumes",
            multiple=True,
            type=str,
            metavar="CLAIM=DIR",
            help="Local directory to use as a PersistentVolumeClaim. Repeatable.",
        ),
        _option(
            "run",
            "--config-map",
            "config_maps",
            multiple=True,
            metavar="NAME=DIR",
            help="Local directory to use as a ConfigMap, with one file per key. Repeatable.",
        ),
        _option(
            "run",
            "--secret",
            "secrets",
            multiple=True,
            metavar="NAME=DIR",
            help="Local directory to use as a Secret, with one file per key. Repeatable.\n\n"
            "S3 credentials can also come from the environment.",
        ),
    ),
    "Verification and safety": (
        _option(
            _WRITE,
            "--verification",
            **_words(Verification),
            default=kebab(_DEFAULTS.verification),
            help=_VERIFICATION_HELP,
        ),
        _option(
            _RANKS,
            "--replicas",
            **_words(Replicas, _DEFAULTS.replicas),
            help="Handling of replicas in the source: `identical` fails if they differ, and `lowest-rank` reads each slice from"
            " its lowest rank.",
        ),
        _option(
            _RANKS,
            "--allow-inconsistent",
            multiple=True,
            metavar="PATTERN",
            help="Pattern of parameters that no strategy names. Repeatable.\n\n"
            "Reshard accepts them even if their copies differ, or if hyper_param.safetensors may contain only a slice.",
        ),
        _option(
            _RANKS,
            "--allow-equal-slices",
            is_flag=True,
            help="Accept ranks with equal content, even if the source strategy assigns them different slices.",
        ),
        _option(
            _WRITE,
            "--overwrite",
            is_flag=True,
            help="Replace an existing checkpoint in the target. A file system keeps the old one until the new one is complete;"
            " an object store does not.",
        ),
        _option(
            "transform",
            "--no-commit",
            is_flag=True,
            help="Write ranks, but do not complete the checkpoint. Run `reshard commit` to complete it.",
        ),
    ),
    "Performance": (
        _option(
            f"{_WRITE} run verify diff",
            "--workers",
            type=click.IntRange(1, 256),
            metavar="N",
            help="Number of files processed in parallel. Default: the number of CPUs, at most 8.",
        ),
        _option(
            "plan",
            "--parallelism",
            type=click.IntRange(1, 100_000),
            metavar="N",
            default=8,
            show_default=True,
            help="Number of pods that write ranks at the same time, on a cluster.",
        ),
        _option(
            f"{_WRITE} verify",
            "--io",
            **_words(Io, StorageOptions().io),
            help="Use of the page cache for large local files: none (`direct`), always (`buffered`), or only if needed or"
            " if it has the data (`auto`).",
        ),
        _option(
            _SHARED,
            "--copy-mode",
            **_words(CopyMode, _DEFAULTS.copy_mode),
            help="Method of copying data between S3 locations: through this process (`client`) or, where possible, by the S3"
            " server (`server`).",
        ),
        _option(
            _PLAN,
            "--link-replicas",
            **_words(LinkReplicas, _DEFAULTS.link_replicas),
            help="Links between the files of ranks whose content is equal: none (`never`), clones, or hard links.\n\n"
            "Where the file system does not support them, each file is written in full.",
        ),
    ),
    "Storage": (
        *_storage(),
        *_storage("source"),
        *_storage("target"),
        _option(
            f"{_SHARED} commit",
            "--checksums",
            type=Word(*get_args(Checksums)),
            help="Checksum of uploads to S3. Default: auto, the strongest checksum that the server accepts.",
        ),
    ),
    "Encryption": (
        *_key("decryption", "source", f"{_WRITE} inspect diff {_LAYOUT}", "decrypt the source"),
        *_key("encryption", "target", _WRITE, "encrypt the target"),
    ),
    "Console": (
        _option(
            _RESULTS,
            "--json",
            "as_json",
            is_flag=True,
            help="Print the result or the error as one JSON object on standard output.",
        ),
    ),
}


def options(command: str) -> Callable[[F], F]:
    """Return a decorator that adds a command's options, in groups."""

    def decorate(function: F) -> F:
        for title, group in reversed(GROUPS.items()):
            for commands, names, settings in reversed(group):
                if command in commands:
                    click.option(*names, cls=Option, group=title, **settings)(function)
        return function

    return decorate
