"""Names of files: cleaned when they come, and safe in a header when they go."""

import pytest
from aiohttp.multipart import content_disposition_filename, parse_content_disposition

from app.core.file_name import clean_name, content_disposition


class TestCleanName:
    @pytest.mark.parametrize(
        ("declared", "name"),
        [
            ("photo.jpg", "photo.jpg"),
            ("Mein Urlaub (1).jpg", "Mein Urlaub (1).jpg"),
            ("../../etc/passwd", "passwd"),
            ("..\\..\\windows\\system.ini", "system.ini"),
            ("C:\\fakepath\\photo.jpg", "photo.jpg"),
            ("/etc/cron.d/job", "job"),
            ("evil.php\0.jpg", "evil.php.jpg"),
            ("a\r\nSet-Cookie: x.txt", "aSet-Cookie_ x.txt"),
            ("photo\u202egpj.exe", "photogpj.exe"),
            ("a\u2066b\u2069c\u200e\u200f\u061c\ufeff.txt", "abc.txt"),
            ("a\u2028b\u2029.txt", "ab.txt"),
            ("half\ud800.txt", "half.txt"),
            ("Jose\u0301.txt", "José.txt"),
            (".htaccess", "htaccess"),
            ("...a.txt. . .", "a.txt"),
            ("evil.exe::$DATA", "evil.exe__$DATA"),
            ('a<b>"c|d?e*.txt', "a_b__c_d_e_.txt"),
            ("CON", "_CON"),
            ("nul.txt", "_nul.txt"),
            ("com1.tar.gz", "_com1.tar.gz"),
            ("LPT\u00b9.txt", "_LPT\u00b9.txt"),
            ("aux .txt", "_aux .txt"),
            ("console.txt", "console.txt"),
            ("com10.txt", "com10.txt"),
            ("日本語.pdf", "日本語.pdf"),
            ("\U0001f468\u200d\U0001f469.png", "\U0001f468\u200d\U0001f469.png"),
        ],
    )
    def test_keeps_what_is_harmless(self, declared: str, name: str) -> None:
        assert clean_name(declared, extension="bin") == name

    @pytest.mark.parametrize("declared", ["", ".", "..", "/", "a/", "\0", "\u202e", " . ", "\u200d"])
    def test_makes_a_name_of_nothing(self, declared: str) -> None:
        assert clean_name(declared, extension="png") == "file.png"
        assert clean_name(declared) == "file"

    @pytest.mark.parametrize("letter", ["a", "ä", "語", "\U0001f600"])
    def test_has_at_most_255_bytes_and_its_extension(self, letter: str) -> None:
        name = clean_name(f"{letter * 300}.docx")

        assert 250 < len(name.encode()) <= 255
        assert name == f"{letter * (250 // len(letter.encode()))}.docx"

    def test_cuts_an_ending_that_is_no_extension(self) -> None:
        assert clean_name(f"a.{'b' * 300}") == f"a.{'b' * 253}"

    def test_is_the_same_the_second_time(self) -> None:
        for declared in ("../../etc/passwd", "CON.txt", f"{'ä' * 126}. . .txt", "photo\u202egpj.exe", "a./ .b. "):
            once = clean_name(declared)
            assert clean_name(once) == once


class TestContentDisposition:
    def test_is_plain_for_a_plain_name(self) -> None:
        assert content_disposition("photo (1).jpg", inline=True) == 'inline; filename="photo (1).jpg"'
        assert content_disposition("README", inline=False) == 'attachment; filename="README"'

    @pytest.mark.parametrize(
        ("name", "header"),
        [
            ("Füße.pdf", "attachment; filename=\"Fue.pdf\"; filename*=UTF-8''F%C3%BC%C3%9Fe.pdf"),
            ("日本.pdf", "attachment; filename=\"file.pdf\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC.pdf"),
            ("日本", "attachment; filename=\"file\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC"),
            ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
            ('a"b\\c.txt', "attachment; filename=\"a_b_c.txt\"; filename*=UTF-8''a%22b%5Cc.txt"),
            ("it's.txt", 'attachment; filename="it\'s.txt"'),
            ("é's*().txt", "attachment; filename=\"e's_().txt\"; filename*=UTF-8''%C3%A9%27s%2A%28%29.txt"),
        ],
    )
    def test_says_other_names_in_both_ways(self, name: str, header: str) -> None:
        assert content_disposition(name, inline=False) == header

    @pytest.mark.parametrize("name", ["photo.jpg", "Füße.pdf", "日本語.pdf", 'a"b;c=d.txt', "100% (ü).txt"])
    def test_is_read_back_by_others(self, name: str) -> None:
        kind, parameters = parse_content_disposition(content_disposition(name, inline=False))

        assert kind == "attachment"
        assert content_disposition_filename(parameters) == name

    @pytest.mark.parametrize("name", ["a\r\nX-Evil: 1.txt", "ü\r\nX-Evil: 1.txt", 'a"; filename="b.exe'])
    def test_can_not_be_left(self, name: str) -> None:
        header = content_disposition(name, inline=False)

        assert header.isascii()
        assert header.isprintable()
        assert header.count('"') == 2
