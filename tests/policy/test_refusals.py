import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.refusals import CONSEQUENCES, Blame, Fallback, Refusal, classify
from relay.wire.faults import TOO_LONG
from tests.policy.recorded import REFUSED, words

MEANING = {
    "anthropic-400-prompt-too-long.json": Refusal.CONTEXT_LENGTH,
    "anthropic-400-spend-limit.json": Refusal.NO_QUOTA,
    "anthropic-401.json": Refusal.BAD_CREDENTIAL,
    "anthropic-404.json": Refusal.MODEL_NOT_FOUND,
    "anthropic-413.json": Refusal.CALLER,
    "anthropic-429-spend-cap.json": Refusal.NO_QUOTA,
    "anthropic-429.json": Refusal.THROTTLED,
    "anthropic-529.json": Refusal.OVERLOADED,
    "ark-403-overdue.json": Refusal.NO_QUOTA,
    "azure-400-content-filter.json": Refusal.CONTENT_POLICY,
    "azure-401.json": Refusal.BAD_CREDENTIAL,
    "azure-404-deployment.json": Refusal.MODEL_NOT_FOUND,
    "azure-429.json": Refusal.THROTTLED,
    "dashscope-compat-400-arrearage.json": Refusal.NO_QUOTA,
    "dashscope-compat-400-context.json": Refusal.CONTEXT_LENGTH,
    "dashscope-compat-400-inspection.json": Refusal.CONTENT_POLICY,
    "dashscope-compat-400-thinking-nonstream.json": Refusal.CALLER,
    "dashscope-compat-401.json": Refusal.BAD_CREDENTIAL,
    "dashscope-compat-429-burst.json": Refusal.SLOW_DOWN,
    "dashscope-compat-429-insufficient-quota-tpm.json": Refusal.THROTTLED,
    "dashscope-compat-429-limit-requests.json": Refusal.THROTTLED,
    "dashscope-native-401.json": Refusal.BAD_CREDENTIAL,
    "dashscope-native-429.json": Refusal.THROTTLED,
    "deepseek-401.json": Refusal.BAD_CREDENTIAL,
    "deepseek-402.json": Refusal.NO_QUOTA,
    "deepseek-429.json": Refusal.THROTTLED,
    "deepseek-503.json": Refusal.OVERLOADED,
    "gemini-400-key.json": Refusal.BAD_CREDENTIAL,
    "gemini-402.json": Refusal.NO_QUOTA,
    "gemini-404.json": Refusal.MODEL_NOT_FOUND,
    "gemini-429-retryinfo.json": Refusal.THROTTLED,
    "gemini-503.json": Refusal.OVERLOADED,
    "gemini-openai-compat-400-list.json": Refusal.CALLER,
    "groq-400-tool-use-failed.json": Refusal.CALLER,
    "groq-429.json": Refusal.THROTTLED,
    "groq-498-capacity.json": Refusal.OVERLOADED,
    "llamacpp-400-context.json": Refusal.CONTEXT_LENGTH,
    "llamacpp-503-loading.json": Refusal.OVERLOADED,
    "mistral-422.json": Refusal.CALLER,
    "moonshot-429-overloaded.json": Refusal.OVERLOADED,
    "ollama-native-404.json": Refusal.MODEL_NOT_FOUND,
    "ollama-native-503-queue.json": Refusal.OVERLOADED,
    "ollama-v1-404.json": Refusal.MODEL_NOT_FOUND,
    "openai-400-context-length.json": Refusal.CONTEXT_LENGTH,
    "openai-400-invalid-param.json": Refusal.CALLER,
    "openai-401.json": Refusal.BAD_CREDENTIAL,
    "openai-404-model.json": Refusal.MODEL_NOT_FOUND,
    "openai-429-credit-balance-exhausted.json": Refusal.NO_QUOTA,
    "openai-429-insufficient-quota.json": Refusal.NO_QUOTA,
    "openai-429-rate-limit.json": Refusal.THROTTLED,
    "openai-429-slow-down.json": Refusal.SLOW_DOWN,
    "openai-500.json": Refusal.SERVER,
    "openai-503-overloaded.json": Refusal.OVERLOADED,
    "openrouter-402.json": Refusal.NO_QUOTA,
    "openrouter-429-provider.json": Refusal.THROTTLED,
    "sglang-400-flat.json": Refusal.CONTEXT_LENGTH,
    "together-403-context.json": Refusal.CONTEXT_LENGTH,
    "vllm-400-context.json": Refusal.CONTEXT_LENGTH,
    "xai-403.json": Refusal.FORBIDDEN,
    "zhipu-429-no-balance.json": Refusal.NO_QUOTA,
    "zhipu-429.json": Refusal.THROTTLED,
}


