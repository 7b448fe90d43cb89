"""The ciphers of MindSpore's encrypted files, with random access to each block.

A block can be read in part: GCM encrypts like CTR with a counter that starts at 2 (NIST SP 800-38D, 7.1), and CBC requires only
the bytes themselves, rounded to 16, and the 16 bytes before them.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import TYPE_CHECKING, Any, Protocol

from reshard.extras import needs_extra
from reshard.spec.keys import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.spec.keys import Mode

MAGIC: dict[int, Mode] = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
IV_BYTES = 16
_UNIT = 16  # block size of both ciphers
_NONCE_BYTES = 12  # length of the GCM nonce, the start of its IV
_TAG_BYTES = 16
_FIRST_COUNTER = 2
_CHECK_BYTES = 16  # length of the random bytes in a key check, and of their digest


def mode_of(beginning: bytes) -> Mode | None:
    """Return the mode of an encrypted file, given its first bytes."""
    return MAGIC.get(struct.unpack("<I", beginning[:4])[0]) if len(beginning) >= 4 else None


class BlockCipher(Protocol):
    """An encryption mode with a key. All lengths and positions are in bytes, relative to the start of a block.

    Attributes:
        mode: name of the mode.
        tag_bytes: length of a block's authentication tag. 0 means that the mode has no tags.
        tail_bytes: bytes at the end of a block's ciphertext that determine the length of its plaintext.
    """

    mode: Mode
    tag_bytes: int
    tail_bytes: int

    def sealed(self, length: int) -> int:
        """Return the length of the ciphertext of a plaintext of this length."""

    def plain(self, iv: bytes, length: int, tail: bytes) -> int | None:
        """Return the length of the plaintext of a ciphertext, given its tail, or None if no such ciphertext exists."""

    def needed(self, at: int, length: int) -> tuple[int, int]:
        """Return the range of the ciphertext that a range of plaintext from `at` on requires."""

    def decrypt(self, iv: bytes, at: int, pieces: Iterable[memoryview], into: memoryview) -> None:
        """Fill `into` with the plaintext from `at` on, given the `needed` ciphertext in pieces. The tag is not checked.

        Each piece except the last has a multiple of 32 bytes.
        """

    def key_check(self) -> bytes:
        """Return a value that distinguishes keys without revealing them: random bytes and their digest under the key.

        An attacker can try keys with it, as with an encrypted file. There are too many random keys for that to succeed.
        """

    def has_key_of(self, key_check: bytes) -> bool:
        """Return whether a key check was created with this key."""

    def is_authentic(self, iv: bytes, tag: bytes, pieces: Iterable[bytes]) -> bool:
        """Return whether a complete ciphertext has this tag."""

    def begin(self, iv: bytes) -> Any:  # noqa: ANN401 - a context of the library, whose type depends on the mode
        """Return a context that encrypts a block from its first byte with `update_into`."""

    def finish(self, context: Any, length: int) -> tuple[bytes, bytes]:  # noqa: ANN401 - as above
        """Return the rest of the ciphertext and its tag."""


def cipher_of(mode: Mode, key: bytes) -> BlockCipher:
    """Return the cipher of a mode, given a key of valid length.

    Raises:
        RequestError: the encryption package is not installed.
    """
    return _Gcm(mode, key) if mode == "AES-GCM" else _Cbc(mode, key)


class _Cipher:
    def __init__(self, mode: Mode, key: bytes) -> None:
        with needs_extra("crypto", f"encryption with {mode}"):
            from cryptography.hazmat.primitives import ciphers  # noqa: PLC0415 - it takes 10 MB and is rarely needed

        if len(key) not in KEY_BYTES[mode]:
            raise ValueError(f"{mode} does not accept a key of {len(key)} bytes")
        self.mode = mode
        self._modes = ciphers.modes
        self._algorithm = ciphers.algorithms.SM4(key) if mode == "SM4-CBC" else ciphers.algorithms.AES(key)
        self._cipher = ciphers.Cipher
        self._key = key

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mode})"

    def key_check(self) -> bytes:
        salt = os.urandom(_CHECK_BYTES)
        return salt + self._digest(salt)

    def has_key_of(self, key_check: bytes) -> bool:
        return hmac.compare_digest(key_check[_CHECK_BYTES:], self._digest(key_check[:_CHECK_BYTES]))

    def _digest(self, salt: bytes) -> bytes:
        return hmac.digest(self._key, b"reshard key check" + salt, "sha256")[:_CHECK_BYTES]


class _Gcm(_Cipher):
    tag_bytes, tail_bytes = _TAG_BYTES, 0

    def sealed(self, length: int) -> int:
        return length

    def plain(self, iv: bytes, length: int, tail: bytes) -> int | None:
        del iv, tail
        return length

    def needed(self, at: int, length: int) -> tuple[int, int]:
        return at, at + length

    def decrypt(self, iv: bytes, at: int, pieces: Iterable[memoryview], into: memoryview) -> None:
        counter = iv[:_NONCE_BYTES] + (_FIRST_COUNTER + at // _UNIT).to_bytes(_UNIT - _NONCE_BYTES, "big")
        decryptor = self._cipher(self._algorithm, self._modes.CTR(counter)).decryptor()
        decryptor.update(bytes(at % _UNIT))
        done = 0
        for piece in pieces:
            done += decryptor.update_into(piece, into[done : done + len(piece)])

    def is_authentic(self, iv: bytes, tag: bytes, pieces: Iterable[bytes]) -> bool:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above

        decryptor = self._cipher(self._algorithm, self._modes.GCM(iv[:_NONCE_BYTES], tag)).decryptor()
        into = bytearray()
        for piece in pieces:
            if len(into) < len(piece):
                into = bytearray(len(piece))
            decryptor.update_into(piece, into)
        try:
            decryptor.finalize()
        except InvalidTag:
            return False
        return True

    def begin(self, iv: bytes) -> Any:  # noqa: ANN401 - see BlockCipher
        return self._cipher(self._algorithm, self._modes.GCM(iv[:_NONCE_BYTES])).encryptor()

    def finish(self, context: Any, length: int) -> tuple[bytes, bytes]:  # noqa: ANN401 - see BlockCipher
        del length
        return context.finalize(), context.tag


class _Cbc(_Cipher):
    """CBC mode with PKCS#7 padding."""

    tag_bytes, tail_bytes = 0, 2 * _UNIT

    def sealed(self, length: int) -> int:
        return length // _UNIT * _UNIT + _UNIT

    def plain(self, iv: bytes, length: int, tail: bytes) -> int | None:
        if length % _UNIT:
            return None
        before = iv if length == _UNIT else tail[:_UNIT]
        last = self._cipher(self._algorithm, self._modes.CBC(before)).decryptor().update(tail[_UNIT:])
        padding = last[-1]
        return length - padding if 1 <= padding <= _UNIT and last.endswith(bytes([padding]) * padding) else None

    def needed(self, at: int, length: int) -> tuple[int, int]:
        return max(0, at // _UNIT * _UNIT - _UNIT), -(-(at + length) // _UNIT) * _UNIT

    def decrypt(self, iv: bytes, at: int, pieces: Iterable[memoryview], into: memoryview) -> None:
        decryptor = self._cipher(self._algorithm, self._modes.CBC(iv)).decryptor()
        ahead = at - self.needed(at, 1)[0]  # the first unit may decrypt to garbage, because its IV is that of another position
        done = 0
        for piece in pieces:
            if ahead or len(into) - done < len(piece) + _UNIT - 1:  # the library requires more room than it fills
                part = memoryview(decryptor.update(piece))[ahead:][: len(into) - done]
                into[done : done + len(part)] = part
                done, ahead = done + len(part), 0
            else:
                done += decryptor.update_into(piece, into[done:])

    def is_authentic(self, iv: bytes, tag: bytes, pieces: Iterable[bytes]) -> bool:
        del iv, tag, pieces
        return True

    def begin(self, iv: bytes) -> Any:  # noqa: ANN401 - see BlockCipher
        return self._cipher(self._algorithm, self._modes.CBC(iv)).encryptor()

    def finish(self, context: Any, length: int) -> tuple[bytes, bytes]:  # noqa: ANN401 - see BlockCipher
        padding = _UNIT - length % _UNIT
        return context.update(bytes([padding]) * padding), b""
