import pytest
from cryptography.fernet import Fernet, InvalidToken

from app.core.encryption import cipher_of, is_key, key_from
from tests.conftest import SECRET
from tests.core.active import OTHER_SECRET, activate

OLD = b"7Vh1cX0rPq2dQm5T8sKjW3uYzLb6NfGa9HeRiOoUxCk="
NEW = b"b0ZkUnVwN3hqS2RyWm9XcE1hVHlGc0xlQ3ZJZ0hpUUI="


class TestCipherOf:
    def test_reads_what_it_wrote(self) -> None:
        cipher = cipher_of([OLD])

        assert cipher.decrypt(cipher.encrypt(b"turnip")) == b"turnip"

    def test_writes_something_else_each_time(self) -> None:
        cipher = cipher_of([OLD])

        assert cipher.encrypt(b"turnip") != cipher.encrypt(b"turnip")

    def test_writes_under_the_first_key(self) -> None:
        written = cipher_of([NEW, OLD]).encrypt(b"turnip")

        assert Fernet(NEW).decrypt(written) == b"turnip"
        with pytest.raises(InvalidToken):
            Fernet(OLD).decrypt(written)

    def test_reads_under_every_key(self) -> None:
        assert cipher_of([NEW, OLD]).decrypt(cipher_of([OLD]).encrypt(b"turnip")) == b"turnip"

    def test_does_not_read_under_a_key_it_was_not_given(self) -> None:
        with pytest.raises(InvalidToken):
            cipher_of([NEW]).decrypt(cipher_of([OLD]).encrypt(b"turnip"))

    def test_does_not_read_what_was_tampered_with(self) -> None:
        written = bytearray(cipher_of([OLD]).encrypt(b"turnip"))
        written[30] = ord("A") if written[30] != ord("A") else ord("B")

        with pytest.raises(InvalidToken):
            cipher_of([OLD]).decrypt(bytes(written))


class TestIsKey:
    def test_knows_the_form_of_a_key(self) -> None:
        assert is_key(OLD.decode())
        assert is_key(key_from(bytes(range(32))).decode())

    @pytest.mark.parametrize(
        "text", ["", "zebra", OLD.decode()[:-4], f"{OLD.decode()}AAAA", (OLD + NEW).decode(), "é" * 44, "!" * 43 + "="]
    )
    def test_knows_what_is_none(self, text: str) -> None:
        assert not is_key(text)


class TestCipherOfTheSettings:
    def test_is_made_of_the_encryption_keys(self) -> None:
        cipher = activate(encryption_keys=[NEW.decode(), OLD.decode()]).cipher

        assert cipher.decrypt(Fernet(OLD).encrypt(b"turnip")) == b"turnip"
        assert Fernet(NEW).decrypt(cipher.encrypt(b"turnip")) == b"turnip"

    def test_follows_the_secret_key_where_none_are_set(self) -> None:
        written = activate().cipher.encrypt(b"turnip")

        assert activate(secret_key=OTHER_SECRET, previous_secret_keys=[SECRET]).cipher.decrypt(written) == b"turnip"
        with pytest.raises(InvalidToken):
            activate(secret_key=OTHER_SECRET).cipher.decrypt(written)