def test_every_recorded_refusal_is_in_the_table() -> None:
    assert set(MEANING) == set(REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_recorded_refusals_mean_what_the_vendor_says(name: str) -> None:
    assert classify(REFUSED[name]["status"], name.split("-")[0], *words(name)) is MEANING[name]


@pytest.mark.parametrize(
    "name", sorted(name for name in REFUSED if not name.startswith("zhipu") and name != "dashscope-compat-429-insufficient-quota-tpm.json")
)
def test_recorded_refusals_mean_the_same_when_the_vendor_is_not_known(name: str) -> None:
    assert classify(REFUSED[name]["status"], "", *words(name)) is MEANING[name]


def test_insufficient_quota_is_final_at_openai_and_a_minute_limit_at_dashscope() -> None:
    words = ("insufficient_quota", "insufficient_quota", "You exceeded your current quota")
    assert classify(429, "openai", *words) is Refusal.NO_QUOTA
    assert classify(429, "dashscope", *words) is Refusal.THROTTLED
    assert classify(429, "", *words[:2], "For details, see: …/error-code#token-limit") is Refusal.THROTTLED
    assert classify(429, "dashscope", *words[:2], "Free allocated quota exceeded.") is Refusal.NO_MODEL_QUOTA


def test_zhipus_numbers_mean_something_at_zhipu_only() -> None:
    assert classify(429, "zhipu", None, "1113") is Refusal.NO_QUOTA
    assert classify(429, "zhipu", None, "1305") is Refusal.OVERLOADED
    assert classify(400, "zhipu", None, "1261") is Refusal.CONTEXT_LENGTH
    assert classify(400, "mistral", None, "1261") is Refusal.CALLER


@pytest.mark.parametrize(
    ("status", "words", "meaning"),
    [
        (301, (), Refusal.REDIRECT),
        (307, (), Refusal.REDIRECT),
        (400, (), Refusal.CALLER),
        (402, (), Refusal.NO_QUOTA),
        (403, (), Refusal.FORBIDDEN),
        (403, (None, "Model.AccessDenied"), Refusal.MODEL_NOT_FOUND),
        (403, (None, "AllocationQuota.FreeTierOnly"), Refusal.NO_MODEL_QUOTA),
        (403, (None, None, "Your input was flagged"), Refusal.CONTENT_POLICY),
        (404, (), Refusal.MODEL_NOT_FOUND),
        (408, (), Refusal.TIMEOUT),
        (409, (), Refusal.CONFLICT),
        (413, (), Refusal.CALLER),
        (422, (), Refusal.CALLER),
        (429, (), Refusal.THROTTLED),
        (429, (None, "CommodityNotPurchased"), Refusal.NO_QUOTA),
        (429, (None, "RateLimitExceeded.EndpointTPMExceeded"), Refusal.THROTTLED),
        (429, (None, "429", "Quota exceeded for metric: requests, limit: 0, model: m"), Refusal.NO_MODEL_QUOTA),
        (500, (), Refusal.SERVER),
        (502, (), Refusal.SERVER),
        (504, (), Refusal.SERVER),
        (503, (), Refusal.OVERLOADED),
        (529, (), Refusal.OVERLOADED),
    ],
)
def test_a_status_alone_or_with_a_word_has_a_meaning(status: int, words: tuple[str | None, ...], meaning: Refusal) -> None:
    assert classify(status, "", *words) is meaning


@pytest.mark.parametrize(
    "message",
    [
        "Your credit balance is too low: Extra inputs are not permitted",
        "Invalid value: 'Your credit balance is too low'",
        'Unknown name "API key not valid. Please pass a valid API key.": Cannot find field.',
        "API key not valid. Please pass a valid API key.: Extra inputs are not permitted",
        "messages.0.content: You have reached your specified API usage limits. You will regain access on 2026-08-01 at 00:00 UTC.",
        "Incorrect API key provided",
    ],
)
def test_a_request_cannot_talk_a_credential_into_a_rest(message: str) -> None:
    refusal = classify(400, "anthropic", "invalid_request_error", None, message)
    assert CONSEQUENCES[refusal].blames is Blame.NOBODY


@given(
    status=st.sampled_from([400, 404, 408, 409, 413, 415, 422, 424]),
    vendor=st.sampled_from(["", "openai", "dashscope", "anthropic", "gemini"]),
    message=st.text(max_size=200),
)
def test_no_message_of_a_callers_fault_blames_anybody(status: int, vendor: str, message: str) -> None:
    refusal = classify(status, vendor, "invalid_request_error", None, f"Invalid value: '{message}'")
    assert CONSEQUENCES[refusal].blames is Blame.NOBODY


@given(
    status=st.integers(300, 599),
    vendor=st.text(max_size=8),
    kind=st.none() | st.text(max_size=20),
    code=st.none() | st.text(max_size=20),
    message=st.none() | st.text(max_size=50),
)
def test_every_answer_has_a_meaning_and_every_meaning_a_consequence(
    status: int, vendor: str, kind: str | None, code: str | None, message: str | None
) -> None:
    assert classify(status, vendor, kind, code, message) in CONSEQUENCES


def test_consequences_are_complete_and_agree_with_themselves() -> None:
    assert set(CONSEQUENCES) == set(Refusal)
    for refusal, consequence in CONSEQUENCES.items():
        if consequence.is_final:
            assert not consequence.can_repeat, refusal
        if consequence.falls_back is not Fallback.ALWAYS:
            assert consequence.blames is Blame.NOBODY, refusal
        if consequence.blames is Blame.NOBODY:
            assert consequence.rest_seconds == 0, refusal
    assert CONSEQUENCES[Refusal.CALLER].falls_back is Fallback.NEVER
    assert CONSEQUENCES[Refusal.SLOW_DOWN].rest_seconds == 5.0


@pytest.mark.parametrize("phrase", TOO_LONG)
def test_what_is_too_long_by_its_message_in_a_200_is_so_as_a_refusal_too(phrase: str) -> None:
    assert classify(400, message=f"Error: {phrase}.") is Refusal.CONTEXT_LENGTH
