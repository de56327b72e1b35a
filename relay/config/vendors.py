"""Upstreams that are known by name: where they are, which variable holds their key, which model names are theirs.

Base URLs are those of the vendors' own OpenAI-compatible endpoints. All of them end a chat stream with `[DONE]`, the
compatible endpoints of Anthropic, Gemini and Ollama included, so none is marked `done_optional`: Ollama swallows an
error in mid-stream and merely ends, which only the missing `[DONE]` gives away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """What a known upstream name brings along."""

    base_url: str
    variable: str | None = None
    """The environment variable that holds its key; None where none is needed."""
    patterns: tuple[str, ...] = ()
    """Bare model names that lead here when nothing is configured."""
    example: str
    """A model to show in the start message."""


VENDORS: Final[Mapping[str, Vendor]] = {
    "openai": Vendor(
        base_url="https://api.openai.com/v1",
        variable="OPENAI_API_KEY",
        patterns=("gpt-*", "o1*", "o3*", "o4*", "text-embedding-*"),
        example="gpt-4.1-mini",
    ),
    "anthropic": Vendor(
        base_url="https://api.anthropic.com/v1",
        variable="ANTHROPIC_API_KEY",
        patterns=("claude-*",),
        example="claude-sonnet-4-20250514",
    ),
    "dashscope": Vendor(
        base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        variable="DASHSCOPE_API_KEY",
        patterns=("qwen*",),
        example="qwen-plus",
    ),
    "deepseek": Vendor(
        base_url="https://api.deepseek.com/v1",
        variable="DEEPSEEK_API_KEY",
        patterns=("deepseek-*",),
        example="deepseek-chat",
    ),
    "gemini": Vendor(
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        variable="GEMINI_API_KEY",
        patterns=("gemini-*",),
        example="gemini-2.5-flash",
    ),
    "groq": Vendor(base_url="https://api.groq.com/openai/v1", variable="GROQ_API_KEY", example="openai/gpt-oss-120b"),
    "mistral": Vendor(
        base_url="https://api.mistral.ai/v1",
        variable="MISTRAL_API_KEY",
        patterns=("mistral-*",),
        example="mistral-small-latest",
    ),
    "moonshot": Vendor(
        base_url="https://api.moonshot.ai/v1",
        variable="MOONSHOT_API_KEY",
        patterns=("kimi-*", "moonshot-*"),
        example="kimi-k3",
    ),
    "ollama": Vendor(base_url="http://127.0.0.1:11434/v1", example="qwen3:8b"),
    "openrouter": Vendor(base_url="https://openrouter.ai/api/v1", variable="OPENROUTER_API_KEY", example="openai/gpt-4.1-mini"),
    "together": Vendor(base_url="https://api.together.xyz/v1", variable="TOGETHER_API_KEY", example="openai/gpt-oss-120b"),
    "vllm": Vendor(base_url="http://127.0.0.1:8000/v1", example="Qwen/Qwen3-8B"),
    "xai": Vendor(base_url="https://api.x.ai/v1", variable="XAI_API_KEY", patterns=("grok-*",), example="grok-3-mini"),
    "zhipu": Vendor(
        base_url="https://open.bigmodel.cn/api/paas/v4",
        variable="ZHIPU_API_KEY",
        patterns=("glm-*",),
        example="glm-4.7",
    ),
}


NAMES: Final = (*VENDORS, "azure")
STRICT_STREAMS: Final = frozenset({"mistral"})
"""Those that refuse `stream_options` (422 for what they do not know), and tell usage unasked."""
"""Whose API an upstream can speak: each refuses in codes and headers of its own."""
_BY_DOMAIN: Final = {"aliyuncs.com": "dashscope", "openai.azure.com": "azure", "cognitiveservices.azure.com": "azure"}


def vendor_of(name: str, base_url: str) -> str:
    """Return whose API the upstream `name` at `base_url` most likely speaks: told by its name, else by its host, else OpenAI's."""
    host = urlsplit(base_url).hostname or ""
    if name in NAMES:
        return name
    for known, vendor in VENDORS.items():
        if host == urlsplit(vendor.base_url).hostname and host != "127.0.0.1":
            return known
    return next((known for domain, known in _BY_DOMAIN.items() if host.endswith(f".{domain}")), "openai")
