"""Work on files in processes of their own: what comes back, and what never does."""

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from app.core import document_work, image_work
from app.core.file_work import Answer, Fault
from app.core.text_types import TEXT_TYPES
from app.services import file_worker
from app.services.file_worker import Failure, FileWorkers, Picture, Text
from tests import hostile_files

WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PDF = "application/pdf"


@pytest.fixture
async def workers() -> AsyncIterator[FileWorkers]:
    made = FileWorkers(at_once=2)
    yield made
    await made.close()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content)
        return path

    return write


Put = Callable[[bytes], Path]


async def thumbnails(workers: FileWorkers, path: Path, kind: str) -> Picture:
    made = await workers.make_thumbnails(path, f"image/{kind}")
    assert isinstance(made, Picture), made
    return made


async def text(workers: FileWorkers, path: Path, content_type: str) -> Text:
    taken = await workers.extract_text(path, content_type)
    assert isinstance(taken, Text), taken
    return taken


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def colours(content: bytes, place: tuple[int, int], mode: str = "RGB") -> tuple[int, ...]:
    """Red, green, blue, and how much shines through, at that place."""
    found = opened(content).convert(mode).getpixel(place)
    assert isinstance(found, tuple)
    return found


class TestMakeThumbnails:
    @pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "avif"])
    async def test_makes_three_in_webp(self, workers: FileWorkers, put: Put, kind: str) -> None:
        made = await thumbnails(workers, put(hostile_files.picture(kind, size=(2000, 1500))), kind)

        assert (made.width, made.height) == (2000, 1500)
        assert [(one.size, one.width, one.height) for one in made.thumbnails] == [
            (64, 64, 48),
            (256, 256, 192),
            (1024, 1024, 768),
        ]
        for one in made.thumbnails:
            assert opened(one.content).format == "WEBP"
            assert opened(one.content).size == (one.width, one.height)

    async def test_never_enlarges(self, workers: FileWorkers, put: Put) -> None:
        made = await thumbnails(workers, put(hostile_files.picture(size=(100, 1))), "png")

        assert [(one.width, one.height) for one in made.thumbnails] == [(64, 1), (100, 1), (100, 1)]

    async def test_turns_upright_what_a_camera_held_otherwise(self, workers: FileWorkers, put: Put) -> None:
        made = await thumbnails(workers, put(hostile_files.photo(size=(400, 200), orientation=6)), "jpeg")

        assert (made.width, made.height) == opened(made.thumbnails[2].content).size == (200, 400)
        red, _, blue = colours(made.thumbnails[2].content, (180, 200))  # the upper half is to the right now
        assert (red > 200, blue < 60) == (True, True)

    async def test_leaves_out_where_the_picture_was_taken(self, workers: FileWorkers, put: Put) -> None:
        photo = hostile_files.photo()
        assert b"Maker of the camera" in photo

        made = await thumbnails(workers, put(photo), "jpeg")

        for one in made.thumbnails:
            assert not opened(one.content).getexif()
            assert not {"exif", "icc_profile", "xmp"} & opened(one.content).info.keys()
            assert b"Maker" not in one.content

    async def test_keeps_what_shines_through(self, workers: FileWorkers, put: Put) -> None:
        out = io.BytesIO()
        Image.new("RGBA", (100, 100), (255, 0, 0, 0)).save(out, "PNG")

        made = await thumbnails(workers, put(out.getvalue()), "png")

        assert colours(made.thumbnails[0].content, (5, 5), "RGBA")[3] == 0

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
    async def test_knows_all_kinds_of_pixels(self, workers: FileWorkers, put: Put, mode: str) -> None:
        out = io.BytesIO()
        Image.new(mode, (50, 50), 65_535 if mode == "I;16" else "white").save(out, "PNG")

        made = await thumbnails(workers, put(out.getvalue()), "png")

        assert min(colours(made.thumbnails[0].content, (20, 20))) >= 250

    async def test_shows_the_colours_that_were_meant(self, workers: FileWorkers, put: Put) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        meant, broken = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (50, 50), "red").save(meant, "JPEG", icc_profile=profile)
        Image.new("RGB", (50, 50), "red").save(broken, "JPEG", icc_profile=b"no profile")

        for photo in (meant, broken):
            made = await thumbnails(workers, put(photo.getvalue()), "jpeg")
            assert colours(made.thumbnails[0].content, (20, 20))[0] > 240

    async def test_shows_the_first_of_many(self, workers: FileWorkers, put: Put) -> None:
        first, *others = (Image.new("RGB", (50, 50), colour) for colour in ("red", "blue", "green"))
        out = io.BytesIO()
        first.save(out, "GIF", save_all=True, append_images=others)

        made = await thumbnails(workers, put(out.getvalue()), "gif")

        red, _, blue = colours(made.thumbnails[0].content, (20, 20))
        assert (red > 200, blue < 60) == (True, True)

    @pytest.mark.parametrize(
        ("kind", "content"),
        [
            ("png", hostile_files.png_bomb()),
            ("png", hostile_files.png_bomb(7072, 7072)),
            ("png", hostile_files.png_bomb(2**31 - 1, 1)),
            ("gif", hostile_files.gif_bomb()),
        ],
    )
    async def test_refuses_too_many_pixels_before_it_unpacks_them(
        self, workers: FileWorkers, put: Put, kind: str, content: bytes
    ) -> None:
        refused = await workers.make_thumbnails(put(content), f"image/{kind}")

        assert refused == Failure(Fault.REFUSED, "The picture has more than 50 million pixels.")

    @pytest.mark.parametrize(
        ("kind", "content"),
        [
            ("jpeg", hostile_files.photo(size=(400, 300))[:-900]),
            ("png", hostile_files.picture("PNG", size=(400, 300))[:-100]),
            ("png", hostile_files.picture("PNG")[:20]),
            ("webp", hostile_files.picture("WEBP", size=(400, 300))[:-50]),
            ("png", hostile_files.png_of_other_size(7000, 7000)),
            ("gif", hostile_files.gif_that_is_a_script()),
            ("png", hostile_files.picture("JPEG")),
            ("png", b""),
        ],
    )
    async def test_says_that_a_picture_is_damaged(
        self, workers: FileWorkers, put: Put, kind: str, content: bytes
    ) -> None:
        refused = await workers.make_thumbnails(put(content), f"image/{kind}")

        assert isinstance(refused, Failure)
        assert refused.fault is Fault.DAMAGED
        assert refused.sentence.startswith("The picture is damaged")

    async def test_loses_the_page_in_a_comment(self, workers: FileWorkers, put: Put) -> None:
        made = await thumbnails(workers, put(hostile_files.jpeg_with_a_page_in_its_comment()), "jpeg")

        assert not any(b"script" in one.content for one in made.thumbnails)


