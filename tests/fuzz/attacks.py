"""Attacks on the parsers: for each fuzz target files that are always the same, made when they are needed.

Each is at most about 1 MB, because the limits of `limits.py` are relative to the length of a file.
"""

from __future__ import annotations

import io
import json
import struct
import unicodedata
import zipfile
from typing import Any

from targets.manifest import MANIFEST

MANY = 1 << 17
DEEP = 100_000
_NAMES = {
    "traversal": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "hidden": "rank_0/..",
    "backslash": "..\\a.safetensors",
    "newline": "a\nb.safetensors",
    "dash": "--help.safetensors",
    "variable": "$(PATH).safetensors",
    "nul": "a\0.safetensors",
    "override": "a\u202etxt.safetensors",
    "long": "a" * 5000 + ".safetensors",
    "device": "/dev/zero",
    "empty": "",
}
_NUMBERS = (b"-1", b"1e999", b"NaN", b"Infinity", b"-Infinity", b"1" * 5000, b"18446744073709551616", b"0.1", b"true", b"null")


def attacks_on(kind: str) -> dict[str, bytes]:
    """Return the attacks on a target by name."""
    found = dict(_ANYTHING)
    if kind in _JSON:
        found |= _on_json(_JSON[kind])
    found |= _ON.get(kind, dict)()
    return {f"{kind}-{name}": _PREFIX.get(kind, b"") + content for name, content in found.items()}


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
_ANYTHING = {
    "empty": b"",
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "pointer": _POINTER,
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": "{}".encode("utf-16"),
    "open-brackets": b"[" * DEEP,
    "open-braces": b'{"a":' * DEEP,
    "not-utf-8": b'{"\xff\xfe": 1}',
    "surrogate": b'{"\xed\xa0\x80": 1}',
    "escaped-surrogate": b'{"\\ud800": "\\udfff"}',
    "digits": b"9" * 500_000,
    "line-breaks": b"\n" * 100_000,
}

# Where a document of each kind has a value that an attack can replace: the text before and after it.
_JSON: dict[str, tuple[bytes, bytes]] = {
    "safetensors": (b'{"w": ', b"}"),
    "strategy_json": (b'{"current_stage": 1, "parallel_layout_item": {"a": ', b"}}"),
    "spec": (b'{"source": ', b"}"),
    "manifest": (b'{"schema": "reshard.dev/manifest/v1", "files": ', b"}"),
    "records": (b'{"request": ', b', "digest": "0", "staged": true}'),
    "index": (b'{"schema": "reshard.dev/index/v1", "inventory": ', b"}"),
    "map": (b'{"weight_map": ', b"}"),
    "strictjson": (b'{"a": ', b"}"),
    "messages": (b'{"version": 1, "digest": ', b"}"),
    "mindformers": (b'{"state_dict_metadata": ', b"}"),
}
_PREFIX = {"records": b"\0", "encryption": b"\0"}


def _on_json(around: tuple[bytes, bytes]) -> dict[str, bytes]:
    before, after = around
    values = {f"number-{number[:9].decode()}": number for number in _NUMBERS}
    values |= {f"name-{name}": json.dumps({"a": text, text: text}).encode() for name, text in _NAMES.items()}
    values |= {
        "arrays": b"[" * DEEP + b"]" * DEEP,
        "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "almost-too-deep": b"[" * 900 + b"]" * 900,
        "many-objects": b"[" + b"{}," * MANY + b"{}]",
        "many-arrays": b"[" + b"[]," * MANY + b"[]]",
        "many-zeros": b"[" + b"0," * (2 * MANY) + b"0]",
        "many-keys": b"{" + b",".join(b'"%x":0' % number for number in range(MANY)) + b"}",
        "equal-keys": b"{" + b'"a":0,' * MANY + b'"a":0}',
        "equal-hashes": json.dumps({str(number * ((1 << 61) - 1)): 0 for number in range(1000)}).encode(),
        "normal-forms": json.dumps({unicodedata.normalize(form, "é"): 1 for form in ("NFC", "NFD")}).encode(),
        "escapes": b'"' + b"\\u0041" * MANY + b'"',
        "comment": b"/* */ 1",
        "trailing-comma": b"[1,]",
        "second-document": b"1}{",
    }
    found = {name: before + value + after for name, value in values.items()}
    return {name: struct.pack("<Q", len(value)) + value for name, value in found.items()} if b'"w"' in before else found


