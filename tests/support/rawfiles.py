"""Checkpoint files written and read without the code under test: the safetensors library, and protobuf messages of our own.

Encrypted ones block by whole block.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.padding import PKCS7
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from safetensors import deserialize
from safetensors.numpy import save as save_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMPY_TYPES: dict[str, Any] = {
    "Bool": np.bool_,
    "Int8": np.int8,
    "Int4": np.int8,
    "UInt8": np.uint8,
    "Int16": np.int16,
    "UInt16": np.uint16,
    "Int32": np.int32,
    "UInt32": np.uint32,
    "Int64": np.int64,
    "UInt64": np.uint64,
    "Float16": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Float32": np.float32,
    "Float64": np.float64,
}
_SAFETENSORS_TYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}
TYPE_NAMES = {np.dtype(kind): name for name, kind in NUMPY_TYPES.items() if name != "Int4"}

_FIELD = descriptor_pb2.FieldDescriptorProto


def _checkpoint_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="checkpoint.proto", package="test", syntax="proto2")
    tensor = file.message_type.add(name="TensorProto")
    tensor.field.add(name="dims", number=1, type=_FIELD.TYPE_INT64, label=_FIELD.LABEL_REPEATED)
    tensor.field.add(name="tensor_type", number=2, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_REQUIRED)
    tensor.field.add(name="tensor_content", number=3, type=_FIELD.TYPE_BYTES, label=_FIELD.LABEL_REQUIRED)
    checkpoint = file.message_type.add(name="Checkpoint")
    value = checkpoint.nested_type.add(name="Value")
    value.field.add(name="tag", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_REQUIRED)
    value.field.add(name="tensor", number=2, type=_FIELD.TYPE_MESSAGE, type_name=".test.TensorProto", label=_FIELD.LABEL_OPTIONAL)
    checkpoint.field.add(
        name="value", number=1, type=_FIELD.TYPE_MESSAGE, type_name=".test.Checkpoint.Value", label=_FIELD.LABEL_REPEATED
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Checkpoint"))


Checkpoint = _checkpoint_class()
Tensors = dict[str, np.ndarray]


def message(name: str, dims: list[int], dtype: str, content: bytes) -> bytes:
    """One message of a `.ckpt`."""
    checkpoint = Checkpoint()
    value = checkpoint.value.add(tag=name)
    value.tensor.dims.extend(dims)
    value.tensor.tensor_type = dtype
    value.tensor.tensor_content = content
    return bytes(checkpoint.SerializeToString())


def ckpt(tensors: Mapping[str, np.ndarray], *, crc: bool = False) -> bytes:
    """A `.ckpt` file."""
    content = b"".join(message(name, list(a.shape), TYPE_NAMES[a.dtype], a.tobytes()) for name, a in tensors.items())
    return content + (b"crc_num" + zlib.crc32(content).to_bytes(10, "big") if crc else b"")


def safetensors(tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file."""
    return save_safetensors({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}, metadata)


def read_ckpt(content: bytes) -> Tensors:
    """Return the tensors of a `.ckpt` file."""
    if content[-17:-10] == b"crc_num":
        assert int.from_bytes(content[-10:], "big") == zlib.crc32(content[:-17])
        content = content[:-17]
    parts: dict[str, tuple[tuple[int, ...], str, list[bytes]]] = {}
    last = None
    for value in Checkpoint.FromString(content).value:
        assert last == value.tag or value.tag not in parts
        last = value.tag
        entry = parts.setdefault(value.tag, (tuple(value.tensor.dims), value.tensor.tensor_type, []))
        assert entry[:2] == (tuple(value.tensor.dims), value.tensor.tensor_type)
        entry[2].append(value.tensor.tensor_content)
    return {
        name: np.frombuffer(b"".join(contents), NUMPY_TYPES[dtype]).reshape(dims)
        for name, (dims, dtype, contents) in parts.items()
    }


def read_safetensors(content: bytes) -> Tensors:
    """Return the tensors of a safetensors file."""
    return {
        name: np.frombuffer(bytes(view["data"]), _SAFETENSORS_TYPES[view["dtype"]]).reshape(view["shape"])
        for name, view in deserialize(content)
    }


def write(kind: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    """A file of either format."""
    return ckpt(tensors) if kind == "ckpt" else safetensors(tensors, {"format": "ms"})


def read(kind: str, content: bytes) -> Tensors:
    """Return the tensors of a file of either format."""
    return read_ckpt(content) if kind == "ckpt" else read_safetensors(content)


def same(found: Tensors, expected: Tensors) -> bool:
    """Return whether names, types, shapes and bits are equal."""
    return found.keys() == expected.keys() and all(equal(found[name], array) for name, array in expected.items())


def equal(found: np.ndarray | None, expected: np.ndarray) -> bool:
    """Return whether a tensor exists, and has equal type, shape and bits."""
    return found is not None and (found.dtype, found.shape, found.tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.tobytes(),
    )


MAGIC = {"AES-GCM": 0x7F3A5ED8, "AES-CBC": 0x7F3A5ED9, "SM4-CBC": 0x7F3A5EDA}
_PADDING = PKCS7(128)


def _cbc(mode: str, key: bytes, iv: bytes) -> Any:
    return Cipher(algorithms.SM4(key) if mode == "SM4-CBC" else algorithms.AES(key), modes.CBC(iv))


def sealed_block(plain: bytes, mode: str, key: bytes, iv: bytes) -> tuple[bytes, bytes]:
    """Tag and ciphertext of one block."""
    if mode == "AES-GCM":
        sealed = AESGCM(key).encrypt(iv[:12], plain, None)
        return sealed[-16:], sealed[:-16]
    padder, encryptor = _PADDING.padder(), _cbc(mode, key, iv).encryptor()
    return b"", encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()


def block(tag: bytes, iv: bytes, cipher: bytes, mode: str) -> bytes:
    """Return one block as it is written in a file."""
    rest = struct.pack("<i", len(iv)) + iv + struct.pack("<i", len(cipher)) + cipher
    return struct.pack("<I", MAGIC[mode]) + tag + struct.pack("<i", len(rest)) + rest


def encrypted(content: bytes, mode: str, key: bytes, block_bytes: int) -> bytes:
    """A file as MindSpore encrypts it."""
    blocks = []
    for at in range(0, len(content), block_bytes):
        iv = os.urandom(16)
        tag, cipher = sealed_block(content[at : at + block_bytes], mode, key, iv)
        blocks.append(block(tag, iv, cipher, mode))
    return b"".join(blocks)


def decrypted(content: bytes, mode: str, key: bytes) -> bytes:
    """Return the contents of such a file."""
    parts, at = [], 0
    while at < len(content):
        tag_bytes = 16 if mode == "AES-GCM" else 0
        magic, tag, rest, iv_bytes, iv, length = struct.unpack_from(f"<I{tag_bytes}sii16si", content, at)
        assert (magic, rest, iv_bytes) == (MAGIC[mode], 24 + length, 16)
        at += 32 + tag_bytes
        cipher = content[at : at + length]
        at += length
        if mode == "AES-GCM":
            parts.append(AESGCM(key).decrypt(iv[:12], cipher + tag, None))
        else:
            unpadder, decryptor = _PADDING.unpadder(), _cbc(mode, key, iv).decryptor()
            parts.append(unpadder.update(decryptor.update(cipher) + decryptor.finalize()) + unpadder.finalize())
    return b"".join(parts)
