"""Certificates by the `cryptography` package, and TLS clients by Python's `ssl`."""

import base64
import datetime
import hashlib
import http.client
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    def __init__(self, name="foreign root"):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        builder = self._builder(self.name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self.root = builder.add_extension(usage, True).sign(self._key, hashes.SHA256())
        self.root_pem = self.root.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject, key):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1)))

    def issue(self, host, uris=(), hours=(-1, 1), authority=False, usage=None, also=()):
        """Chain and key, as PEM. What is usual unless it is said otherwise. `also`: more DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        begin, end = (now + datetime.timedelta(hours=h) for h in hours)
        names = ([x509.DNSName(host)] if host else []) + [x509.DNSName(name) for name in also] + [x509.UniformResourceIdentifier(u) for u in uris]
        builder = (x509.CertificateBuilder().subject_name(_name(host or "leaf")).issuer_name(self.name).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = builder.add_extension(x509.BasicConstraints(authority, None), True)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        leaf = builder.sign(self._key, hashes.SHA256())
        return leaf.public_bytes(serialization.Encoding.PEM).decode(), _pem(key)

    def revoke(self, *certificates):
        """A revocation list with these certificates (PEM), as PEM."""
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (x509.CertificateRevocationListBuilder().issuer_name(self.name)
                   .last_update(now - datetime.timedelta(hours=1)).next_update(now + datetime.timedelta(hours=1))
                   .add_extension(x509.CRLNumber(1), False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False))
        for pem in certificates:
            serial = x509.load_pem_x509_certificate(pem.encode()).serial_number
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - datetime.timedelta(minutes=5)).build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def context(self):
        """For clients that trust this authority only."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root_pem)
        return context


def fingerprint(pem):
    """SHA-256 of a certificate, in hex digits."""
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()


def key_fingerprint(pem):
    """SHA-256 of a certificate's public key (SubjectPublicKeyInfo), in base64."""
    key = x509.load_pem_x509_certificate(pem.encode()).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


class Connection(http.client.HTTPSConnection):
    """To a port of this machine under a name."""

    def __init__(self, port, authority, host):
        super().__init__("127.0.0.1", port, timeout=10, context=authority.context())
        self._name = host

    def connect(self):
        http.client.HTTPConnection.connect(self)
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)

    def serial(self):
        return x509.load_der_x509_certificate(self.sock.getpeercert(True)).serial_number


def get(port, authority, host, path="/"):
    connection = Connection(port, authority, host)
    try:
        connection.request("GET", path, headers={"host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def serial_of(pem):
    return x509.load_pem_x509_certificate(pem.encode()).serial_number
