from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from app.core.keyring import Keyring

NEW, OLD = b"n" * 16 + b"0123456789abcdef", b"o" * 16 + b"0123456789abcdef"


def expanded(secret: bytes, purpose: str) -> bytes:
    return HKDFExpand(SHA256(), 32, b"octopus " + purpose.encode()).derive(secret)


class TestKeyring:
    def test_signs_with_the_current_secret(self) -> None:
        assert Keyring((NEW, OLD)).signing_secret == NEW

    def test_derives_as_rfc_5869_does(self) -> None:
        assert Keyring((NEW, OLD)).derive("cursor") == (expanded(NEW, "cursor"), expanded(OLD, "cursor"))

    def test_has_another_key_for_each_purpose_and_secret(self) -> None:
        keyring = Keyring((NEW, OLD))

        keys = [*keyring.derive("cursor"), *keyring.derive("refresh"), *keyring.derive("api key"), NEW, OLD]

        assert len(set(keys)) == 8

    def test_gives_the_mac_under_every_secret_the_current_one_first(self) -> None:
        reference = HMAC(expanded(NEW, "refresh"), SHA256())
        reference.update(b"message")

        macs = Keyring((NEW, OLD)).macs("refresh", b"message")

        assert macs[0] == reference.finalize() == Keyring((NEW,)).mac("refresh", b"message")
        assert macs[1:] == [Keyring((OLD,)).mac("refresh", b"message")]

    def test_depends_on_every_part(self) -> None:
        keyring = Keyring((NEW,))

        assert keyring.mac("cursor", b"a") != keyring.mac("cursor", b"b")
        assert keyring.mac("cursor", b"a") != keyring.mac("refresh", b"a")

    def test_shows_no_secret(self) -> None:
        keyring = Keyring((NEW, OLD))

        assert "0123456789abcdef" not in repr(keyring) + str(keyring)
