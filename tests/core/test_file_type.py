"""What a file is: by its bytes, and whether its name agrees."""

import pytest

from app.core.exceptions import FileRejectedError
from app.core.file_type import DEFAULT_ALLOWED_TYPES, FileProbe, FileType
from tests import hostile_files

WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
SHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
OPEN_TEXT = "application/vnd.oasis.opendocument.text"
ACTIVE = ("text/html", "image/svg+xml", "application/xml", "application/xhtml+xml", "text/javascript", "text/css")
ALL = (*DEFAULT_ALLOWED_TYPES, *ACTIVE)


def probe(name: str, content: bytes, *, allowed: tuple[str, ...] = DEFAULT_ALLOWED_TYPES, chunk: int = 997) -> FileType:
    watched = FileProbe(name, allowed)
    for start in range(0, len(content), chunk):
        watched.feed(content[start : start + chunk])
    return watched.finish()


def refusal(name: str, content: bytes, **more: object) -> str:
    with pytest.raises(FileRejectedError) as refused:
        probe(name, content, **more)  # type: ignore[arg-type]
    assert refused.value.code == "file_rejected"
    return str(refused.value)


class TestFileProbe:
    @pytest.mark.parametrize(
        ("name", "content", "content_type"),
        [
            ("a.png", hostile_files.picture("PNG"), "image/png"),
            ("a.jpg", hostile_files.picture("JPEG"), "image/jpeg"),
            ("a.JPEG", hostile_files.picture("JPEG"), "image/jpeg"),
            ("a.gif", hostile_files.picture("GIF"), "image/gif"),
            ("a.webp", hostile_files.picture("WEBP"), "image/webp"),
            ("a.avif", hostile_files.picture("AVIF"), "image/avif"),
            ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
            ("a.pdf", hostile_files.pdf("Text"), "application/pdf"),
            ("a.docx", hostile_files.word("Text"), WORD),
            ("a.xlsx", hostile_files.archive({"[Content_Types].xml": "", "xl/workbook.xml": ""}), SHEET),
            ("a.odt", hostile_files.open_document(), OPEN_TEXT),
            ("a.zip", hostile_files.archive({"a.txt": "Text"}), "application/zip"),
            ("a.zip", hostile_files.archive({}), "application/zip"),
            ("a.mp3", b"ID3\x04\0\0\0\0\0\0" + bytes(99), "audio/mpeg"),
            ("a.mp3", b"\xff\xfb\x90\x64" + bytes(99), "audio/mpeg"),
            ("a.wav", b"RIFF\x24\0\0\0WAVEfmt " + bytes(99), "audio/wav"),
            ("a.m4a", b"\0\0\0\x18ftypM4A \0\0\0\0isom" + bytes(99), "audio/mp4"),
            ("a.mp4", b"\0\0\0\x18ftypisom\0\0\0\0mp41" + bytes(99), "video/mp4"),
            ("a.webm", b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + bytes(99), "video/webm"),
            ("a.txt", b"Text", "text/plain"),
            ("a.txt", "Füße".encode(), "text/plain"),
            ("a.txt", "Füße".encode("cp1252"), "text/plain"),
            ("a.txt", "\ufeffFüße".encode("utf-16-le"), "text/plain"),
            ("a.txt", "\ufeffFüße".encode("utf-16-be"), "text/plain"),
            ("a.txt", b"MZ is how it begins", "text/plain"),
            ("a.txt", b"1 < 2 and <3", "text/plain"),
            ("a.md", b"# Title", "text/markdown"),
            ("a.md", b'<p align="center">Title</p>', "text/markdown"),
            ("a.csv", b"a;b\n1;2\n", "text/csv"),
            ("a.json", b' {"a": 1}', "application/json"),
            ("README", b"Text", "text/plain"),
            ("photo", hostile_files.picture("PNG"), "image/png"),
        ],
    )
    def test_tells_what_it_is(self, name: str, content: bytes, content_type: str) -> None:
        assert probe(name, content).content_type == content_type

    @pytest.mark.parametrize(
        ("content", "extension"),
        [(hostile_files.picture("JPEG"), "jpg"), (hostile_files.word("Text"), "docx"), (b"Text", "txt")],
    )
    def test_tells_the_usual_extension(self, content: bytes, extension: str) -> None:
        assert probe("file", content).extension == extension

    @pytest.mark.parametrize("chunk", [1, 7, 65_536, 10_000_000])
    def test_does_not_mind_how_the_file_is_cut(self, chunk: int) -> None:
        sheet = hostile_files.archive({"xl/workbook.xml": "", "xl/media/a.bin": hostile_files.noise(100_000)})

        assert probe("a.xlsx", sheet, chunk=chunk).content_type == SHEET

    def test_finds_the_directory_behind_megabytes_of_content(self) -> None:
        document: dict[str, str | bytes] = {
            "word/media/film.bin": hostile_files.noise(3_000_000),
            "word/document.xml": "",
        }

        assert probe("a.docx", hostile_files.archive(document), chunk=65_536).content_type == WORD

    def test_counts_what_it_saw(self) -> None:
        watched = FileProbe("a.txt", DEFAULT_ALLOWED_TYPES)
        watched.feed(b"four")
        watched.feed(b"seven..")

        assert watched.size == 11

    def test_keeps_only_the_beginning_and_the_end(self) -> None:
        watched = FileProbe("a.zip", DEFAULT_ALLOWED_TYPES)
        watched.feed(b"PK\3\4")
        for _ in range(200):
            watched.feed(bytes(65_536))

        assert sum(map(len, watched._tail)) <= 1024 * 1024 + 65_536
        assert len(watched._head) == 65_536

    def test_takes_a_picture_with_the_ending_of_another_kind(self) -> None:
        assert probe("photo.jpg", hostile_files.picture("WEBP")).content_type == "image/webp"

    def test_does_not_when_that_kind_is_not_allowed(self) -> None:
        told = refusal("photo.jpg", hostile_files.picture("WEBP"), allowed=("image/webp",))

        assert told == "The name ends in .jpg, but by its bytes the file is image/webp."

    def test_takes_other_types_that_the_operator_names(self) -> None:
        packed = b"7z\xbc\xaf\x27\x1c" + bytes(99)

        assert probe("a.7z", packed, allowed=("application/x-7z-compressed",)).content_type.endswith("7z-compressed")
        assert refusal("a.7z", packed) == "Files of the type application/x-7z-compressed are not accepted."

    def test_takes_types_that_only_others_know(self) -> None:
        found = probe("a.bmp", b"BM" + bytes(99), allowed=("image/bmp", "image/x-ms-bmp"))

        assert found.content_type in {"image/bmp", "image/x-ms-bmp"}
        assert not found.may_be_inline


