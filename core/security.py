# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates of a run: a CA of its own, the SuperLink's certificate, a key for each edge."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["make_credentials", "make_runtime_secret", "make_token"]

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
