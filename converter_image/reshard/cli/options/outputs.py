"""Options of what is written: the target, its files, and the parameters in them."""

from __future__ import annotations

from typing import get_args

import click

from reshard.cli.arguments import DIRECTORY, MESH, MOST_RANKS, PATH, Format, Word, kebab
from reshard.cli.options.declaration import DEFAULTS, LAYOUT, PLAN, RANKS, SHARED, WRITE, Declared, option, words
from reshard.spec.outputs import OutputKind
from reshard.spec.request import SourceOnly

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

TARGET: tuple[Declared, ...] = (
    option(RANKS, "--target", required=True, type=DIRECTORY, metavar="DIR", help="Directory to write, or s3://bucket/prefix."),
    option(
        RANKS,
        "--target-strategy",
        type=PATH,
        metavar="PATH",
        help="Sharding of the target: a strategy file, a directory with one per stage, or a layout file."
        " Default: one rank with whole parameters.",
    ),
    option(
        RANKS,
        "--target-ranks",
        type=click.IntRange(1, 65536),
        metavar="N",
        help="Number of target ranks. Each gets a chunk of dimension 0, as in FSDP. What a source strategy omits is whole.",
    ),
    option(
        RANKS,
        "--scale",
        metavar="CHANGES",
        help="Layout of the source with other sizes of axes, such as dp=2, tp/2 or dp*2,tp/2.",
    ),
    option(SHARED, "--only-ranks", metavar="LIST", help="Target ranks, such as 0,2-5. Default: all."),
    option(
        "commit",
        "--only-ranks",
        metavar="LIST",
        help="Ranks that must be finished, such as 0,2-5. Default: all ranks of the target.",
    ),
    option("fetch", "--rank", type=click.IntRange(0, MOST_RANKS), metavar="N", help="Target rank to write."),
    option(
        "transform fetch",
        "--rank-from",
        metavar="NAME",
        help="Environment variable that contains the target rank to write, such as RANK_ID or OMPI_COMM_WORLD_RANK.",
    ),
    option(
        "fetch",
        "--ranks-per-pod",
        type=click.IntRange(1, 1 << 10),
        metavar="N",
        default=1,
        show_default=True,
        help="Number of consecutive ranks to write. With 8, `--rank 1` writes ranks 8 to 15.",
    ),
    option("transform plan commit convert", "--owner", metavar="NAME", hidden=True, help="Owner of the target's lock."),
)
OUTPUT: tuple[Declared, ...] = (
    option(
        "layout-derive",
        "--mesh",
        type=MESH,
        metavar="AXES",
        help="Axes of the target, such as dp=4,tp=2. Default: of --layout.",
    ),
    option(
        "layout-derive",
        "--layout",
        type=PATH,
        metavar="FILE",
        help="Layout file with what is not derived: rules, which take precedence, `pipeline` and `zero`.",
    ),
    option(
        "layout-derive layout-infer",
        "-o",
        "--output-file",
        "output",
        required=True,
        type=PATH,
        metavar="FILE.yaml",
        help="Layout file to write.",
    ),
    option(
        "layout-export",
        "-o",
        "--output-dir",
        "output",
        required=True,
        type=DIRECTORY,
        metavar="DIR",
        help="Directory to write, or s3://bucket/prefix.",
    ),
    option(
        "layout-export",
        "--form",
        type=click.Choice(["protobuf", "json"]),
        default="protobuf",
        show_default=True,
        help="Form of the files. MindSpore cannot read the JSON form if several axes divide a dimension.",
    ),
    option(PLAN, "--output", type=Word(*get_args(OutputKind)), default=kebab(DEFAULTS.output), help=_OUTPUT_HELP),
    option(
        RANKS,
        "--format",
        type=Format(),
        default=kebab(DEFAULTS.format),
        metavar="FORMAT",
        help=_FORMAT_HELP,
    ),
    option("convert", "--format", type=Word("Ckpt", "Safetensors"), required=True, help="File format."),
    option(
        RANKS,
        "--file-prefix",
        default=DEFAULTS.file_prefix,
        show_default=True,
        help="Prefix of file names, as in `rank_<r>/<prefix><r>.<format>`.",
    ),
    option(
        PLAN,
        "--max-file-size-bytes",
        type=click.IntRange(min=1 << 10),
        metavar="BYTES",
        help="Maximum size of a unified file. Each larger parameter is written to a separate file. Default: 3 GiB.",
    ),
    option(
        PLAN,
        "--copy-settings",
        is_flag=True,
        help="Copy the configuration of the model and its tokenizer, with --format huggingface.",
    ),
    option(
        PLAN,
        "--write-strategy",
        is_flag=True,
        help="Write the sharding of the target to `reshard-strategy.ckpt`, a strategy file that MindSpore and Reshard read.",
    ),
    option(
        RANKS,
        "--remove-redundancy",
        is_flag=True,
        help="Write each replicated slice once, like MindSpore's remove_redundancy.",
    ),
    option(WRITE, "--crc", is_flag=True, help="Write a CRC32 to each file, for MindSpore's crc_check."),
    option(
        WRITE,
        "--file-mode",
        metavar="OCTAL",
        help="Permission bits of files, such as 0640. Default: 0666 minus the umask.",
    ),
    option("plan", "--write", is_flag=True, help="Save the plan in the target, for `transform --no-commit`."),
)
PARAMETERS: tuple[Declared, ...] = (
    option(
        f"{WRITE} {LAYOUT}",
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Pattern of parameters to write, such as `model.*`. `*` matches any characters. Repeatable. Default: all.",
    ),
    option(
        f"{WRITE} {LAYOUT}",
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Pattern of parameters to omit, such as `optim.*`, even if the target strategy names them. Repeatable.",
    ),
    option(
        f"{RANKS} {LAYOUT}",
        "--source-only",
        **words(SourceOnly, DEFAULTS.source_only),
        help="Handling of parameters that only the source strategy names: `drop` omits them, and `keep` copies them whole"
        " to every rank.",
    ),
    option(RANKS, "--allow-missing", is_flag=True, help="Omit parameters that only the target strategy names."),
    option(
        f"{WRITE} {LAYOUT}",
        "--rename",
        "renames",
        multiple=True,
        metavar="OLD=NEW",
        help="New name of a parameter in the target. Repeatable.",
    ),
    option(
        f"{WRITE} {LAYOUT}",
        "--rename-pattern",
        "patterns",
        multiple=True,
        metavar="OLD=NEW",
        help="New names of the parameters that match a pattern, such as `model.*.w=net.*.w`. Repeatable.\n\n"
        "`*` matches any characters (non-greedy). The first matching pattern applies. --rename takes precedence.",
    ),
    option(
        f"{WRITE} {LAYOUT}",
        "--rename-file",
        type=PATH,
        metavar="FILE.yaml",
        help="YAML file with a list of rename rules, in the form of spec.parameters.rename.",
    ),
    option(
        f"{WRITE} {LAYOUT}",
        "--cast",
        "casts",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="Type of the floating-point parameters that match a pattern, such as `*=bfloat16`. Repeatable.\n\n"
        "Types: float64, float32, float16, bfloat16. Values are rounded to the nearest. The first matching pattern applies.",
    ),
    option(
        f"{RANKS} {LAYOUT}",
        "--pad",
        "pads",
        multiple=True,
        metavar="NAME:DIM=LENGTH",
        help="New length of a dimension of a parameter, such as `embed.weight:0=32768`. Repeatable.\n\n"
        "A longer dimension is padded with zeros. A shorter one is an error if the trimmed values are not all zero.",
    ),
    option(
        "inspect diff",
        "--parameter",
        "parameters",
        multiple=True,
        metavar="PATTERN",
        help="Parameters to show or compare, such as `*.weight`. Repeatable. Default: all.",
    ),
    option("inspect", "--all", "every", is_flag=True, help="Show all parameters and files, one per line."),
    option(
        "inspect",
        "--check-replicas",
        is_flag=True,
        help="Compare every byte of all copies of each parameter, instead. The exit code is 1 if some differ.",
    ),
    option("diff", "--all", "every", is_flag=True, help="Show all parameters that differ."),
)
