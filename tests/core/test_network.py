import pytest

from app.core.network import (
    are_within,
    client_address,
    household,
    is_base_url,
    is_in,
    is_public,
    parse_address,
    parse_network,
)

PROXIES = ["10.0.0.0/8", "fd00::/8"]


class TestParseAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("203.0.113.9", "203.0.113.9"),
            (" 203.0.113.9 ", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("::FFFF:CB00:7109", "203.0.113.9"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
        ],
    )
    def test_gives_each_address_one_form(self, text: str, address: str) -> None:
        assert str(parse_address(text)) == address

    @pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "1.2.3.4:80", "1.2.3.4/32", "[::1]", "٣.1.1.1", "\0"])
    def test_is_nothing_for_anything_else(self, text: str) -> None:
        assert parse_address(text) is None


class TestParseNetwork:
    @pytest.mark.parametrize(
        ("text", "network"),
        [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("2001:db8::1", "2001:db8::1/128"),
        ],
    )
    def test_gives_each_block_one_form(self, text: str, network: str) -> None:
        assert str(parse_network(text)) == network

    @pytest.mark.parametrize("text", ["", "office", "10.0.0.0/33", "10.0.0", "*", "10.0.0.1-10.0.0.9"])
    def test_refuses_anything_else(self, text: str) -> None:
        with pytest.raises(ValueError, match=r".+"):
            parse_network(text)


class TestPublic:
    @pytest.mark.parametrize(
        "address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "2002:808:808::1", "64:ff9b::808:808"]
    )
    def test_is_an_address_of_the_internet(self, address: str) -> None:
        assert is_public(address)

    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104
            *("224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1"),
            *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1"),
            *("2002:7f00:1::1", "2002:a01:203::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
            *("::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "64:ff9b::e000:1", "fec0::1"),
            *("2001:0:7f00:1::1", "", "localhost", "127.1"),
        ],
    )
    def test_is_no_other_nor_one_that_carries_another(self, address: str) -> None:
        assert not is_public(address)


class TestBaseUrl:
    @pytest.mark.parametrize(
        "url",
        ["http://localhost:11434/v1", "https://api.example.com/v1/", "https://api.example.com", "http://[::1]:8000/a"],
    )
    def test_is_where_a_path_can_be_added(self, url: str) -> None:
        assert is_base_url(url)

    @pytest.mark.parametrize(
        "url",
        [
            *("", "localhost:11434", "ftp://host", "http://", "http:///v1", "http://me:secret@host/v1", "http://@host"),
            *(
                "http://host?a=b",
                "http://host/#a",
                "http://host/v1?",
                "http://host:99999",
                "http://host:0",
                "http://h ost",
            ),
            *("http://[::1", "http://höst/v1", "http://host/\nv1"),
        ],
    )
    def test_is_nothing_else(self, url: str) -> None:
        assert not is_base_url(url)


