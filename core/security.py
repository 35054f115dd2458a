# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates of a job: a CA of its own, certificates, a key for each edge, and one to sign models with."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import PlatformError

__all__ = ["is_signed", "make_credentials", "make_runtime_secret", "make_signing_key", "make_token", "sign"]

_VALID_FOR = timedelta(days=365)
_CLOCK_SKEW = timedelta(hours=1)


def make_runtime_secret(folder: Path) -> None:
    """Write `runtime.secret`, with which the server proves to the SuperLink that it may take a run."""
    make_token(folder / "runtime.secret")


def make_token(path: Path) -> None:
    """Write a random token, readable by this user alone; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_private(path, secrets.token_hex(32).encode())


def make_credentials(folder: Path, *, hosts: Sequence[str], edges: Sequence[str]) -> None:
    """Write `ca.pem`, `server.pem`, `server.key`, and `edge-NAME.key` and `.pub` for each edge.

    Parameters
    ----------
    folder
        Made if it is not there; readable by this user alone.
    hosts
        Names and addresses under which the SuperLink is reached.
    edges
        Names of the edges.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca_key, ca = _authority()
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("solar-corona superlink", ca.subject, key)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    _write_private(folder / "server.key", _private_pem(key))
    for edge in edges:
        edge_key = ec.generate_private_key(ec.SECP384R1())
        # OpenSSH's form, which a stock SuperNode reads too.
        _write_private(folder / f"edge-{edge}.key", _private_pem(edge_key, PrivateFormat.OpenSSH))
        public = edge_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"edge-{edge}.pub").write_bytes(public)
    # Last, so that where it is there, all are.
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))


def make_signing_key(private: Path, public: Path) -> None:
    """Write an Ed25519 key (RFC 8032), readable by this user alone, and its public half; folders are made."""
    key = Ed25519PrivateKey.generate()
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.parent.mkdir(parents=True, exist_ok=True)
    # Last, so that where it is there, both are.
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def sign(private: Path, text: bytes) -> str:
    """Return the signature of a text, in base64.

    Raises
    ------
    PlatformError
        If the file is no Ed25519 key.
    """
    try:
        key = load_pem_private_key(private.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(private, error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(private, None)
    return base64.b64encode(key.sign(text)).decode()


def is_signed(public: Path, text: bytes, signature: str) -> bool:
    """Tell whether a signature in base64 is that of a text.

    Raises
    ------
    PlatformError
        If the file is no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        raise _no_key(public, error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(public, None)
    try:
        key.verify(base64.b64decode(signature, validate=True), text)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _no_key(path: Path, error: Exception | None) -> PlatformError:
    why = f" ({error})" if error is not None else ""
    return PlatformError(f"{path}: is no Ed25519 key in PEM{why}; remove it, and the next run makes one")


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Make a CA. Its key is kept nowhere: nothing more is ever signed with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "solar-corona run CA")])
    certificate = (
        _builder("solar-corona run CA", name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _builder(subject: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALID_FOR)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody else may read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
