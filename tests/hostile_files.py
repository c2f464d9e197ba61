"""Files that mean harm, and the honest ones they pretend to be. All are made here; none comes from elsewhere."""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping

import docx
from PIL import Image

# In two parts, so that no scanner takes this file for what it describes.
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
SCRIPT = "<script>alert(document.cookie)</script>"


def noise(length: int) -> bytes:
    """Bytes that mean nothing and can't be packed."""
    return hashlib.shake_256(b"noise").digest(length)


def picture(kind: str = "PNG", *, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> bytes:
    """A picture whose colours change from corner to corner."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, kind, **options)
    return out.getvalue()


def photo(*, size: tuple[int, int] = (40, 30), orientation: int = 1) -> bytes:
    """A JPEG as a phone makes it: with the place where it was taken. Its upper half is red, the lower blue."""
    image = Image.new("RGB", size, "blue")
    image.paste((255, 0, 0), (0, 0, size[0], size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker of the camera"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


def png_bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A few hundred bytes that ask for gigabytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = (("IHDR", header), ("IDAT", zlib.compress(bytes(100_000))), ("IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name.encode(), content) for name, content in chunks)


def gif_bomb() -> bytes:
    """A first frame of four billion pixels, of which none is there."""
    size = struct.pack("<HH", 65_535, 65_535)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size + b"\0\2\1\0\0;"


def png_of_other_size(width: int, height: int) -> bytes:
    """A PNG with the pixels of a small picture and the header of a large one."""
    small = picture("PNG", size=(10, 10))
    return small[:8] + _png_chunk(b"IHDR", struct.pack(">II", width, height) + small[24:29]) + small[33:]


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def gif_that_is_a_script() -> bytes:
    return b"GIF89a=1/*" + bytes(20) + b"*/;alert(document.cookie);"


def jpeg_with_a_page_in_its_comment() -> bytes:
    return picture("JPEG", comment=f"<html><body>{SCRIPT}</body></html>")


def jpeg_that_is_a_pdf() -> bytes:
    return picture("JPEG", comment=pdf("Both at once"))


def svg() -> bytes:
    return f'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>'.encode()


def archive(parts: Mapping[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in parts.items():
            made.writestr(name, content)
    return out.getvalue()


def open_document() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        made.writestr("content.xml", "<office:document-content/>")
    return out.getvalue()


def word(*paragraphs: str, cells: Iterable[str] = ()) -> bytes:
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if row := list(cells):
        table = document.add_table(rows=1, cols=len(row))
        for cell, text in zip(table.rows[0].cells, row, strict=True):
            cell.text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def word_with(part: str, content: bytes) -> bytes:
    """A document in which one part is another."""
    with zipfile.ZipFile(io.BytesIO(word("Text"))) as made:
        parts = {name: made.read(name) for name in made.namelist()}
    return archive({**parts, part: content})


def word_bomb() -> bytes:
    """Some hundred kilobytes that become 200 MB."""
    return word_with("word/document.xml", bytes(200_000_000))


def word_bomb_that_lies() -> bytes:
    """The same, with a directory that says it were 1000 bytes."""
    bomb = word_bomb()
    return bomb.replace(struct.pack("<I", 200_000_000), struct.pack("<I", 1000))


def word_that_asks_for_a_file() -> bytes:
    return _word_with_entities('<!ENTITY e SYSTEM "file:///etc/passwd">')


def word_with_a_billion_words() -> bytes:
    tower = "".join(f'<!ENTITY e{step} "{f"&e{step - 1};" * 10}">' for step in range(1, 10))
    return _word_with_entities(f'<!ENTITY e0 "lol">{tower}<!ENTITY e "&e9;">')


def _word_with_entities(entities: str) -> bytes:
    return word_with(
        "word/document.xml",
        f"""<?xml version="1.0"?><!DOCTYPE d [{entities}]>
        <w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>
        <w:p><w:r><w:t>Before &e; after</w:t></w:r></w:p></w:body></w:document>""".encode(),
    )


def pdf(*pages: str) -> bytes:
    streams = [f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() for text in pages]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, stream in enumerate(streams):
        objects += [_page(5 + 2 * number), _stream(stream)]
    return pdf_of(objects)


def pdf_of(objects: Iterable[bytes]) -> bytes:
    """A PDF of these objects, numbered from 1; the first is the catalogue."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, table)
    return bytes(out)


def pdf_whose_pages_are_their_own_parents() -> bytes:
    catalogue = b"<< /Type /Catalog /Pages 2 0 R >>"
    return pdf_of([catalogue, b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 1000000000 >>"])


def pdf_whose_objects_name_each_other() -> bytes:
    catalogue = b"<< /Type /Catalog /Pages 2 0 R >>"
    return pdf_of([catalogue, b"3 0 R", b"4 0 R", b"2 0 R"])


def pdf_whose_forms_draw_each_other() -> bytes:
    """Each of twenty forms draws the next one ten times."""
    forms = [
        _stream(
            b"/Next Do " * 10,
            b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /Next %d 0 R >> >>" % next_one,
        )
        for next_one in [*range(6, 25), 5]
    ]
    page = b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /XObject << /Next 5 0 R >> >> >>"
    pages = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", pages, page, _stream(b"/Next Do"), *forms])


def pdf_with_a_bomb() -> bytes:
    """A page whose content becomes 300 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b" " * 10_000_000) for _ in range(30)) + packer.flush()
    pages = b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>"
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    catalogue = b"<< /Type /Catalog /Pages 2 0 R >>"
    return pdf_of([catalogue, pages, font, _page(5), _stream(packed, b"/Filter /FlateDecode")])


def _page(content: int) -> bytes:
    fonts = b"<< /Font << /F1 3 0 R >> >>"
    return b"<< /Type /Page /Parent 2 0 R /Contents %d 0 R /Resources %s >>" % (content, fonts)


def _stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), entries, content)