class TestHousehold:
    @pytest.mark.parametrize(
        ("address", "counted_as"),
        [
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
            ("2001:0DB8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
            ("::1", "::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("a socket", "a socket"),
            (None, "unknown"),
        ],
    )
    def test_is_what_one_customer_is_given(self, address: str | None, counted_as: str) -> None:
        assert household(address) == counted_as


class TestAreWithin:
    OUTER = ("10.1.0.0/16", "192.0.2.7", "2001:db8::/32")

    @pytest.mark.parametrize(
        "blocks",
        [
            ["10.1.0.0/16"],
            ["10.1.2.3", "10.1.128.0/17"],
            ["192.0.2.7/32"],
            ["::ffff:10.1.0.0/112"],
            ["2001:db8::/32", "2001:db8:ffff::1"],
        ],
    )
    def test_are_blocks_of_which_each_lies_in_one(self, blocks: list[str]) -> None:
        assert are_within(blocks, self.OUTER)

    @pytest.mark.parametrize("block", ["10.0.0.0/15", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.6/31", "::/0", "2001:db9::1"])
    def test_are_none_of_which_one_reaches_beyond(self, block: str) -> None:
        assert not are_within(["10.1.2.3", block], self.OUTER)


class TestIsIn:
    @pytest.mark.parametrize(
        ("address", "blocks"),
        [
            ("10.1.2.3", ["192.0.2.1", "10.0.0.0/8"]),
            ("10.0.0.0", ["10.0.0.0/8"]),
            ("10.255.255.255", ["10.0.0.0/8"]),
            ("::ffff:10.1.2.3", ["10.0.0.0/8"]),
            ("10.1.2.3", ["::ffff:10.0.0.0/104"]),
            ("10.1.2.3", ["::ffff:10.1.2.3"]),
            ("2001:db8::7", ["2001:db8::/32"]),
            ("2001:0DB8::7", ["2001:db8::7"]),
        ],
    )
    def test_is_true_inside(self, address: str, blocks: list[str]) -> None:
        assert is_in(address, blocks)

    @pytest.mark.parametrize(
        ("address", "blocks"),
        [
            ("10.1.2.3", []),
            ("11.0.0.0", ["10.0.0.0/8"]),
            ("9.255.255.255", ["10.0.0.0/8"]),
            ("10.1.2.4", ["10.1.2.3"]),
            ("10.1.2.3", ["::/0"]),
            ("2001:db8::7", ["0.0.0.0/0"]),
            ("::a01:203", ["10.0.0.0/8"]),
            (None, ["0.0.0.0/0", "::/0"]),
            ("", ["0.0.0.0/0", "::/0"]),
            ("testclient", ["0.0.0.0/0", "::/0"]),
            ("10.1.2.3, 8.8.8.8", ["0.0.0.0/0", "::/0"]),
        ],
    )
    def test_is_false_outside(self, address: str | None, blocks: list[str]) -> None:
        assert not is_in(address, blocks)


class TestClientAddress:
    @pytest.mark.parametrize("claimed", [None, "203.0.113.9", "10.0.0.1", "garbage"])
    def test_is_the_peer_when_no_proxy_is_trusted(self, claimed: str | None) -> None:
        assert client_address("198.51.100.4", claimed, []) == "198.51.100.4"

    def test_is_the_peer_when_that_is_no_trusted_proxy(self) -> None:
        assert client_address("198.51.100.4", "203.0.113.9", PROXIES) == "198.51.100.4"

    @pytest.mark.parametrize(
        ("claimed", "address"),
        [
            ("203.0.113.9", "203.0.113.9"),
            ("1.1.1.1, 203.0.113.9", "203.0.113.9"),
            ("1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
            ("203.0.113.9, 10.0.0.8,10.0.0.7", "203.0.113.9"),
            ("10.0.0.9, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
            ("2001:db8::7", "2001:db8::7"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("  203.0.113.9  ", "203.0.113.9"),
        ],
    )
    def test_is_the_last_that_no_trusted_proxy_wrote(self, claimed: str, address: str) -> None:
        assert client_address("10.0.0.1", claimed, PROXIES) == address

    @pytest.mark.parametrize(
        ("claimed", "address"),
        [
            (None, "10.0.0.1"),
            ("10.0.0.9", "10.0.0.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
        ],
    )
    def test_is_read_in_every_form_that_proxies_write(self, claimed: str | None, address: str) -> None:
        assert client_address("10.0.0.1", claimed, PROXIES) == address

    @pytest.mark.parametrize(
        "claimed",
        ["", "garbage", "203.0.113.9, garbage", "203.0.113.9, garbage, 10.0.0.7", "," * 500, "1.2.3:4", "[x]:1"],
    )
    def test_is_unknown_rather_than_the_proxys_when_it_can_not_be_read(self, claimed: str) -> None:
        assert client_address("10.0.0.1", claimed, PROXIES) is None

    @pytest.mark.parametrize("peer", ["::ffff:10.0.0.1", "fd00::1"])
    def test_knows_a_proxy_in_any_form(self, peer: str) -> None:
        assert client_address(peer, "203.0.113.9", PROXIES) == "203.0.113.9"

    def test_shows_a_mapped_address_as_the_one_it_is(self) -> None:
        assert client_address("::ffff:198.51.100.4", None, []) == "198.51.100.4"

    @pytest.mark.parametrize("peer", [None, "testclient"])
    def test_believes_nobody_without_an_address(self, peer: str | None) -> None:
        assert client_address(peer, "203.0.113.9", ["0.0.0.0/0", "::/0"]) == peer
