import json

import pytest

from app.core.chat_completions import (
    ProtocolError,
    ReplyReader,
    Turn,
    estimated_prompt_tokens,
    estimated_tokens,
    request_body,
)


def chunk(**fields: object) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}}], **fields})


class TestReplyReader:
    def test_takes_text_model_and_usage(self) -> None:
        reply = ReplyReader()
        usage = {"prompt_tokens": 3, "completion_tokens": 4}

        texts = [
            reply.read(chunk(model="m-1")),
            reply.read(chunk()),
            reply.read(json.dumps({"choices": [], "usage": usage})),
        ]

        assert texts == ["x", "x", ""]
        assert reply.model == "m-1"
        assert reply.usage is not None
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 4)
        assert not reply.is_whole

    @pytest.mark.parametrize(
        "data", ["[DONE]", " [DONE] ", '{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}']
    )
    def test_knows_the_end(self, data: str) -> None:
        reply = ReplyReader()

        assert reply.read(data) == ""
        assert reply.is_whole
        assert reply.is_done == ("DONE" in data)

    @pytest.mark.parametrize(
        "data",
        [
            '{"choices": [{"delta": {"role": "assistant", "content": null}}]}',
            '{"choices": [{"delta": null}]}',
            '{"choices": [{"index": 1, "delta": {"content": "another answer"}}]}',
            '{"choices": null, "usage": null, "unknown": 7}',
            "{}",
        ],
    )
    def test_passes_over_what_adds_nothing(self, data: str) -> None:
        assert ReplyReader().read(data) == ""

    @pytest.mark.parametrize(
        "data",
        [
            *("", "nonsense", "7", "[]", "{", '{"choices": 7}', '{"choices": [{"delta": {"content": 7}}]}'),
            *('{"usage": {"prompt_tokens": -1, "completion_tokens": 0}}', '{"usage": {"prompt_tokens": 1}}'),
            *('{"error": {"message": "no"}}', '{"error": "no"}', '{"choices": [{"delta": {"content": "\\ud83d"}}]}'),
        ],
    )
    def test_refuses_what_is_none_of_the_protocol(self, data: str) -> None:
        with pytest.raises(ProtocolError):
            ReplyReader().read(data)

    def test_keeps_no_name_that_is_endless(self) -> None:
        reply = ReplyReader()

        reply.read(chunk(model="m" * 201))

        assert reply.model is None


class TestRequest:
    def test_asks_for_a_stream_with_usage(self) -> None:
        body = request_body("m", [Turn("system", "Be brief."), Turn("user", "Grüße")], {"max_tokens": 5})

        assert json.loads(body) == {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
        }


class TestEstimate:
    @pytest.mark.parametrize(
        ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("🐙🐙", 2), ("漢字かな", 3)]
    )
    def test_is_a_token_for_four_bytes(self, text: str, tokens: int) -> None:
        assert estimated_tokens(text) == tokens

    def test_counts_what_stands_around_a_message(self) -> None:
        assert estimated_prompt_tokens([Turn("user", "abcd"), Turn("user", "")]) == 9