def _entry(shape: Any = (1,), offsets: Any = (0, 4), dtype: Any = "F32", **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def _on_safetensors() -> dict[str, bytes]:
    headers: dict[str, Any] = {
        "overlap": {"a": _entry(), "b": _entry()},
        "overlap-by-a-byte": {"a": _entry(), "b": _entry(offsets=(3, 7))},
        "gap": {"a": _entry(), "b": _entry(offsets=(5, 9))},
        "reversed": {"a": _entry(offsets=(4, 0))},
        "negative": {"a": _entry(offsets=(-4, 0))},
        "negative-shape": {"a": _entry(shape=(-1, -1))},
        "overflow": {"a": _entry(shape=(1 << 32, 1 << 32), offsets=(0, 0))},
        "overflow-times-zero": {"a": _entry(shape=(1 << 63, 0), offsets=(0, 0))},
        "beyond-64-bits": {"a": _entry(shape=(1 << 64, 0), offsets=(0, 0))},
        "huge-offset": {"a": _entry(offsets=((1 << 63) - 1, (1 << 63) + 3))},
        "dimensions": {"a": _entry(shape=(1,) * 50_000)},
        "unknown-type": {"a": _entry(dtype="F33")},
        "half-bytes": {"a": _entry(dtype="F4", shape=(3,), offsets=(0, 2))},
        "metadata-of-numbers": {"__metadata__": {"a": 1}, "a": _entry()},
        "metadata-as-tensor": {"__metadata__": _entry()},
        "no-tensors": {"__metadata__": {"a": "b"}},
        "crc": {"__metadata__": {"crc_num": "9" * 5000}, "a": _entry()},
        "texts": {"__metadata__": {"reshard.str": "[" * 5000}, "a": _entry()},
        "many-tensors": {str(number): _entry(shape=(0,), offsets=(0, 0)) for number in range(1 << 14)},
        "normal-forms": {unicodedata.normalize(form, "é"): _entry(shape=(0,), offsets=(0, 0)) for form in ("NFC", "NFD")},
        **{f"name-{name}": {text: _entry()} for name, text in _NAMES.items()},
    }
    texts = {name: json.dumps(header).encode() for name, header in headers.items()}
    one = json.dumps(_entry()).encode()
    texts |= {
        "twice": b'{"a": %s, "a": %s}' % (one, one),
        "twice-escaped": b'{"a": %s, "\\u0061": %s}' % (one, one),
        "key-twice": b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}',
        "metadata-twice": b'{"__metadata__": {"a": "b"}, "__metadata__": {}, "a": %s}' % one,
        "spaces": b'{"a": %s}' % one + b" " * 500_000,
        "leading-spaces": b" " * 1000 + b'{"a": %s}' % one,
        "floats": b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4e0]}}',
        "bom": b'\xef\xbb\xbf{"a": %s}' % one,
    }
    files = {name: struct.pack("<Q", len(text)) + text + bytes(4) for name, text in texts.items()}
    files |= {
        "length-of-all": struct.pack("<Q", (1 << 64) - 1) + one,
        "length-of-100-mb": struct.pack("<Q", 100_000_000) + one,
        "length-0": bytes(8),
        "seven-bytes": bytes(7),
    }
    return files


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


_LENGTHS = {
    "huge": b"\xff" * 9 + b"\x01",
    "too-long": b"\xff" * 10 + b"\x01",
    "endless": b"\x80" * 100_000,
    "negative": b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "two-gigabytes": b"\xff\xff\xff\xff\x07",
    "padded": b"\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00",
    "cut": b"\x80",
}


