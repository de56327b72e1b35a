"""Every setting as a page for people, made from the same schema that editors read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from relay.config.flow import flow
from relay.config.schemas import schema


def reference() -> str:
    """Return Markdown: a heading for each section of the file, under it a table of its settings."""
    found = schema()
    page = _Page(definitions=found["$defs"])
    return "\n".join(page.section("", "The file", found)).rstrip()


@dataclass(slots=True, kw_only=True)
class _Page:
    definitions: dict[str, dict[str, Any]]
    titles: dict[str, str] = field(default_factory=dict)
    """Sections that are told already; they stand in several places of the file and mean the same in each."""

    def section(self, path: str, title: str, found: dict[str, Any]) -> Iterator[str]:
        """Yield the lines of one section, then those of the sections below it that were not told yet."""
        required = found.get("required", ())
        yield from (f"## {title}", "")
        if path:
            yield from (found["description"], "")
        yield from ("| setting | default | what | for example |", "|---|---|---|---|")
        below: list[tuple[str, str]] = []
        for name, setting in found["properties"].items():
            inner = f"{path}.{name}" if path else name
            mark, definition = self._inside(setting)
            what = setting.get("description") or self.definitions[definition or ""]["description"]
            if definition is not None:
                if definition not in self.titles:
                    self.titles[definition] = inner + mark
                    below.append((inner + mark, definition))
                what += f" See {_link(self.titles[definition])}."
            default = "required" if name in required else _code(setting.get("default"))
            yield f"| `{name}` | {default} | {_cell(what)} | {_examples(setting)} |"
            for beside, other in setting.get("properties", {}).items():
                yield f"| `{name}.{beside}` |  | {_cell(other['description'])} | {_examples(other)} |"
        yield ""
        for inner, definition in below:
            yield from self.section(inner, f"`{inner}`", self.definitions[definition])

    def _inside(self, setting: dict[str, Any]) -> tuple[str, str | None]:
        """Return how the section inside a setting is reached, and its definition; None for a single value."""
        for mark, holder in (("", setting), (".NAME", setting.get("additionalProperties")), ("[]", setting.get("items"))):
            if isinstance(holder, dict):
                refs = [holder, *holder.get("allOf", ())]
                for ref in refs:
                    if "$ref" in ref:
                        return mark, ref["$ref"].rpartition("/")[2]
        return "", None


def _code(value: object) -> str:
    return "" if value is None or value == [] else f"`{flow(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _examples(setting: dict[str, Any]) -> str:
    return ", ".join(f"`{_short(example)}`" for example in setting.get("examples", ()))


def _short(example: object) -> str:
    """A credential's hash says no more in full."""
    return flow(example).replace("0" * 64, "HEX")


def _link(title: str) -> str:
    anchor = "".join(char for char in title.lower() if char.isalnum() or char in "_-")
    return f"[`{title}`](#{anchor})"
