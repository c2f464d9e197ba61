import re
from html.parser import HTMLParser
from typing import Any

import pytest
from jinja2 import UndefinedError

from app.core.mail_templates import TEMPLATES, render_mail, render_page
from app.models.enums import MailKind

LINK = "https://octopus.example/reset?lang=en&token=abc.def"
VALUES: dict[str, Any] = {"name": "Ada Lovelace", "until": "3 March 2026, 12:00 UTC", "link": LINK}


class Markup(HTMLParser):
    """The tags of a page, where its links lead, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src", "action"}]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


class TestMail:
    def test_has_a_subject_and_says_the_same_in_text_and_html(self) -> None:
        subject, text, html = render_mail("password_reset", VALUES)

        assert subject == "Reset your password"
        assert text == (
            "Hello Ada Lovelace,\n\n"
            "Somebody, probably you, asked for a new password for your account. The link works once, "
            "until 3 March 2026, 12:00 UTC.\n\n"
            "Choose a new password:\n"
            "https://octopus.example/reset?lang=en&token=abc.def\n\n"
            "If it was not you, ignore this mail: your password stays as it is.\n"
        )
        assert Markup(html).text == "Reset your password " + " ".join(text.split()).replace(" password: ", " password ")

    def test_has_its_link_once_to_click_and_once_to_copy(self) -> None:
        page = Markup(render_mail("password_reset", VALUES).html)

        assert page.links == [LINK]
        assert page.text.count(LINK) == 1

    def test_loads_nothing_and_runs_nothing(self) -> None:
        page = Markup(render_mail("password_reset", VALUES).html)

        assert set(page.tags) == {"html", "head", "meta", "title", "body", "div", "p", "a"}

    def test_fails_for_a_value_that_is_not_given(self) -> None:
        with pytest.raises(UndefinedError):
            render_mail("password_reset", {"name": "Ada", "until": "3 March 2026, 12:00 UTC"})

    def test_has_a_template_for_each_kind_and_no_other(self) -> None:
        assert {path.stem for path in (TEMPLATES / "mail").glob("*.txt")} == {str(kind) for kind in MailKind}


class TestHostileValue:
    @pytest.mark.parametrize(
        "name",
        [
            "<script>alert(1)</script>",
            '<a href="https://evil.example">Ada</a>',
            '"><img src=x onerror=alert(1)>',
            "[Verify](https://evil.example/)",
            "Ada\n\n[Verify](https://evil.example/)\n\nLovelace",
            "{{ link }}",
            "{% for each in values %}{% endfor %}",
            "Ada &lt;b&gt;",
            "Ada\r\nBcc: ben@example.com",
            "Ada\u2028\u2028[Verify](https://evil.example/)",
        ],
    )
    def test_adds_no_paragraph_no_markup_and_no_link(self, name: str) -> None:
        usual = render_mail("password_reset", VALUES)

        subject, text, html = render_mail("password_reset", {**VALUES, "name": name})

        assert subject == usual.subject
        assert len(text.splitlines()) == len(usual.text.splitlines())
        assert text.splitlines()[0] == f"Hello {' '.join(name.split())},"
        assert Markup(html).tags == Markup(usual.html).tags
        assert Markup(html).links == [LINK]
        assert " ".join(f"Hello {name},".split()) in Markup(html).text

    def test_can_not_break_out_of_the_link(self) -> None:
        link = 'https://octopus.example/?token="><script>alert(1)</script>'

        page = Markup(render_mail("password_reset", {**VALUES, "link": link}).html)

        assert page.links == [link]
        assert "script" not in page.tags

    def test_can_not_break_a_line_of_the_subject(self) -> None:
        assert "\n" not in render_mail("password_reset", {**VALUES, "name": "Ada\nLovelace"}).subject


class TestName:
    @pytest.mark.parametrize(
        "name", ["Ada \N{CJK UNIFIED IDEOGRAPH-674E}", "\N{OCTOPUS} Søren", "O'Neil & Søns", "x" * 200]
    )
    def test_is_shown_as_it_is(self, name: str) -> None:
        rendered = render_mail("password_reset", {**VALUES, "name": name})

        assert rendered.text.startswith(f"Hello {name},\n")
        assert f"Hello {name}," in Markup(rendered.html).text


class TestPage:
    def test_escapes_what_it_is_given(self) -> None:
        hostile = '"><script>alert(1)</script>'

        page = render_page("password_reset", token=hostile, error=hostile, done="")

        assert "<script" not in page
        assert re.search(r'name="token" value="&#34;&gt;&lt;script&gt;', page)

    def test_fails_for_a_value_that_is_not_given(self) -> None:
        with pytest.raises(UndefinedError):
            render_page("password_reset", token="")