def _on_ckpt() -> dict[str, bytes]:
    def parameter(name: bytes = b"a", dims: bytes = b"\x08\x01", kind: bytes = b"Float32", content: bytes = bytes(4)) -> bytes:
        return _field(1, _field(1, name) + _field(2, dims + _field(2, kind) + _field(3, content)))

    files = {f"length-{name}": b"\x0a" + length + parameter()[2:] for name, length in _LENGTHS.items()}
    files |= {f"name-length-{name}": _field(1, b"\x0a" + length + b"a") for name, length in _LENGTHS.items()}
    files |= {f"dim-{name}": parameter(dims=b"\x08" + number) for name, number in _LENGTHS.items()}
    files |= {f"dim-times-zero-{name}": parameter(dims=b"\x08\x00\x08" + n, content=b"") for name, n in _LENGTHS.items()}
    files |= {
        "twice": parameter() + parameter(b"b") + parameter(),
        "parts": parameter() * 1000,
        "many": b"".join(parameter(b"%d" % number) for number in range(20_000)),
        "dims": parameter(dims=b"\x08\x01" * 100_000),
        "packed-dims": parameter(dims=_field(1, b"\x01" * 100_000)),
        "packed-beyond": _field(1, _field(1, b"a") + _field(2, b"\x0a\x7f\x01\x01")),
        "field-zero": _field(1, b"\0\0" + _field(1, b"a") + _field(2, b"\x08\x01" + _field(2, b"Int8") + _field(3, b"x"))),
        "groups": _field(1, b"\x0b" * 50_000),
        "unknown": _field(1, _field(9, bytes(50_000)) + parameter()),
        "map": _field(1, _field(1, b"a") + _field(3, b"\x0a\x01a")),
        "surrogate": parameter(b"\xed\xa0\x80"),
        "newline": parameter(b"a\nreshard: ok"),
        "nul": parameter(b"a\0b"),
        "long-name": parameter(b"n" * 100_000),
        "crc": parameter() + b"crc_num" + b"\xff" * 10,
        "only-crc": b"crc_num" + bytes(10),
        "text": parameter(dims=b"\x08\x00", kind=b"str", content=bytes(7)),
        "normal-forms": b"".join(parameter(unicodedata.normalize(form, "é").encode()) for form in ("NFC", "NFD")),
    }
    return files


def _on_encryption() -> dict[str, bytes]:
    def block(length: int, rest: int | None = None, iv: int = 16) -> bytes:
        head = struct.pack("<I16sii16si", 0x7F3A5ED8, bytes(16), 24 + length if rest is None else rest, iv, bytes(16), length)
        return head + bytes(max(0, min(length, 1000)))

    lengths = {"zero": 0, "negative": -1, "minimum": -(1 << 31), "maximum": (1 << 31) - 1 - 24, "short": 100}
    files = {f"length-{name}": block(length) for name, length in lengths.items()}
    return files | {"rest": block(100, 5), "iv": block(100, iv=-16), "blocks": block(1) * 10_000}


def _on_strategy_protobuf() -> dict[str, bytes]:
    def layout(matrix: bytes = b"\x08", axes: bytes = b"\0") -> bytes:
        return _field(1, _field(1, matrix)) + _field(2, _field(1, axes)) + b"\x28\x00\x30\x00\x38\x00"

    def item(name: bytes = b"a", content: bytes | None = None) -> bytes:
        return _field(3, _field(1, name) + _field(2, layout() if content is None else content))

    stage = b"\x08\x01"
    files = {f"length-{name}": stage + b"\x1a" + length + item()[2:] for name, length in _LENGTHS.items()}
    files |= {f"devices-{name}": stage + item(content=layout(number)) for name, number in _LENGTHS.items()}
    return files | {
        "field-zero": stage + b"\0\0" + item(),
        "many": stage + item(b"", b"") * MANY,
        "distinct": stage + b"".join(item(b"%d" % n, layout(_varint(n + 1))) for n in range(20_000)),
        "tables": stage + b"".join(item(b"%d" % n, layout(b"\x02" * 19 + _varint(n + 1))) for n in range(500)),
        "groups": stage + b"\x0b" * 100_000,
        "stages": stage
        + b"".join(_field(2, _field(1, b"n") + _field(2, b"\x08" + _varint(n << 16))) for n in range(5000))
        + item(),
        "dims": stage + item(content=layout(b"\x01" * 60_000)),
        "surrogate": stage + item(b"\xed\xa0\x80"),
        "checkpoint": _field(1, _field(1, b"a")),
    }


