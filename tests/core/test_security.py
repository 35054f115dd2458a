# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates of a run, held against the standard library's TLS."""

from __future__ import annotations

import ssl
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)

from solar_corona.core.security import is_signed, make_credentials, make_runtime_secret, make_signing_key, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "keys"
    make_credentials(folder, hosts=["localhost", "127.0.0.1", "::1"], edges=["0", "1"])
    return folder


def _shake_hands(folder, host, *, ca=None):
    """Connect a client that expects `host` to a server with the run's certificate, in memory."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder / "server.pem", folder / "server.key")
    client_context = ssl.create_default_context(cafile=str(ca or folder / "ca.pem"))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert waiting == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_certificate_is_good_for_its_hosts(keys, host):
    _shake_hands(keys, host)


@pytest.mark.parametrize("host", ["example.org", "127.0.0.2"])
def test_the_certificate_is_good_for_no_other_host(keys, host):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|doesn't match|not valid for"):
        _shake_hands(keys, host)


def test_another_runs_ca_does_not_vouch_for_it(keys, tmp_path):
    make_credentials(tmp_path, hosts=["localhost"], edges=[])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        _shake_hands(keys, "localhost", ca=tmp_path / "ca.pem")


def test_private_files_are_readable_by_their_owner_alone(keys, tmp_path):
    make_runtime_secret(tmp_path / "new")
    private = [*keys.glob("*.key"), tmp_path / "new" / "runtime.secret"]
    assert len(private) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (keys, tmp_path / "new")} == {0o700}


def test_the_cas_key_is_kept_nowhere(keys):
    public = load_pem_private_key((keys / "server.key").read_bytes(), None).public_key()
    names = sorted(path.name for path in keys.iterdir())
    assert names == [
        "ca.pem",
        "edge-0.key",
        "edge-0.pub",
        "edge-1.key",
        "edge-1.pub",
        "server.key",
        "server.pem",
    ]
    from cryptography.x509 import load_pem_x509_certificate

    assert load_pem_x509_certificate((keys / "ca.pem").read_bytes()).public_key() != public


def test_each_edges_two_halves_belong_together_and_to_no_other(keys):
    halves = {}
    for name in ("edge-0", "edge-1"):
        private = load_ssh_private_key((keys / f"{name}.key").read_bytes(), None)
        public = load_pem_public_key((keys / f"{name}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(private.sign(b"x", ec.ECDSA(SHA256())), b"x", ec.ECDSA(SHA256()))
        halves[name] = public.public_numbers()
    assert halves["edge-0"] != halves["edge-1"]


def test_where_the_ca_is_all_else_is_too(tmp_path):
    """A kill between two files is told by the missing CA, which `run --resume` looks for."""
    with pytest.raises(ValueError, match=r"label|IDNA|A-label|ASCII|ascii|DNS|encoded"):
        make_credentials(tmp_path, hosts=["\u00e4.example"], edges=["a"])
    assert not (tmp_path / "ca.pem").exists()


def test_a_secret_is_new_each_time(tmp_path):
    found = set()
    for name in ("a", "b"):
        make_runtime_secret(tmp_path / name)
        found.add((tmp_path / name / "runtime.secret").read_bytes())
    assert len(found) == 2
    assert all(len(secret) == 64 for secret in found)


@pytest.fixture(scope="module")
def signing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signing")
    make_signing_key(folder / "a.key", folder / "a.pub")
    make_signing_key(folder / "b.key", folder / "b.pub")
    return folder


def test_a_signature_holds_for_its_own_text_and_key_alone(signing):
    signature = sign(signing / "a.key", b"version 2")
    assert is_signed(signing / "a.pub", b"version 2", signature)
    assert not is_signed(signing / "a.pub", b"version 3", signature)
    assert not is_signed(signing / "b.pub", b"version 2", signature)
    assert stat.S_IMODE((signing / "a.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("signature", ["", "AAAA", "no base64!", "\u00e4", "A" * 5000])
def test_what_is_no_signature_is_none(signing, signature):
    assert not is_signed(signing / "a.pub", b"version 2", signature)


def test_a_file_that_is_no_key_is_told_as_such(signing):
    (signing / "bad").write_text("nonsense")
    with pytest.raises(OSError, match="is no Ed25519 key"):
        sign(signing / "bad", b"x")
    with pytest.raises(OSError, match="is no Ed25519 key"):
        is_signed(signing / "missing", b"x", "AAAA")
