"""What mails say. One template gives the text and the HTML of a mail, so that the two can't differ.

A template is a subject and paragraphs, with empty lines between. A paragraph `[label](link)` is the action. The
structure is read before values are put in, so that no value (a browser's name, say) can add a link of its own.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

TEMPLATES: Final = Path(__file__).resolve().parents[1] / "templates"
_ACTION: Final = re.compile(r"\[(?P<label>[^\]]+)\]\((?P<link>.+)\)")


class Rendered(NamedTuple):
    subject: str
    text: str
    html: str


class _Paragraph(NamedTuple):
    text: Template
    link: Template | None


def render_mail(template: str, values: Mapping[str, Any]) -> Rendered:
    """The mail of that name. A value that the template wants and is not given is an `UndefinedError`."""
    subject, paragraphs = _template(template)
    filled = [
        {"text": _one_line(paragraph.text.render(values)), "link": paragraph.link and paragraph.link.render(values)}
        for paragraph in paragraphs
    ]
    text = "\n\n".join(f"{part['text']}:\n{part['link']}" if part["link"] else str(part["text"]) for part in filled)
    title = _one_line(subject.render(values))
    return Rendered(
        title, f"{text}\n", _environment().get_template("mail/layout.html").render(title=title, parts=filled)
    )


@cache
def _template(name: str) -> tuple[Template, tuple[_Paragraph, ...]]:
    plain = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 - text; the layout escapes # nosec B701
    subject, *parts = (TEMPLATES / "mail" / f"{name}.txt").read_text().strip().split("\n\n")
    paragraphs = []
    for part in parts:
        action = _ACTION.fullmatch(part)
        text, link = (action["label"], plain.from_string(action["link"])) if action else (part, None)
        paragraphs.append(_Paragraph(plain.from_string(text), link))
    return plain.from_string(subject), tuple(paragraphs)


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True)


def render_page(name: str, **values: Any) -> str:
    """One of the few pages that the service shows itself: where the links of mails lead."""
    return _environment().get_template(f"pages/{name}.html").render(values)


def _one_line(text: str) -> str:
    return " ".join(text.split())