def _on_yaml(before: str = "a: ") -> dict[str, bytes]:
    aliases = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10 if n else ['1'])}]\n" for n in range(10))
    texts = {
        "aliases": aliases,
        "alias": f"{before}&x [*x]",
        "merge": "a: &a {b: 1}\nc: {<<: *a}",
        "duplicate": f"{before}1\n" * 2,
        "tag": f"{before}!!python/object/apply:os.system [id]",
        "deep": before + "[" * 20_000,
        "deep-blocks": "".join(" " * n + "a:\n" for n in range(700)),
        "long-key": "? " + "a" * 50_000 + "\n: 1",
        "sexagesimal": before + "1" + ":59" * 10_000,
        "octal": before + "0o" + "7" * 5000,
        "underscores": before + "1" + "_" * 20_000,
        "binary": before + "!!binary " + "A" * 10_000,
        "date": before + "2024-99-99",
        "infinity": before + "[.inf, -.inf, .nan]",
        "documents": "---\n" * 5000,
        "set": "!!set {a, b}",
        "pairs": "!!omap [a: 1, a: 2]",
        "surrogates": before + '"\\ud800"',
        "escape": before + '"\\U7fffffff"',
        "percent": "%YAML 9.9\n---\na",
        "nel": before + "a\x85b\u2028c",
        "many": "".join(f"k{n}: 1\n" for n in range(3000)),
    }
    return {name: text.encode("utf-8", "surrogatepass") for name, text in texts.items()}


def _on_layout() -> dict[str, bytes]:
    def layout(**fields: Any) -> bytes:
        return json.dumps({"apiVersion": "reshard.dev/layout-v1", "mesh": "dp=2", "rules": [{"match": "*"}]} | fields).encode()

    return _on_yaml("mesh: ") | {
        "stars": layout(rules=[{"match": "*a" * 500 + "b"}]),
        "many-stars": layout(rules=[{"match": ["*" * 1000 + str(n) for n in range(20)]}]),
        "axes": layout(mesh=",".join(f"a{n}=9999999" for n in range(16))),
        "newline": layout(mesh="dp=2\n"),
        "layers": layout(mesh="pp=1000", pipeline={"layer": "*", "layers": 65536, "offset": [10**30]}),
        "counts": layout(mesh="pp=2", pipeline={"layer": "l*.", "counts": [[1 << 62] * 1000] * 100}),
        "key": layout(rules=[{"match": "*", "shard": {"٣": "dp"}}]),
        "name": layout(rules=[{"match": "\ud800"}]),
    }


def _on_resource() -> dict[str, bytes]:
    return _on_yaml("kind: ") | {
        f"path-{name}": json.dumps(
            {
                "apiVersion": "reshard.dev/v1alpha1",
                "kind": "CheckpointTransform",
                "spec": {
                    "source": {"storage": {"persistentVolumeClaim": {"claimName": "a", "path": text}}},
                    "target": {"storage": {"persistentVolumeClaim": {"claimName": "a", "path": "b"}}},
                },
            }
        ).encode()
        for name, text in _NAMES.items()
    }