class TestRefusal:
    def test_of_nothing(self) -> None:
        assert refusal("a.txt", b"") == "The file is empty."

    @pytest.mark.parametrize(
        ("name", "content", "content_type"),
        [
            ("a.svg", hostile_files.svg(), "image/svg+xml"),
            ("a.png", hostile_files.svg(), "image/svg+xml"),
            ("a.txt", b"<!-- a -->\n <SVG onload=alert(1)>", "image/svg+xml"),
            ("a.xml", b"<?xml version='1.0'?><x:svg xmlns:x='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
            ("a.html", b"<!DOCTYPE html><p>", "text/html"),
            ("a.txt", b"\n\t<script>alert(1)</script>", "text/html"),
            ("a.txt", b"<!-- <b> --><html>", "text/html"),
            ("a.txt", b"<b>bold</b>", "text/html"),
            ("a.txt", "\ufeff<html>".encode("utf-16-le"), "text/html"),
            ("a.md", b"<script>alert(1)</script>", "text/html"),
            ("a.html", b"Without a tag", "text/html"),
            ("a.xml", b"<?xml version='1.0'?><a/>", "application/xml"),
            ("a.xhtml", b"<?xml version='1.0'?><html/>", "application/xhtml+xml"),
            ("a.js", b"alert(1)", "text/javascript"),
            ("a.txt", b"#!/bin/sh\nrm -rf /", "text/x-script"),
            ("a.exe", b"MZ\x90\0" + bytes(99), "application/x-msdownload"),
            ("a.pdf", b"MZ\x90\0" + bytes(99), "application/x-msdownload"),
            ("a.bin", b"\x7fELF" + bytes(99), "application/x-executable"),
            (
                "a.docx",
                hostile_files.word_with("word/vbaProject.bin", b"code"),
                "application/vnd.ms-office.macroenabled",
            ),
            ("a.zip", hostile_files.archive({"META-INF/MANIFEST.MF": ""}), "application/java-archive"),
        ],
    )
    def test_names_what_is_not_accepted(self, name: str, content: bytes, content_type: str) -> None:
        assert refusal(name, content) == f"Files of the type {content_type} are not accepted."

    @pytest.mark.parametrize(
        "content",
        [
            hostile_files.noise(500),
            "Without a mark".encode("utf-16-le"),
            b"Text with a NUL \0 in it",
            hostile_files.jpeg_that_is_a_pdf(),
            b"\x00\x01" + hostile_files.pdf("Behind junk"),
            hostile_files.word("Cut off")[:-100],
            b"PK\3\4" + bytes(500),
        ],
    )
    def test_of_what_can_not_be_told(self, content: bytes) -> None:
        assert refusal("a.txt", content) == "What this file is can't be told from its bytes, so it is not accepted."

    @pytest.mark.parametrize(
        ("name", "content", "ending"),
        [
            ("evil.js", hostile_files.gif_that_is_a_script(), "js"),
            ("evil.html", hostile_files.jpeg_with_a_page_in_its_comment(), "html"),
            ("evil.php", hostile_files.picture("GIF"), "php"),
            ("invoice.pdf.exe", hostile_files.pdf("Text"), "exe"),
            ("a.pdf", b"junk before " + hostile_files.pdf("Text").replace(b"\0", b""), "pdf"),
            ("a.docx", hostile_files.archive({"a": "b"}), "docx"),
            ("a.json", b"hello", "json"),
            ("a.py", b"import os", "py"),
            ("a." + "x" * 100, b"Text", "x" * 20),
        ],
    )
    def test_of_a_name_that_claims_something_else(self, name: str, content: bytes, ending: str) -> None:
        assert refusal(name, content).startswith(f"The name ends in .{ending}, but by its bytes the file is ")

    def test_comes_as_soon_as_it_is_clear(self) -> None:
        watched = FileProbe("film.mp4", DEFAULT_ALLOWED_TYPES)

        with pytest.raises(FileRejectedError):
            watched.feed(b"\x7fELF" + bytes(65_536))

    def test_does_not_take_long_with_comments_that_never_end(self) -> None:
        assert "text/html" in refusal("a.txt", b"<!--" * 16_000)
        assert "text/html" in refusal("a.txt", b"<!---->" * 9_000 + b"<b>")


class TestPolyglot:
    def test_is_what_it_begins_with_and_nothing_active(self) -> None:
        for name, content in (
            ("a.gif", hostile_files.gif_that_is_a_script()),
            ("a.jpg", hostile_files.jpeg_with_a_page_in_its_comment()),
            ("a.png", hostile_files.picture("PNG") + hostile_files.archive({"a.class": "code"})),
        ):
            found = probe(name, content, allowed=ALL)
            assert found.content_type.startswith("image/")
            assert not found.is_active


class TestFileType:
    @pytest.mark.parametrize(
        ("name", "content"),
        [("a.svg", hostile_files.svg()), ("a.html", b"<html>"), ("a.js", b"f()"), ("a.xml", b"<?xml?><a/>")],
    )
    def test_that_a_browser_might_run_is_only_an_attachment(self, name: str, content: bytes) -> None:
        found = probe(name, content, allowed=ALL)

        assert found.is_active
        assert not found.may_be_inline

    @pytest.mark.parametrize(
        ("name", "content"), [("a.png", hostile_files.picture()), ("a.pdf", hostile_files.pdf("a"))]
    )
    def test_that_is_harmless_may_be_shown(self, name: str, content: bytes) -> None:
        assert probe(name, content).may_be_inline

    def test_that_is_nothing_to_look_at_is_an_attachment(self) -> None:
        found = probe("a.zip", hostile_files.archive({"a": "b"}))

        assert (found.is_active, found.may_be_inline) == (False, False)


class TestDefaultAllowedTypes:
    def test_holds_nothing_active(self) -> None:
        assert not {*ACTIVE} & {*DEFAULT_ALLOWED_TYPES}

    def test_holds_what_people_send(self) -> None:
        assert {"image/jpeg", "image/heic", "application/pdf", WORD, "text/csv", "video/mp4"} <= {
            *DEFAULT_ALLOWED_TYPES
        }