class TestExtractText:
    async def test_reads_a_pdf(self, workers: FileWorkers, put: Put) -> None:
        taken = await text(workers, put(hostile_files.pdf("One", "Two")), PDF)

        assert taken == Text(b"One\n\nTwo\n\n", 10, is_truncated=False)

    async def test_reads_a_word_document_with_its_tables(self, workers: FileWorkers, put: Put) -> None:
        taken = await text(workers, put(hostile_files.word("Title", "Füße", cells=("a", "b"))), WORD)

        assert taken.content.decode() == "Title\nFüße\na\nb\n"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    @pytest.mark.parametrize("content_type", ["text/plain", "text/markdown", "text/csv"])
    async def test_reads_text(self, workers: FileWorkers, put: Put, content_type: str, encoding: str) -> None:
        taken = await text(workers, put("Füße;2\r\n".encode(encoding)), content_type)

        assert taken.content.decode() == "Füße;2\r\n"

    async def test_leaves_out_what_is_no_text(self, workers: FileWorkers, put: Put) -> None:
        taken = await text(workers, put(b"a\0b\x07c\x1bd\te"), "text/plain")

        assert taken.content == b"abcd\te"

    async def test_takes_five_million_characters(self, workers: FileWorkers, put: Put) -> None:
        taken = await text(workers, put("ä".encode() * 5_000_001), "text/plain")
        whole = await text(workers, put("ä".encode() * 5_000_000), "text/plain")

        assert (taken.characters, taken.is_truncated, len(taken.content)) == (5_000_000, True, 10_000_000)
        assert (whole.characters, whole.is_truncated) == (5_000_000, False)

    async def test_takes_two_thousand_pages(self, workers: FileWorkers, put: Put) -> None:
        taken = await text(workers, put(hostile_files.pdf(*["x"] * 2001)), PDF)

        assert (taken.characters, taken.is_truncated) == (6000, True)

    @pytest.mark.parametrize(
        "content",
        [
            hostile_files.pdf_whose_pages_are_their_own_parents(),
            hostile_files.pdf_whose_objects_name_each_other(),
            hostile_files.pdf("Text")[:200],
            b"%PDF-1.7\n",
        ],
    )
    async def test_says_that_a_pdf_is_damaged(self, workers: FileWorkers, put: Put, content: bytes) -> None:
        refused = await workers.extract_text(put(content), PDF)

        assert isinstance(refused, Failure)
        assert refused.fault is Fault.DAMAGED

    @pytest.mark.parametrize("make", [hostile_files.pdf_whose_forms_draw_each_other, hostile_files.pdf_with_a_bomb])
    async def test_ends_with_a_pdf_that_never_would(
        self, workers: FileWorkers, put: Put, make: Callable[[], bytes]
    ) -> None:
        outcome = await workers.extract_text(put(make()), PDF)

        is_without_text = isinstance(outcome, Text) and not outcome.content.strip()
        is_stopped = isinstance(outcome, Failure) and outcome.fault in {Fault.TOO_LONG, Fault.TOO_LARGE, Fault.DAMAGED}
        assert is_without_text or is_stopped

    async def test_refuses_a_word_document_that_becomes_too_large(self, workers: FileWorkers, put: Put) -> None:
        refused = await workers.extract_text(put(hostile_files.word_bomb()), WORD)

        assert refused == Failure(Fault.REFUSED, "The document is far larger unpacked than it may be.")

    async def test_unpacks_no_more_than_the_directory_says(self, workers: FileWorkers, put: Put) -> None:
        refused = await workers.extract_text(put(hostile_files.word_bomb_that_lies()), WORD)

        assert refused == Failure(Fault.DAMAGED, "The document is damaged.")

    async def test_refuses_one_that_is_merely_large(self, workers: FileWorkers, put: Put) -> None:
        signs = hostile_files.noise(1_010_000)
        large = b"".join(signs[start : start + 200] + bytes(19_800) for start in range(0, len(signs), 200))
        packed = hostile_files.word_with("word/media/a.bin", large)
        assert len(large) > 100_000_000
        assert len(packed) * 200 > len(large)

        refused = await workers.extract_text(put(packed), WORD)

        assert refused == Failure(Fault.REFUSED, "The document is far larger unpacked than it may be.")

    async def test_refuses_what_is_packed_too_well(self, workers: FileWorkers, put: Put) -> None:
        packed = hostile_files.word_with("word/media/a.bin", bytes(60_000_000))

        refused = await workers.extract_text(put(packed), WORD)

        assert isinstance(refused, Failure)
        assert refused.fault is Fault.REFUSED

    async def test_reads_no_other_file_for_a_word_document(self, workers: FileWorkers, put: Put) -> None:
        outcome = await workers.extract_text(put(hostile_files.word_that_asks_for_a_file()), WORD)

        assert isinstance(outcome, Failure) or b"root" not in outcome.content

    async def test_does_not_write_a_billion_words(self, workers: FileWorkers, put: Put) -> None:
        outcome = await workers.extract_text(put(hostile_files.word_with_a_billion_words()), WORD)

        assert isinstance(outcome, Failure) or b"lol" not in outcome.content

    @pytest.mark.parametrize(
        "content", [b"", b"PK\3\4", hostile_files.archive({"a": "b"}), hostile_files.word("x")[:-9]]
    )
    async def test_says_that_a_word_document_is_damaged(self, workers: FileWorkers, put: Put, content: bytes) -> None:
        refused = await workers.extract_text(put(content), WORD)

        assert refused == Failure(Fault.DAMAGED, "The document is damaged.")

    async def test_gives_what_it_has_when_time_is_up(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(hostile_files.pdf("One", "Two"))

        with path.open("rb") as file:
            answer = document_work.extract_text(file, [PDF, "0"])

        assert answer == Answer({"characters": 5, "is_truncated": True}, [b"One\n\n"])


class TestTypes:
    def test_are_those_that_the_work_knows(self) -> None:
        assert image_work.FORMATS.keys() == file_worker.IMAGE_TYPES
        assert document_work.TEXT_TYPES == TEXT_TYPES
        assert {*image_work.SIZES} == {*file_worker.THUMBNAIL_SIZES}
