"""What looks like a credential is taken out; what does not stays as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.telemetry.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Incorrect API key provided: sk-proj-abc123DEF456. See", "Incorrect API key provided: sk-*** See"),
        ("sk-client+7f/3a91=c2", "sk-***"),
        ("sk-rl-7Q2Mabcdefgh", "sk-***"),
        ("(sk-ant-api03-abcdefgh)", "(sk-***)"),
        ("gsk_abcdefgh12345678", "gsk_***"),
        ("key AIzaSyA-1234567890abcdefgh", "key AIza***"),
        ("authorization: Bearer abcdef.123456", "authorization: Bearer ***"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic ***"),
        ("/v1/x?api_key=abcdefghijk&b=1", "/v1/x?api_key=***&b=1"),
        ('{"password": "correct-horse"}', '{"password": "***"}'),
        ("http://user:pass@127.0.0.1:3128/", "http://***@127.0.0.1:3128/"),
    ],
)
def test_credentials_are_taken_out(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt-4.1-mini",
        "deepseek/deepseek-chat-v3.1:free",
        "risk-assessment-model",
        "no token left",
        "the desk-lamp",
        "http://127.0.0.1:8000/v1",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=40), st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_", min_size=16, max_size=60), st.text(max_size=40))
def test_no_key_survives_what_stands_around_it(before: str, key: str, after: str) -> None:
    assert f"sk-{key}" not in redact(f"{before} sk-{key} {after}")


@given(st.text(max_size=200))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)