def _on_manifest() -> dict[str, bytes]:
    def manifest(**fields: Any) -> bytes:
        return json.dumps(MANIFEST | fields).encode()

    def kinds(count: int, **layout: Any) -> dict[str, Any]:
        (kind,), target = MANIFEST["parameters"]["kinds"], MANIFEST["parameters"]["kinds"][0]["target"]
        records = [{"name": str(n), "kind": 0} for n in range(count)]
        return {"kinds": [kind | {"target": target | layout}], "records": records}

    files = {f"path-{name}": manifest(files=[MANIFEST["files"][0] | {"path": text}]) for name, text in _NAMES.items()}
    return files | {
        "ranks": manifest(ranks="0-16777214"),
        "many-ranks": manifest(ranks=",".join(f"{n << 20}-{(n << 20) + 1048575}" for n in range(64))),
        "stages": manifest(targetRanks=1 << 17, parameters=kinds(1, stages=[*range(1 << 16)])),
        "records-times-stages": manifest(targetRanks=1 << 15, parameters=kinds(10_000, stages=[*range(1 << 14)])),
        "devices": manifest(targetRanks=1 << 40, parameters=kinds(1, deviceMatrix=[1 << 40])),
        "negative-devices": manifest(parameters=kinds(1, deviceMatrix=[-2, -1])),
        "negative-size": manifest(files=[MANIFEST["files"][0] | {"size": -50}]),
        "negative-rank": manifest(files=[MANIFEST["files"][0] | {"rank": -1}]),
        "shape": manifest(parameters=kinds(1) | {"kinds": [kinds(1)["kinds"][0] | {"shape": [1 << 70, -1]}]}),
        "kind": manifest(parameters={"kinds": [], "records": [{"name": "a", "kind": -1}]}),
        "target-ranks": manifest(targetRanks=0, parameters=kinds(1)),
    }


def _on_ranks() -> dict[str, bytes]:
    return {
        "largest": b"0-16777214",
        "many": ",".join(f"{n << 20}-{(n << 20) + 1048575}" for n in range(900)).encode(),
        "commas": b"," * 100_000,
        "spaces": b" " * 100_000 + b"1",
        "digits": "\u0663-\u0665".encode(),
    }


def _on_torch() -> dict[str, bytes]:
    def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", compression) as zipped:
            for name, content in files.items():
                zipped.writestr(zipfile.ZipInfo(name), content)
        return written.getvalue()

    bomb = archive({"a/data.pkl": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    end = b"PK\x05\x06" + bytes(18)
    return {
        "bomb": bomb,
        "bomb-of-version": archive({"a/version": bytes(64 << 20), "a/data.pkl": b"\x80\x02}."}),
        "many-entries": archive({f"a/data/{n}": b"" for n in range(5000)}, zipfile.ZIP_STORED),
        "traversal": archive({"../data.pkl": b"\x80\x02}.", "../data/0": b""}, zipfile.ZIP_STORED),
        "end-only": end,
        "ends": end * 2000,
        "counts": b"PK\x05\x06" + b"\0\0\0\0" + b"\xff" * 12 + b"\0\0",
        "marks": b"\x80\x02" + b"(" * 200_000 + b".",
        "tuples": b"\x80\x02)" + b"\x85" * 200_000 + b".",
        "doubling": b"\x80\x02]" + b"q\x00h\x00h\x00\x86" * 50_000 + b".",
        "global": b"cos\nsystem\n(S'id'\ntR.",
        "long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"].",
    }


_TORCH = ("torch_archive", "torch_dcp", "torch_items", "torch_saved", "torch_unpickle", "hyper_parallel")
_ON = {
    "safetensors": _on_safetensors,
    "torch_sharded": _on_safetensors,
    "ckpt": _on_ckpt,
    "encryption": _on_encryption,
    "strategy_protobuf": _on_strategy_protobuf,
    "groups": _on_strategy_protobuf,
    "strictyaml": _on_yaml,
    "layout": _on_layout,
    "resource": _on_resource,
    "manifest": _on_manifest,
    "ranks": _on_ranks,
    **dict.fromkeys(_TORCH, _on_torch),
}
