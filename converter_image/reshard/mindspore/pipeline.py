"""The stages of a pipeline."""

from __future__ import annotations

from reshard.mindspore.arguments import path_of
from reshard.mindspore.errors import documented
from reshard.source.strategies import read_strategy_files
from reshard.spec.request import Options
from reshard.storage import open_store, parent_and_name
from reshard.strategy import dump, merge


@documented(folder_reason="StrategyMissing")
def merge_pipeline_strategys(src_strategy_dirs: str, dst_strategy_file: str) -> None:
    """Merge the strategy files of all pipeline stages in a folder into one file.

    Differences from MindSpore: parameter names may contain any character. A missing stage is an error.

    Args:
        src_strategy_dirs: path of the folder.
        dst_strategy_file: path of the file to write. It has the JSON form if the name ends with .json.

    Raises:
        ReshardError: also a NotADirectoryError (the folder does not exist), a TypeError (an argument is not a path) or a
            ValueError (a file is damaged, or a stage is missing).
    """
    source, target = path_of(src_strategy_dirs, "src_strategy_dirs"), path_of(dst_strategy_file, "dst_strategy_file")
    merged = merge(read_strategy_files(source))
    content = dump(merged, "json" if target.endswith(".json") else "protobuf")
    folder, name = parent_and_name(target)
    open_store(folder).write(name, content, mode=Options().file_mode)
