#!/bin/sh
# torch 2.15.0 with safetensors 0.8.0, 2026-11-28
#
# `FileSystemWriter(serialization_format=SerializationFormat.SAFETENSORS)` writes a distributed checkpoint that no reader of torch can
# load: FileSystemReader expects an archive of torch.save for each tensor, and HuggingFaceStorageReader looks for names that end with
# .safetensors. The metadata gives each tensor the offset of the whole file. If a rank also saves a value that is not a tensor, such as
# the step, that value is before the header, so safetensors cannot read the file either. No error is raised before the load.
#
# A good guess: the writer has the option, so `dcp.load` reads what `dcp.save` wrote, as it does with the default.
set -eu
. "$(dirname "$0")/lib/environment.sh"

install torch==2.15.0 numpy==2.4.6 safetensors==0.8.0
observe <<'END_OF_PROGRAM'
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import SerializationFormat


def outcome(load, *arguments):
    try:
        load(*arguments)
    except BaseException as error:
        return type(error).__name__
    return "loaded"


tensors = {"weight": torch.arange(6.0), "bias": torch.ones(2)}
for name, state in (("default", tensors), ("safetensors", tensors), ("safetensors_and_step", {**tensors, "step": 3})):
    options = {} if name == "default" else {"serialization_format": SerializationFormat.SAFETENSORS}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(name, **options))
    loads = [
        outcome(lambda reader: dcp.load(dict(state), storage_reader=reader(name)), reader)
        for reader in (dcp.FileSystemReader, dcp.HuggingFaceStorageReader)
    ]
    print(name, loads, outcome(load_file, f"{name}/__0_0.distcp"))
END_OF_PROGRAM
expect <<'END_OF_OUTPUT'
default ['loaded', 'CheckpointException'] SafetensorError
safetensors ['CheckpointException', 'CheckpointException'] loaded
safetensors_and_step ['CheckpointException', 'CheckpointException'] SafetensorError
END_OF_OUTPUT
