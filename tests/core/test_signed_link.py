from collections.abc import Callable
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from app.core.clock import utc_now
from app.core.config import Settings, use_settings
from app.core.exceptions import LinkRefusedError
from app.core.signed_link import Permission, link_to, require_signed

UPLOAD = "6b01811098ac8cb6e718c104"
THUMBNAIL = Permission(UPLOAD, "thumbnail", "64", "1")
OTHERS = (
    Permission("6b01811098ac8cb6e718c105", "thumbnail", "64", "1"),
    Permission(UPLOAD, "content", "64", "1"),
    Permission(UPLOAD, "thumbnail", "256", "1"),
    Permission(UPLOAD, "thumbnail", None, "1"),
    Permission(UPLOAD, "thumbnail", "64"),
    Permission(UPLOAD, "thumbnail", "1", "64"),
    Permission(UPLOAD, "bytes"),
)

MakeSettings = Callable[..., Settings]


@pytest.fixture(autouse=True)
def settings(make_settings: MakeSettings) -> None:
    use_settings(make_settings(public_url="https://files.example/"))


def parts_of(link: str) -> dict[str, str]:
    query = {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
    return {"expires": query["expires"], "signature": query["signature"]}


class TestLink:
    def test_is_below_the_public_address(self) -> None:
        link = link_to(THUMBNAIL, expires_at=utc_now())

        assert link.startswith(f"https://files.example/api/v1/uploads/{UPLOAD}/thumbnail?size=64&download=1&expires=")

    def test_is_good_for_what_it_says(self) -> None:
        link = link_to(THUMBNAIL, expires_at=utc_now() + timedelta(seconds=5))

        require_signed(THUMBNAIL, **parts_of(link))

    @pytest.mark.parametrize("other", OTHERS)
    def test_is_good_for_nothing_else(self, other: Permission) -> None:
        link = link_to(THUMBNAIL, expires_at=utc_now() + timedelta(hours=1))

        with pytest.raises(LinkRefusedError):
            require_signed(other, **parts_of(link))

    def test_can_not_be_prolonged(self) -> None:
        parts = parts_of(link_to(THUMBNAIL, expires_at=utc_now() + timedelta(hours=1)))

        for expires in (str(int(parts["expires"]) + 1), "never", "", f"0{parts['expires']}"):
            with pytest.raises(LinkRefusedError):
                require_signed(THUMBNAIL, **(parts | {"expires": expires}))

    @pytest.mark.parametrize("signature", ["", "x", "\u00e9" * 43, "A" * 43])
    def test_needs_our_signature(self, signature: str) -> None:
        parts = parts_of(link_to(THUMBNAIL, expires_at=utc_now() + timedelta(hours=1)))

        with pytest.raises(LinkRefusedError):
            require_signed(THUMBNAIL, **(parts | {"signature": signature}))

    def test_ends(self) -> None:
        link = link_to(THUMBNAIL, expires_at=utc_now() - timedelta(seconds=2))

        with pytest.raises(LinkRefusedError):
            require_signed(THUMBNAIL, **parts_of(link))

    def test_outlives_a_change_of_the_secret_as_long_as_the_old_one_is_known(self, make_settings: MakeSettings) -> None:
        old, new = "turnip-lantern-orbit-42-walrus-compass", "meadow-violin-77-harbour-pencil-quartz"
        use_settings(make_settings(secret_key=SecretStr(old)))
        parts = parts_of(link_to(THUMBNAIL, expires_at=utc_now() + timedelta(hours=1)))

        use_settings(make_settings(secret_key=SecretStr(new), previous_secret_keys=[SecretStr(old)]))
        require_signed(THUMBNAIL, **parts)
        use_settings(make_settings(secret_key=SecretStr(new)))
        with pytest.raises(LinkRefusedError):
            require_signed(THUMBNAIL, **parts)
